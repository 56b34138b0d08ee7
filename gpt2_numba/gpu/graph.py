"""Launches recorded once and started again with a single call: CUDA graphs.

A launch costs the host about 30 µs, since Python takes the arguments apart, and a small layer's kernel is done in 5: the GPU would
wait for the host. While a stream is being captured, what is launched on it does not run but is noted down. The notes become a graph, which
the driver starts as a whole: 2 µs of host time for hundreds of kernels.

The notes hold pointers and numbers, not their contents. So whatever changes from step to step - tokens, learning rate, seeds, the scale
that clips the gradients - has to lie in device memory, at an address that stays, and is written there before the graph starts.

CUDA Programming Guide, section "CUDA Graphs"; CUDA driver API, cuStreamBeginCapture.
"""

from gpt2_numba.gpu.backend import compute_stream, real_gpu


class Graphs:
    """Pieces of work that are done again and again, each with a key."""

    def __init__(self, enabled):
        """enabled: record at all; elsewhere than on a real GPU nothing ever is."""
        self._enabled = enabled and real_gpu()
        self._seen, self._recorded = set(), {}

    def run(self, key, work):
        """Do `work` (a function without arguments, which launches on the compute stream and waits for nothing).

        The first time a key comes the work is done launch by launch, so that kernels are compiled and matrix products planned; the
        second time it is recorded, and from then on the recording is started instead. The bits are the same in all three cases.
        """
        if not self._enabled or key not in self._seen:
            self._seen.add(key)
            return work()
        if key not in self._recorded:
            self._recorded[key] = _record(work)
        _call("cuGraphLaunch", self._recorded[key], int(compute_stream()))


def _record(work):
    """The executable graph (CUgraphExec) of what `work` launches."""
    from cuda.bindings import driver

    stream = int(compute_stream())
    # Of this thread alone: another may copy or allocate meanwhile without spoiling the recording.
    _call("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    try:
        work()
    except BaseException:
        driver.cuStreamEndCapture(stream)  # or the stream would stay unusable; what went wrong is told by the exception
        raise
    graph = _call("cuStreamEndCapture", stream)
    executable = _call("cuGraphInstantiate", graph, 0)
    _call("cuGraphDestroy", graph)
    return executable


def _call(name, *arguments):
    """One function of the driver. Returns its result, if it has one. Raises RuntimeError with the driver's own words."""
    from cuda.bindings import driver

    error, *results = getattr(driver, name)(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(error)
        raise RuntimeError(f"{name}: {text.decode() if text else error}")
    return results[0] if results else None
