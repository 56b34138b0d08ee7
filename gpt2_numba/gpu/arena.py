"""One allocation for everything that a model needs, made before the first step. After that nothing is allocated.

First all arrays are planned (`add`), which costs nothing and gives the total size; then `allocate` allocates the memory once, on the host
or on the GPU, and returns the arrays as views of it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, gpu_available
from gpt2_numba.integers import round_up

ALIGNMENT = 256  # bytes; what cudaMalloc guarantees and cuBLASLt prefers


@dataclass(frozen=True)
class Entry:
    """One planned array: its group in the table, its name, shape and type, and its offset in bytes."""

    group: str
    name: str
    shape: tuple
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize


class Arena:
    """Named arrays in one block of memory. Groups are the rows of the printed table."""

    def __init__(self):
        self.entries = {}
        self.nbytes = 0

    def add(self, group, name, shape, dtype):
        """Plan an array. Raises KeyError if the name is taken."""
        if name in self.entries:
            raise KeyError(f"the arena already has an array named {name}")
        entry = Entry(group, name, tuple(int(n) for n in shape), np.dtype(dtype), self.nbytes)
        self.entries[name] = entry
        self.nbytes += round_up(entry.nbytes, ALIGNMENT)

    def allocate(self, on_gpu):
        """Allocate the memory. Returns a dictionary name -> array; the contents are undefined."""
        memory = cuda.device_array(self.nbytes, np.uint8) if on_gpu else np.empty(self.nbytes, np.uint8)
        return {e.name: memory[e.offset : e.offset + e.nbytes].view(e.dtype).reshape(e.shape) for e in self.entries.values()}

    def groups(self):
        """Bytes per group, in the order of planning."""
        totals = {}
        for entry in self.entries.values():
            totals[entry.group] = totals.get(entry.group, 0) + entry.nbytes
        return totals

    def table(self):
        """The groups and their sizes as text, one line each."""
        lines = [f"  {group:<24}{size / 2**20:12,.1f} MiB" for group, size in self.groups().items()]
        return "\n".join([*lines, f"  {'all':<24}{self.nbytes / 2**20:12,.1f} MiB"])


def zero(array):
    """Set every byte of a host or device array to zero."""
    if isinstance(array, np.ndarray) or SIMULATING:
        array[:] = 0
    else:
        from numba.cuda.cudadrv.driver import device_memset

        device_memset(array, 0, array.nbytes, stream=compute_stream())


def free_gpu_bytes():
    """Bytes that can still be allocated on the GPU; infinity in the simulator and without a GPU."""
    if SIMULATING or not gpu_available():
        return math.inf
    return cuda.current_context().get_memory_info().free
