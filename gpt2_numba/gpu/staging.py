"""Copies between host and GPU that do not block the host: the next batch is copied while the GPU still works on the previous one, and
the loss of a step comes back while it works on the next.

A copy from or to ordinary memory makes the host wait until all earlier work is done, since its pages could move in the meantime.
Page-locked ("pinned") memory stays where it is, so the copy is only queued. The buffers are used in turn; an event marks the end of a
copy, and only after it is the buffer used again.
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import compute_stream, device_pointer, on_host, real_gpu, synchronize
from gpt2_numba.gpu.graph import driver_call

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


class Mirror:
    """A host array, `values`, and an array on the device, copied to each other again and again with as little work for the host as can be.

    Numba's own copies examine both arrays each time, which takes longer than to copy a few numbers; here only the driver is called. There
    is one buffer and no event: before `send`, the device must have finished what was sent before, as it has after a `fetch`.
    Of a NumPy array, `values` is the array itself, and nothing is copied.
    """

    def __init__(self, array):
        self._array, self._pinned = array, real_gpu() and not on_host(array)
        if self._pinned:
            self.values = cuda.pinned_array(array.shape, array.dtype)
            self._addresses = device_pointer(array), self.values.ctypes.data
        else:
            self.values = array if on_host(array) else np.empty(array.shape, array.dtype)

    def send(self, values):
        """Set `values`, and queue their copy to the device."""
        self.values[:] = values
        if self._pinned:
            device, host = self._addresses
            driver_call("cuMemcpyHtoDAsync", device, host, self.values.nbytes, int(compute_stream()))
        elif not on_host(self._array):
            self._array.copy_to_device(self.values)

    def fetch(self):
        """Wait for the device and copy its array to `values`. Returns `values`, valid until the next call."""
        if self._pinned:
            device, host = self._addresses
            driver_call("cuMemcpyDtoHAsync", host, device, self.values.nbytes, int(compute_stream()))
            synchronize()
        elif not on_host(self._array):
            self._array.copy_to_host(self.values)
        return self.values


def copy_row(target, matrix, row):
    """target[0] = matrix[row], for two arrays on the host or on the device, without waiting. target (1, C), matrix (rows, C), one type."""
    if on_host(target):
        target[0] = matrix[row]
    elif real_gpu():
        nbytes = target.size * target.dtype.itemsize
        driver_call("cuMemcpyDtoDAsync", device_pointer(target), device_pointer(matrix) + row * nbytes, nbytes, int(compute_stream()))
    else:
        target.copy_to_device(matrix[row : row + 1])
