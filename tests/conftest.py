"""Where the kernels of the tests run: on the GPU, or in Numba's simulator where there is none. Numba must be told before it is imported."""

from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()


def pytest_report_header(config):
    from gpt2_numba.gpu.backend import SIMULATING, device_name, gpu_available

    if not gpu_available():
        return "kernels: not tested; there is no GPU, and NUMBA_ENABLE_CUDASIM is set to 0"
    return f"kernels: in {device_name()}, at small sizes only" if SIMULATING else f"kernels: on the GPU, {device_name()}"
