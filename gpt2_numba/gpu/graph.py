"""Launches recorded once and replayed with a single call: CUDA graphs.

A launch costs the host about 30 µs, since Python unpacks the arguments, while a small layer's kernel takes 5 µs: the GPU would wait for
the host. While a stream is being captured, launches on it do not run but are recorded. The recording becomes a graph, which the driver
starts as a whole: 2 µs of host time for hundreds of kernels.

The recording holds pointers and scalar arguments, not the contents of memory. So whatever changes from step to step (tokens, learning
rate, seeds, the scale that clips the gradients) lies in device memory at a fixed address and is written there before the graph starts.

CUDA Programming Guide, section "CUDA Graphs"; CUDA driver API, cuStreamBeginCapture.
"""

from gpt2_numba.gpu.backend import compute_stream, real_gpu


class Graphs:
    """Work that is repeated in every step, each piece under a key."""

    def __init__(self, enabled):
        """enabled: whether to record; without a real GPU nothing is recorded."""
        self._enabled = enabled and real_gpu()
        self._seen, self._recorded = set(), {}

    def run(self, key, work):
        """Do `work` (a function without arguments that launches on the compute stream and does not wait).

        The first time, a key's work is done launch by launch, so that kernels are compiled and matrix products planned. The second time
        it is recorded, and from then on the recording is replayed instead. The bits are the same in all cases.
        """
        if not self._enabled or key not in self._seen:
            self._seen.add(key)
            return work()
        if key not in self._recorded:
            self._recorded[key] = _record(work)
        driver_call("cuGraphLaunch", self._recorded[key], int(compute_stream()))


def _record(work):
    """The executable graph (CUgraphExec) of what `work` launches."""
    from cuda.bindings import driver

    stream = int(compute_stream())
    # Thread-local: another thread may copy or allocate meanwhile without invalidating the recording.
    driver_call("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    try:
        work()
    except BaseException:
        driver.cuStreamEndCapture(stream)  # or the stream would stay unusable; the exception says what went wrong
        raise
    graph = driver_call("cuStreamEndCapture", stream)
    executable = driver_call("cuGraphInstantiate", graph, 0)
    driver_call("cuGraphDestroy", graph)
    return executable


def driver_call(name, *arguments):
    """Call a driver function. Returns its result, if it has one. Raises RuntimeError with the driver's message."""
    from cuda.bindings import driver

    error, *results = getattr(driver, name)(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(error)
        raise RuntimeError(f"{name}: {text.decode() if text else error}")
    return results[0] if results else None
