"""Copies between host and GPU that do not block the host: the next batch is copied while the GPU still works on the previous one, and
the loss of a step comes back while it works on the next.

A copy from or to ordinary memory makes the host wait until all earlier work is done, since its pages could move in the meantime.
Page-locked ("pinned") memory stays where it is, so the copy is only queued. The buffers are used in turn; an event marks the end of a
copy, and only after it is the buffer used again.
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import compute_stream

RESULT_SLOTS = 4  # the trainer reads a step's results while the next step runs: two are in use
SLOTS = 16  # four copies per micro-step: the host can be a few micro-steps ahead before it must wait


class PinnedRing:
    """Page-locked buffers for copies to the GPU, each of `count` four-byte elements."""

    def __init__(self, count):
        self._buffers = [cuda.pinned_array(count, np.int32) for _ in range(SLOTS)]
        self._copied = [cuda.event(timing=False) for _ in range(SLOTS)]
        self._uses = 0

    def copy(self, target, values):
        """Queue a copy of host `values` into the device array `target`: the same number of elements, the same four-byte type."""
        slot = self._uses % SLOTS
        if self._uses >= SLOTS:
            self._copied[slot].synchronize()
        self._uses += 1
        buffer = self._buffers[slot][: values.size].view(target.dtype)
        buffer[:] = values.reshape(-1)
        target.copy_to_device(buffer.reshape(target.shape), stream=compute_stream())
        self._copied[slot].record(compute_stream())


class PinnedResults:
    """Page-locked buffers for copies to the host, each of `count` float32 values."""

    def __init__(self, count):
        self._buffers = [cuda.pinned_array(count, np.float32) for _ in range(RESULT_SLOTS)]
        self._arrived = [cuda.event(timing=False) for _ in range(RESULT_SLOTS)]
        self._uses = 0

    def fetch(self, source):
        """Queue a copy of the device array `source` to the host. Returns a function that waits for it and returns the values as a list.

        Call it before RESULT_SLOTS more fetches: the last of them reuses the buffer.
        """
        slot = self._uses % RESULT_SLOTS
        self._uses += 1
        buffer, arrived = self._buffers[slot], self._arrived[slot]
        source.copy_to_host(buffer, stream=compute_stream())
        arrived.record(compute_stream())

        def wait():
            arrived.synchronize()
            return buffer.tolist()

        return wait
