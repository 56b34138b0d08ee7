"""A GPU of which only the description is there: launchers run on it as on a real one, and nothing happens.

    pretend(describe())          describe() on the machine's GPU, pretend(...) in another process, which never touches that GPU
    with noted_launches() as needed:
        model.forward(inputs) ...
    needed                       {(kernel, argument types): None}, in the order of the first launch

Arrays have addresses but no memory, copies copy nothing, library calls are left out, and a launch is only noted. So the very code that
trains says which kernels a training will launch, for which types. The compiler needs the GPU's compute capability and nothing else of it,
so this process can also compile them, to the same files of the kernel cache, without a context on the GPU.

The replacements hold for the rest of the process: it is good for nothing else afterwards.
"""

import contextlib
import ctypes
import functools
import math
from types import SimpleNamespace

import numpy as np
from numba import cuda

from gpt2_numba.gpu import backend, graph, launches, shared_memory, staging

ATTRIBUTES = "name", "MULTIPROCESSOR_COUNT", "CLOCK_RATE", "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"
FIRST_ADDRESS = 1 << 40  # a multiple of every alignment that a launcher asks for


def describe():
    """The GPU in use, as a dictionary for `pretend`."""
    from numba.cuda.cudadrv.driver import driver

    device = cuda.get_current_device()
    described = {name: getattr(device, name) for name in ATTRIBUTES}
    return described | {"compute_capability": tuple(device.compute_capability), "driver": driver.get_version()}


def pretend(description):
    """From now on this process has the described GPU, instead of any real one. Call it before the GPU is used or asked for."""
    from numba.cuda import codegen, dispatcher
    from numba.cuda.cudadrv import devicearray, devices
    from numba.cuda.cudadrv import driver as driver_module

    device = SimpleNamespace(**description)
    capability = device.compute_capability
    # What the compiler asks for. The last one stops at machine code, instead of loading it.
    dispatcher.get_current_device = cuda.get_current_device = lambda: device
    codegen.CUDACodeLibrary._ensure_cc = lambda library, cc: cc or (*capability, "a" if capability >= (9, 0) else "")  # as Numba's own
    driver_module.Driver.get_version = lambda driver: device.driver
    dispatcher._Kernel.bind = lambda kernel: kernel._codelibrary.get_cubin()

    # What a model asks for.
    cuda.is_available = lambda: True
    backend.gpu_available.cache_clear()
    context = SimpleNamespace(device=device, get_memory_info=lambda: SimpleNamespace(free=math.inf))
    cuda.current_context = devices.get_context = lambda: context
    devices._runtime.ensure_context = contextlib.nullcontext  # which slices of arrays ask for
    cuda.stream = cuda.event = lambda **options: _Nothing()
    cuda.synchronize = lambda: None
    cuda.device_array, cuda.pinned_array = _device_array, np.zeros
    driver_module.device_memset = lambda *arguments, **options: None
    devicearray.DeviceNDArray.copy_to_device = lambda array, values, stream=0: None
    devicearray.DeviceNDArray.copy_to_host = _zeros
    staging.driver_call = graph.driver_call = lambda *arguments: None


@contextlib.contextmanager
def noted_launches():
    """A context in which launches are only noted: in the dictionary that it yields, (kernel, types of its arguments) -> None."""
    from numba.cuda.dispatcher import CUDADispatcher

    needed = {}

    def launcher(kernel, configuration):  # kernel[blocks, threads, stream, shared bytes]
        return lambda *arguments: needed.setdefault((kernel, tuple(map(kernel.typeof_pyval, arguments))))

    CUDADispatcher.__getitem__ = launcher
    shared_memory.raise_shared_memory_limit = lambda kernel, nbytes, arguments: None
    with launches.observed_by(lambda name, arguments, launch: None):  # library calls, which an observer has to make: this one does not
        yield needed


class _Nothing:
    """A stream or an event, whatever is asked of it."""

    def __int__(self):
        return 0

    def synchronize(self):
        pass

    record = wait = lambda self, stream=0: None


class _Address:
    """Device memory without the memory: numba.cuda's MemoryPointer, as far as arrays and their views use it."""

    __cuda_memory__ = True

    def __init__(self, address, size):
        self.address, self.size = address, size

    @property
    def device_ctypes_pointer(self):
        return ctypes.c_void_p(self.address)

    def view(self, start, stop=None):
        return _Address(self.address + start, (self.size if stop is None else stop) - start)


@functools.wraps(cuda.device_array)
def _device_array(shape, dtype=np.float64, **_):
    from numba.cuda.cudadrv.devicearray import DeviceNDArray

    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    strides = [dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return DeviceNDArray(shape, tuple(strides), dtype, gpu_data=_Address(FIRST_ADDRESS, math.prod(shape) * dtype.itemsize))


def _zeros(array, target=None, stream=0):
    if target is None:
        return np.zeros(array.shape, array.dtype)
    target[:] = 0
    return target
