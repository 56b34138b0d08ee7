"""Is there a working NVIDIA GPU? This asks the driver, not Numba, since the simulator must be selected before Numba is imported."""

import ctypes
import os
import sys


def _driver():
    """The NVIDIA driver's library, or None without one."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None


def driver_cuda_version():
    """The newest CUDA version that the driver serves, as in 13000 for 13.0; 0 without a driver."""
    driver, version = _driver(), ctypes.c_int()
    return version.value if driver and driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0


def count_gpus():
    """The number of GPUs that the NVIDIA driver offers to this process; 0 without a driver."""
    driver = _driver()
    if driver is None:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def simulate_without_gpu():
    """Select Numba's simulator if there is no GPU, unless the environment already sets it. Call before Numba is imported."""
    if "NUMBA_ENABLE_CUDASIM" not in os.environ and count_gpus() == 0:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
