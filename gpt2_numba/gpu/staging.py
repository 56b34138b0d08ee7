"""Copies from the host to the GPU that nobody waits for: the next batch travels while the GPU still works on the last.

A copy from ordinary memory makes the host wait until all work before it is done, since the pages could move meanwhile. Page-locked
("pinned") memory stays where it is, so the copy is only put in the queue. The buffers are used in turn; an event tells when
the GPU has fetched what a buffer holds, and only then is it filled again.
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import compute_stream

SLOTS = 16  # four copies a micro-step: the host can be some micro-steps ahead before it must wait


class PinnedRing:
    """Page-locked buffers of `count` int32 each."""

    def __init__(self, count):
        self._buffers = [cuda.pinned_array(count, np.int32) for _ in range(SLOTS)]
        self._fetched = [cuda.event(timing=False) for _ in range(SLOTS)]
        self._uses = 0

    def copy(self, target, values):
        """Queue a copy of the host's integers `values` into the device array `target`, which has as many elements."""
        slot = self._uses % SLOTS
        if self._uses >= SLOTS:
            self._fetched[slot].synchronize()
        self._uses += 1
        buffer = self._buffers[slot][: values.size]
        buffer[:] = values.reshape(-1)
        target.copy_to_device(buffer.reshape(target.shape), stream=compute_stream())
        self._fetched[slot].record(compute_stream())
