"""One allocation for everything that a model needs, made before the first step. After that nothing is allocated.

First all arrays are planned (`add`), which costs nothing and gives the total size; then `allocate` allocates the memory once, on the host
or on the GPU, and returns the arrays as views of it.

With red zones (gpu/guards.py) there is a gap before each array, and after the last. Gaps and arrays are then filled with a pattern.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import cuda

from gpt2_numba.cpu_threads import ONE_PASS, in_pieces
from gpt2_numba.gpu.backend import SIMULATING, compute_stream, gpu_available
from gpt2_numba.gpu.red_zones import RED_ZONE, fill
from gpt2_numba.integers import round_up

ALIGNMENT = 256  # bytes; what cudaMalloc guarantees and cuBLASLt prefers


@dataclass(frozen=True)
class Entry:
    """One planned array: its group in the table, its name, shape and type, its offset and the distance of its rows in bytes."""

    group: str
    name: str
    shape: tuple
    dtype: np.dtype
    offset: int
    pitch: int = 0  # 0: the rows follow each other without a gap

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self):
        """[(row or None, offset, bytes)] of what is contiguous: the rows if there are gaps between them."""
        if not self.pitch:
            return [(None, self.offset, self.nbytes)]
        return [(row, self.offset + row * self.pitch, self.nbytes // self.shape[0]) for row in range(self.shape[0])]

    def view(self, memory):
        """The array, in the arena's memory."""
        if not self.pitch:
            return memory[self.offset : self.offset + self.nbytes].view(self.dtype).reshape(self.shape)
        rows, columns = self.shape
        padded = memory[self.offset : self.offset + rows * self.pitch].view(self.dtype).reshape((rows, self.pitch // self.dtype.itemsize))
        return padded[:, :columns]


class Arena:
    """Named arrays in one block of memory. Groups are the rows of the printed table."""

    def __init__(self, red_zones=False):
        self.entries = {}
        self._gap = RED_ZONE if red_zones else 0
        self.nbytes = self._gap
        self.memory = None  # one array of bytes, once it is allocated

    def add(self, group, name, shape, dtype, apart=False):
        """Plan an array. apart: of two dimensions, whose rows are arrays of their own. Raises KeyError if the name is taken."""
        if name in self.entries:
            raise KeyError(f"the arena already has an array named {name}")
        shape, dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        pitch = round_up(shape[1] * dtype.itemsize, ALIGNMENT) + self._gap if apart and self._gap else 0
        self.entries[name] = entry = Entry(group, name, shape, dtype, self.nbytes, pitch)
        self.nbytes += shape[0] * pitch if pitch else round_up(entry.nbytes, ALIGNMENT) + self._gap

    def allocate(self, on_gpu):
        """Allocate the memory. Returns a dictionary name -> array; the contents are undefined, with red zones the pattern."""
        self.memory = cuda.device_array(self.nbytes, np.uint8) if on_gpu else np.empty(self.nbytes, np.uint8)
        if self._gap:
            fill(self.memory)
        return {name: entry.view(self.memory) for name, entry in self.entries.items()}

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
    if isinstance(array, np.ndarray):
        # as bytes, for which NumPy calls the C library's memset, the fastest way
        in_pieces(lambda rows: rows.fill(0), (array.view(np.uint8),), piece=ONE_PASS)
    elif SIMULATING:
        array[:] = 0
    else:
        from numba.cuda.cudadrv.driver import device_memset

        device_memset(array, 0, array.nbytes, stream=compute_stream())


def free_gpu_bytes():
    """Bytes that can still be allocated on the GPU; infinity in the simulator and without a GPU."""
    if SIMULATING or not gpu_available():
        return math.inf
    return cuda.current_context().get_memory_info().free
