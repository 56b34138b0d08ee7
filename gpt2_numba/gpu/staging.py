"""Copies between the host and the GPU that nobody waits for: the next batch travels while the GPU still works on the last, and the loss
of a step comes back while it works on the next.

A copy from or to ordinary memory makes the host wait until all work before it is done, since the pages could move meanwhile. Page-locked
("pinned") memory stays where it is, so the copy is only put in the queue. The buffers are used in turn; an event tells when
a copy has been made, and only then is its buffer used again.
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import compute_stream

RESULT_SLOTS = 4  # the trainer reads a step's numbers while the next step runs: two are in use
SLOTS = 16  # four copies a micro-step: the host can be some micro-steps ahead before it must wait


class PinnedRing:
    """Page-locked buffers of `count` numbers of four bytes each, for the way to the GPU."""

    def __init__(self, count):
        self._buffers = [cuda.pinned_array(count, np.int32) for _ in range(SLOTS)]
        self._fetched = [cuda.event(timing=False) for _ in range(SLOTS)]
        self._uses = 0

    def copy(self, target, values):
        """Queue a copy of the host's `values` into the device array `target`, which has as many elements, of the same type of four bytes."""
        slot = self._uses % SLOTS
        if self._uses >= SLOTS:
            self._fetched[slot].synchronize()
        self._uses += 1
        buffer = self._buffers[slot][: values.size].view(target.dtype)
        buffer[:] = values.reshape(-1)
        target.copy_to_device(buffer.reshape(target.shape), stream=compute_stream())
        self._fetched[slot].record(compute_stream())


class PinnedResults:
    """Page-locked buffers of `count` float32 each, for the way back to the host."""

    def __init__(self, count):
        self._buffers = [cuda.pinned_array(count, np.float32) for _ in range(RESULT_SLOTS)]
        self._arrived = [cuda.event(timing=False) for _ in range(RESULT_SLOTS)]
        self._uses = 0

    def fetch(self, source):
        """Queue a copy of the device array `source` to the host. Returns a function that waits for it and gives the numbers.

        It must be called before RESULT_SLOTS more are fetched.
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
