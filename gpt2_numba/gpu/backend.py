"""Where arrays live and where kernels run: a real GPU, Numba's simulator, or nowhere (then NumPy does the work).

Numba's simulator runs `@cuda.jit` kernels as plain Python, one operating-system thread for each CUDA thread. It is selected by
NUMBA_ENABLE_CUDASIM=1 in the environment before Numba is imported. `SIMULATING` is True in a process that uses it.

A tensor is stored as float32, or as bfloat16 held in uint16 (its 16 bits), since NumPy has no bfloat16 of its own.
"""

import functools

import ml_dtypes
import numpy as np
from numba import config, cuda

from gpt2_numba.errors import UserError
from gpt2_numba.gpu import kernel_cache

SIMULATING = bool(config.ENABLE_CUDASIM)
if not SIMULATING:
    kernel_cache.install()

FLOAT32 = np.dtype(np.float32)
BFLOAT16_BITS = np.dtype(np.uint16)


@functools.cache
def gpu_available():
    """True if kernels can run: on a GPU with a working driver, or in the simulator."""
    return SIMULATING or cuda.is_available()


def require_gpu():
    """Raise UserError if kernels cannot run."""
    if not gpu_available():
        raise UserError(
            "a GPU was requested, but no working one was found. Use --device cpu, or set NUMBA_ENABLE_CUDASIM=1 to run "
            "the kernels in Numba's simulator (slow)"
        )


def on_host(array):
    """True for a NumPy array (then the reference runs), False for a device array (then the kernel runs)."""
    return isinstance(array, np.ndarray)


@functools.cache
def compute_stream():
    """The one stream on which all kernels, matmuls and copies of this process run, in order. 0 in the simulator."""
    return 0 if SIMULATING else cuda.stream()


def synchronize():
    """Wait until the GPU has finished all queued work."""
    if not SIMULATING:
        compute_stream().synchronize()


def device_pointer(array):
    """Address of a device array's first byte, as an int (for libraries such as cuBLASLt)."""
    return int(array.device_ctypes_pointer.value)


def bfloat16_bits(values):
    """Round float32 values to the nearest bfloat16 (ties to even); return the bits as uint16, same shape."""
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def bfloat16_values(bits):
    """The float32 values of bfloat16 bits (uint16), exactly."""
    return np.asarray(bits).view(ml_dtypes.bfloat16).astype(np.float32)


def to_storage(values, dtype):
    """float values as an array of the storage type `dtype`: float32, or uint16 holding bfloat16."""
    return bfloat16_bits(values) if dtype == BFLOAT16_BITS else np.ascontiguousarray(values, dtype)


def copy_to_device(device_array, values):
    """Write host `values` (float, or the array's own integer type) into a device array of the same shape, converting."""
    is_bfloat16 = device_array.dtype == BFLOAT16_BITS and np.asarray(values).dtype != BFLOAT16_BITS
    host = bfloat16_bits(values) if is_bfloat16 else np.ascontiguousarray(values, device_array.dtype)
    device_array.copy_to_device(host, stream=compute_stream())


def copy_to_host(device_array):
    """A device array's contents as a NumPy array: bfloat16 converted to float32, other types unchanged. Waits for the GPU."""
    host = device_array.copy_to_host(stream=compute_stream())
    synchronize()
    return bfloat16_values(host) if host.dtype == BFLOAT16_BITS else host


def to_device(values, dtype=None):
    """A new device array with the given host values, converted to the storage type `dtype` (default: the values' own)."""
    values = np.asarray(values)
    device_array = cuda.device_array(values.shape, values.dtype if dtype is None else dtype)
    copy_to_device(device_array, values)
    return device_array


def real_gpu():
    """True if kernels run on a physical GPU, not in the simulator."""
    return not SIMULATING and gpu_available()


def bfloat16_supported():
    """True if the kernels' bfloat16 instructions exist: on compute capability 8.0 (Ampere) and later, and in the simulator."""
    return SIMULATING or (gpu_available() and tuple(cuda.get_current_device().compute_capability) >= (8, 0))


def float8_supported():
    """True if the kernels' conversions to eight bits exist, and cuBLASLt's products: on compute capability 8.9 and later, in the simulator."""
    return SIMULATING or (gpu_available() and tuple(cuda.get_current_device().compute_capability) >= (8, 9))


def device_properties():
    """(compute capability, multiprocessors, highest clock in Hz) of a real GPU."""
    device = cuda.get_current_device()
    return tuple(device.compute_capability), device.MULTIPROCESSOR_COUNT, device.CLOCK_RATE * 1000


def device_name():
    """The GPU's name as its driver reports it, or the simulator's."""
    if SIMULATING:
        return "Numba's CUDA simulator"
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)
