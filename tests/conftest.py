"""Where the kernels of the tests run: on the GPU, or without one in Numba's simulator, which must be chosen before Numba is imported."""

import signal

import pytest

from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; the processes that tests start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def tf32_allowed_as_at_the_start():
    """A model sets TF32 for the whole process: the next test begins with the default again."""
    yield
    from gpt2_numba.gpu.gemm import allow_tf32

    allow_tf32(True)


def pytest_report_header(config):
    from gpt2_numba.gpu.backend import SIMULATING, device_name, gpu_available

    if not gpu_available():
        return "kernels: not tested; there is no GPU, and NUMBA_ENABLE_CUDASIM is set to 0"
    return f"kernels: in {device_name()}, at small sizes only" if SIMULATING else f"kernels: on the GPU, {device_name()}"
