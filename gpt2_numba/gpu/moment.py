"""Moments in the device's work, to tell how long it took for what lies between two of them."""

import time

from numba import cuda

from gpt2_numba.gpu.backend import compute_stream


class HostMoment:
    """Now, where the host does the work itself."""

    def __init__(self):
        self._seconds = time.perf_counter()

    def seconds_since(self, earlier):
        """Seconds from another moment to this one."""
        return self._seconds - earlier._seconds


class GpuMoment:
    """The moment when the GPU has done all that has been asked of it so far. Making one waits for nothing."""

    def __init__(self):
        self._event = cuda.event(timing=True)
        self._event.record(compute_stream())

    def seconds_since(self, earlier):
        """Seconds from another moment to this one. Waits until the GPU is there."""
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3
