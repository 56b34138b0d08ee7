"""Is there a working NVIDIA GPU? This asks the driver, not Numba, since the simulator must be selected before Numba is imported."""

import ctypes
import os
import sys


def count_gpus():
    """The number of GPUs that the NVIDIA driver offers to this process; 0 without a driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def simulate_without_gpu():
    """Select Numba's simulator if there is no GPU, unless the environment already sets it. Call before Numba is imported."""
    if "NUMBA_ENABLE_CUDASIM" not in os.environ and count_gpus() == 0:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
