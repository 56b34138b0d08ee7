"""Moments in the device's work: how long the work between two of them took."""

import time

from numba import cuda

from gpt2_numba.gpu.backend import compute_stream


class HostMoment:
    """Now, for work that the host does itself."""

    def __init__(self):
        self._seconds = time.perf_counter()

    def seconds_since(self, earlier):
        """Seconds from an earlier moment to this one."""
        return self._seconds - earlier._seconds


class GpuMoment:
    """The moment when the GPU finishes the work queued so far. Creating one does not wait."""

    def __init__(self):
        self._event = cuda.event(timing=True)
        self._event.record(compute_stream())

    def seconds_since(self, earlier):
        """Seconds from an earlier moment to this one. Waits until the GPU has reached this one."""
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3
