"""One allocation for everything a model needs, made before the first step. Afterwards nothing is allocated any more.

First all arrays are named (`add`), which costs nothing and tells how much memory they take together; then `allocate` asks for
the memory once, on the host or on the GPU, and hands out the arrays as views of it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, gpu_available

ALIGNMENT = 256  # bytes; what cudaMalloc gives, and cuBLASLt likes best


@dataclass(frozen=True)
class Entry:
    """One planned array: its group in the table, its name, and where it begins (bytes)."""

    group: str
    name: str
    shape: tuple
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize


class Arena:
    """Named arrays in one piece of memory. Groups are for the table that is printed."""

    def __init__(self):
        self.entries = {}
        self.nbytes = 0

    def add(self, group, name, shape, dtype):
        """Plan an array. Raises KeyError if the name is taken."""
        if name in self.entries:
            raise KeyError(f"the arena has an array named {name} already")
        entry = Entry(group, name, tuple(int(n) for n in shape), np.dtype(dtype), self.nbytes)
        self.entries[name] = entry
        self.nbytes += -(-entry.nbytes // ALIGNMENT) * ALIGNMENT

    def allocate(self, on_gpu):
        """Get the memory. Returns a dictionary from names to arrays, contents undefined."""
        memory = cuda.device_array(self.nbytes, np.uint8) if on_gpu else np.empty(self.nbytes, np.uint8)
        return {e.name: memory[e.offset : e.offset + e.nbytes].view(e.dtype).reshape(e.shape) for e in self.entries.values()}

    def groups(self):
        """Bytes by group, in the order of planning."""
        totals = {}
        for entry in self.entries.values():
            totals[entry.group] = totals.get(entry.group, 0) + entry.nbytes
        return totals

    def table(self):
        """The groups and their sizes as text, a line each."""
        lines = [f"  {group:<24}{size / 2**20:12,.1f} MiB" for group, size in self.groups().items()]
        return "\n".join([*lines, f"  {'all':<24}{self.nbytes / 2**20:12,.1f} MiB"])


def zero(array):
    """Set every byte of an array to zero, on either side."""
    if isinstance(array, np.ndarray) or SIMULATING:
        array[:] = 0
    else:
        from numba.cuda.cudadrv.driver import device_memset

        device_memset(array, 0, array.nbytes, stream=compute_stream())


def free_gpu_bytes():
    """Bytes that can still be allocated on the GPU; infinity in the simulator and where there is no GPU."""
    if SIMULATING or not gpu_available():
        return math.inf
    return cuda.current_context().get_memory_info().free
