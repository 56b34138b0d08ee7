"""Finds races in kernels that run in the simulator.

A race: two threads touch the same number in memory, at least one of them writes, and nothing says which of them comes first.

    values[i] = x                   # every thread writes a number of its own,
    cuda.syncthreads()              # waits until all have done so,
    y = values[(i + 1) % 64]        # and reads its neighbour's

Without the barrier in the middle a thread may find what its neighbour has written, or what was there before. Such a kernel can be right a
thousand times and wrong on the next GPU, and a test of its results need not notice. Here it is an error, whatever the results:

    with race_detector():
        kernel[blocks, threads](values)

    RaceError: values[1]: thread 0 read it (kernels.py:3), thread 1 wrote it (kernels.py:1), with no barrier or sync_warp between

In the simulator threads take turns, so what matters is not who came first but whether that was certain. Every thread counts the barriers
that it has passed. Of two accesses to one place the earlier comes first on a GPU, too (`in_order`), if

    both are of the same thread, or
    the later one's thread has passed more barriers: one of them, where both threads met, stands between, or
    both threads are of one warp, and the later one's has passed more `sync_warp`.

Shuffles and products on tensor cores also make the threads of a warp wait for each other, but promise nothing about memory. Between blocks
there is no order at all: what one block of a launch writes, no other may touch.

For each *cell*, four bytes (less in arrays of smaller numbers), the last write is remembered, and what every thread has read since. That
suffices: the last write was in order with all that happened to the cell before, or an error would have been raised, so an access that is
in order with the last write is in order with all before it.

Errors besides races: shared memory is read that no thread of the block has written; an index is out of bounds, or negative (NumPy would
count from the end of the array, a GPU goes to what lies before it).

An asynchronous copy is a write when it is asked for, and again when its thread waits for it, since in between it may happen at any time.
Tensor cores that multiply tiles in shared memory (wgmma.py) are like one more thread: they may read what was written before a
`fence_async` of the writing thread that was before a barrier. Atomic operations do not race with each other, only with other accesses.
"""

import linecache
import os
import re
import sys
import threading
from contextlib import contextmanager

import numpy as np
from numba.cuda.simulator import kernel as simulator_kernel
from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray
from numba.cuda.simulator.kernelapi import FakeCUDAModule

from gpt2_numba.gpu.simulator import WARP_SIZE, CooperativeBlockManager, install

CELL_BYTES = 4
READ, WRITE, ATOMIC, MULTIPLY = "read", "wrote", "atomically changed", "multiplied"


class RaceError(RuntimeError):
    """What a kernel computes is not certain. The message names the array, the index, both threads and their lines of source."""


@contextmanager
def race_detector():
    """While it is on, a launch in the simulator raises RaceError for a race and IndexError for an index out of bounds. A few times slower."""
    install()
    before = simulator_kernel.BlockManager, simulator_kernel.FakeCUDAModule
    simulator_kernel.BlockManager, simulator_kernel.FakeCUDAModule = WatchedBlock, WatchedCuda
    try:
        yield
    finally:
        simulator_kernel.BlockManager, simulator_kernel.FakeCUDAModule = before


# --------------------------------------------------------------------------------------------------------- what a race is


class Access:
    """That the current thread touches memory: in which line, and how many barriers it has passed before."""

    __slots__ = ("what", "code", "instruction", "thread", "block", "number", "warp", "barriers", "warp_barriers", "fences")

    def __init__(self, what):
        frame, thread = kernel_frame(), threading.current_thread()
        self.what, self.code, self.instruction = what, frame.f_code, frame.f_lasti
        self.thread, self.block, self.number, self.warp = thread, thread.blockIdx, thread.thread_id, thread.thread_id // WARP_SIZE
        self.barriers, self.warp_barriers, self.fences = thread.barriers, thread.warp_barriers, len(thread.fences)
        if what == MULTIPLY:  # no thread's own doing
            self.number = self.warp = None

    def is_fenced(self, barriers):
        """Whether the thread has called fence_async after this access, and before the last barrier of `barriers`."""
        since = self.thread.fences[self.fences :]
        return bool(since) and since[0] < barriers


def in_order(earlier, later):
    """Whether the earlier of two accesses comes first for certain, and not only in this run."""
    if earlier.block is not later.block:
        return False
    if later.what == MULTIPLY:
        return earlier.is_fenced(later.barriers)
    if earlier.number == later.number or earlier.barriers < later.barriers:
        return True
    return earlier.warp == later.warp and earlier.warp_barriers < later.warp_barriers


class Cell:
    """The last write to a few bytes of memory, and who has touched them since."""

    __slots__ = ("write", "reads", "atomics")

    def __init__(self):
        self.write, self.reads, self.atomics = None, {}, {}

    def rival_of(self, access):
        """An earlier access that races with this one, or None."""
        if self.write is not None and not in_order(self.write, access):
            return self.write
        if access.what in (WRITE, ATOMIC):
            for earlier in self.reads.values():
                if not in_order(earlier, access):
                    return earlier
        if access.what != ATOMIC:
            for earlier in self.atomics.values():
                if not in_order(earlier, access):
                    return earlier
        return None

    def remember(self, access):
        if access.what == WRITE:
            self.write = access
            self.reads.clear()
            self.atomics.clear()
        else:
            of_its_kind = self.atomics if access.what == ATOMIC else self.reads
            of_its_kind[access.block, access.number] = access


class Memory:
    """An array in global or shared memory, and the cells it consists of, by address."""

    def __init__(self, name, array, cells, is_shared):
        self.name, self.array, self.cells, self.is_shared = name, array, cells, is_shared
        self.cell_bytes = min(CELL_BYTES, array.itemsize)

    def note(self, what, start, nbytes):
        """The current thread touches so many bytes from address `start` on."""
        access, cells = Access(what), self.cells
        for address in range(start - start % self.cell_bytes, start + nbytes, self.cell_bytes):
            cell = cells.get(address)
            if cell is None:
                if self.is_shared and what != WRITE:
                    raise RaceError(f"{self.element(address)}: {deed(access)}, but no thread of its block has written it before")
                cell = cells[address] = Cell()
            rival = cell.rival_of(access)
            if rival is not None:
                raise RaceError(f"{self.element(address)}: {race(rival, access)}")
            cell.remember(access)

    def element(self, address):
        """Name and index of what stands at an address."""
        index, rest = [0] * self.array.ndim, address - address_of(self.array)
        for axis in sorted(range(self.array.ndim), key=lambda axis: -self.array.strides[axis]):
            index[axis], rest = divmod(rest, self.array.strides[axis])
        return f"{self.name}[{', '.join(map(str, index))}]"


class DynamicMemory(Memory):
    """A block's dynamic shared memory. A kernel may see it as arrays of several types, so its cells have four bytes in any case."""

    def __init__(self, array):
        super().__init__("dynamic shared memory", array, {}, is_shared=True)
        self.cell_bytes = CELL_BYTES

    def element(self, address):
        return f"{self.name}, byte {address - address_of(self.array)}"


# ---------------------------------------------------------------------------- arrays that notice what is done to them


class CheckedArray(np.ndarray):
    """An array whose indices are checked. That is enough for cuda.local.array, which no other thread sees."""

    def __getitem__(self, index):
        self.is_element(index, READ)
        return super().__getitem__(index)

    def __setitem__(self, index, value):
        self.is_element(index, WRITE)
        super().__setitem__(index, value)

    def is_element(self, index, what):
        """Whether the index is that of an element, and not of a part of the array. Raises IndexError for a number out of bounds."""
        index, numbers = index if type(index) is tuple else (index,), 0
        for number, length in zip(index, self.shape):
            if isinstance(number, (int, np.integer)):
                numbers += 1
                if not 0 <= number < length:
                    element = f"{self.name()}[{', '.join(map(str, index))}]"
                    raise IndexError(f"{element}: {deed(Access(what))}, out of bounds for shape {self.shape}")
        return numbers == self.ndim

    def name(self):
        """The variable that the kernel has for this array."""
        return next((name for name, value in kernel_frame().f_locals.items() if value is self), "local array")


class WatchedArray(CheckedArray):
    """An array in global or shared memory, or a part of one: its memory notes when elements are read and written.

    A part that is read as a whole is not noticed, since NumPy does that: a twin has to say so (simulator.elements_read).
    """

    def __array_finalize__(self, whole):
        self.memory = getattr(whole, "memory", None)
        self.address = None  # asked for when it is needed

    def __getitem__(self, index):
        if self.is_element(index, READ):
            self.note(READ, index)
        return np.ndarray.__getitem__(self, index)

    def __setitem__(self, index, value):
        if self.is_element(index, WRITE):
            self.note(WRITE, index)
        else:
            np.ndarray.__getitem__(self, index).note_all(WRITE)
        np.ndarray.__setitem__(self, index, value)

    def __array_ufunc__(self, ufunc, method, *arrays, **options):
        """What is computed from elements is no memory: an ordinary array."""
        return getattr(ufunc, method)(*(np.asarray(array) if isinstance(array, WatchedArray) else array for array in arrays), **options)

    def note(self, what, index):
        """One element is touched."""
        if self.address is None:
            self.address = address_of(self)
        index = index if type(index) is tuple else (index,)
        offset = sum(int(number) * stride for number, stride in zip(index, self.strides))
        self.memory.note(what, self.address + offset, self.itemsize)

    def note_all(self, what):
        """All elements are touched."""
        if self.flags.c_contiguous:
            self.memory.note(what, address_of(self), self.nbytes)
        else:
            for index in np.ndindex(self.shape):
                self.note(what, index)

    def elements_read(self, by_tensor_cores):
        """All elements, as an ordinary array, for a twin that reads them at once."""
        self.note_all(MULTIPLY if by_tensor_cores else READ)
        return np.asarray(self)

    def name(self):
        return self.memory.name


def watched(array, memory):
    """An ordinary array as one that notices."""
    view = array.view(WatchedArray)
    view.memory = memory
    return view


def address_of(array):
    """Address of the first element."""
    return array.__array_interface__["data"][0]


# ------------------------------------------------------------------------ what takes the place of parts of the simulator


class WatchedBlock(CooperativeBlockManager):
    """A block whose kernel gets watched arrays."""

    def run(self, grid_point, *arguments):
        self.shared_arrays = {}  # line of source -> array, and None -> the dynamic memory
        global_cells, names = simulator_kernel._get_kernel_context().global_cells, self.kernel.__code__.co_varnames
        super().run(grid_point, *(_watched_argument(*named, global_cells) for named in zip(names, arguments)))


def _watched_argument(name, argument, cells):
    array = argument._item._ary if isinstance(argument, FakeWithinKernelCUDAArray) else None
    if not isinstance(array, np.ndarray) or array.dtype.names:
        return argument  # a number, or records
    return watched(array, Memory(name, array, cells, is_shared=False))


class WatchedCuda(FakeCUDAModule):
    """What `cuda` is inside of a kernel, during one launch."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.global_cells = {}  # of all arguments together, since two may be the same memory
        self._shared = WatchedShared(self._shared, self._local)
        self._local, self._atomic = WatchedLocal(self._local), WatchedAtomic(self._atomic)


class WatchedLocal:
    """cuda.local."""

    def __init__(self, local):
        self.local = local

    def array(self, shape, dtype):
        return self.local.array(shape, dtype).view(CheckedArray)


class WatchedShared:
    """cuda.shared. Each block has arrays of its own, one for each line of source; nothing has been written to them."""

    def __init__(self, shared, local):
        self.shared, self.local = shared, local

    def array(self, shape, dtype):
        arrays, frame = threading.current_thread().block.shared_arrays, kernel_frame()
        if shape == 0:
            if None not in arrays:
                arrays[None] = DynamicMemory(self.shared.array(0, np.dtype(np.uint8)))
            return watched(self.shared.array(0, dtype), arrays[None])
        line = frame.f_code.co_filename, frame.f_lineno
        if line not in arrays:
            array = self.local.array(shape, dtype)
            arrays[line] = watched(array, Memory(_variable_of_line(*line), array, {}, is_shared=True))
        return arrays[line]


class WatchedAtomic:
    """cuda.atomic."""

    def __init__(self, atomic):
        self.atomic = atomic

    def __getattr__(self, name):
        operation = getattr(self.atomic, name)

        def noted_operation(array, *arguments):
            index = (0,) * array.ndim if name == "compare_and_swap" else arguments[0]
            array.is_element(index, ATOMIC)
            array.note(ATOMIC, index)
            return operation(np.asarray(array), *arguments)

        return noted_operation


# ------------------------------------------------------------------------------------------------------- who, what and where

# The twins, the simulator and this module: the lines that a message names are those of the kernel.
_NO_KERNELS = {f"gpt2_numba.gpu.{name}" for name in ("memory_access", "shared_memory", "simulator", "tensor_cores", "wgmma")}
_NO_KERNELS |= {__name__, "numba.cuda.simulator.kernelapi"}


def kernel_frame(frame=None):
    """The innermost frame of a kernel or a device function, from `frame` (by default the caller's) outwards."""
    frame = frame or sys._getframe(1)
    while frame.f_globals["__name__"] in _NO_KERNELS:
        frame = frame.f_back
    return frame


def _variable_of_line(filename, line):
    """The variable that a line of source assigns to."""
    assignment = re.match(r"\s*(\w+)\s*=", linecache.getline(filename, line))
    return assignment[1] if assignment else "shared array"


def race(earlier, later):
    """Both accesses, and what is missing between them."""
    if earlier.block is not later.block:
        return f"{deed(earlier, True)}, {deed(later, True)}, and blocks run in any order"
    if later.what == MULTIPLY:
        missing = "fence_async and barrier"
    elif earlier.warp == later.warp:
        missing = "barrier or sync_warp"
    else:
        missing = "barrier"
    return f"{deed(earlier)}, {deed(later)}, with no {missing} between"


def deed(access, with_block=False):
    """Who does what, in which line."""
    who = "tensor cores" if access.what == MULTIPLY else f"thread {access.number}"
    if with_block:
        x, y, z = access.block
        who += f" of block {(x, y, z) if y or z else x}"
    line = next(line for start, stop, line in access.code.co_lines() if start <= access.instruction < stop)
    return f"{who} {access.what} it ({os.path.basename(access.code.co_filename)}:{line})"
