"""Finds races in kernels that run in the simulator.

A race: two threads access the same memory, at least one of them writes, and nothing determines which comes first.

    values[i] = x                   # every thread writes its own element,
    cuda.syncthreads()              # waits until all have done so,
    y = values[(i + 1) % 64]        # and reads its neighbour's

Without the barrier a thread may read what its neighbour has written, or the value from before. A kernel like that can be right a thousand
times and wrong on the next GPU, and a test of its results need not notice. Here it is an error, whatever the results:

    with race_detector():
        kernel[blocks, threads](values)

    RaceError: values[1]: thread 0 read it (kernels.py:3), thread 1 wrote it (kernels.py:1), with no barrier or sync_warp between

In the simulator threads take turns, so the question is not which access came first but whether that was certain. Every thread counts the
barriers that it has passed. Of two accesses to the same memory, the earlier also comes first on a GPU (`in_order`) if

    both are by the same thread, or
    the later one's thread has passed more barriers: at one of them, after the earlier access, the threads met, or
    both threads are in the same warp, and the later one's has passed more `sync_warp`, or
    both threads are in the same team, and the later one's has passed more `sync_team`.

Shuffles and products on tensor cores also make the threads of a warp wait for each other, but guarantee nothing about memory. Blocks are
not ordered at all: what one block of a launch writes, no other block may access.

For each *cell* of four bytes (fewer in arrays of smaller elements) the last write is recorded, and each thread's reads since. That is
enough: the last write was in order with all earlier accesses to the cell, or an error would have been raised, so an access that is in order
with the last write is in order with all before it.

Three more errors: reading shared memory that no thread of the block has written; an index that is out of bounds or negative (NumPy and
Numba count from the end of the array, which in a kernel is nearly always a mistake); and a barrier that not all threads of the block reach,
because some return before it or wait at another (the kernel may hang on a GPU, or the threads that skip it race).

An asynchronous copy is a write when it starts, and again when its thread waits for it, since it may happen at any time in between. Tensor
cores that multiply tiles in shared memory (wgmma.py) are like an additional thread: they may read what was written before a `fence_async`
of the writing thread, followed by a barrier. Atomic operations race only with other accesses, not with each other.

`race_detector(SUBCLASS)` takes a subclass of WatchedCuda whose methods are called for every block and every access, to count or draw them.
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

from gpt2_numba.gpu.simulator import WARP_SIZE, CooperativeBlockManager, SimulatedThread, install

CELL_BYTES = 4
READ, WRITE, ATOMIC, MULTIPLY = "read", "wrote", "atomically changed", "multiplied"


class RaceError(RuntimeError):
    """The result of a kernel depends on timing. The message names the array, the index, both threads and their source lines."""


class BarrierError(RuntimeError):
    """The threads of a block do not all reach the same barrier. The message names two of them and the source line."""


@contextmanager
def race_detector(cuda_module=None):
    """A context in which launches in the simulator raise RaceError, BarrierError or, out of bounds, IndexError. A few times slower.

    cuda_module: called as cuda_module(grid, block, dynamic bytes) for each launch, returns a WatchedCuda. By default WatchedCuda itself.
    """
    install()
    before = simulator_kernel.BlockManager, simulator_kernel.FakeCUDAModule
    simulator_kernel.BlockManager, simulator_kernel.FakeCUDAModule = WatchedBlock, cuda_module or WatchedCuda
    try:
        yield
    finally:
        simulator_kernel.BlockManager, simulator_kernel.FakeCUDAModule = before


# --------------------------------------------------------------------------------------------------------- what a race is


class Access:
    """An access to memory by the current thread: its source line, and how many barriers the thread has passed before."""

    __slots__ = (
        "kind", "code", "instruction", "thread", "block", "thread_id", "warp", "barriers", "warp_barriers", "team_barriers", "fences"
    )  # fmt: skip

    def __init__(self, kind):
        frame, thread = kernel_frame(), threading.current_thread()
        self.kind, self.code, self.instruction = kind, frame.f_code, frame.f_lasti
        self.thread, self.block, self.thread_id, self.warp = thread, thread.blockIdx, thread.thread_id, thread.thread_id // WARP_SIZE
        self.barriers, self.warp_barriers, self.team_barriers = thread.barriers, thread.warp_barriers, thread.team_barriers
        self.fences = len(thread.fences)
        if kind == MULTIPLY:  # by the tensor cores, not by the thread
            self.thread_id = self.warp = None

    def is_fenced(self, barriers):
        """Whether the thread has called fence_async after this access and before the last of its first `barriers` barriers."""
        since = self.thread.fences[self.fences :]
        return bool(since) and since[0] < barriers


def in_order(earlier, later):
    """Whether the earlier of two accesses comes first in every run, not only in this one."""
    if earlier.block is not later.block:
        return False
    if later.kind == MULTIPLY:
        return earlier.is_fenced(later.barriers)
    if earlier.thread_id == later.thread_id or earlier.barriers < later.barriers:
        return True
    if earlier.warp == later.warp and earlier.warp_barriers < later.warp_barriers:
        return True
    return earlier.thread.team == later.thread.team and earlier.team_barriers < later.team_barriers


class Cell:
    """The last write to a few bytes of memory, and the accesses since."""

    __slots__ = ("write", "reads", "atomics")

    def __init__(self):
        self.write, self.reads, self.atomics = None, {}, {}

    def conflict_with(self, access):
        """An earlier access that races with this one, or None."""
        if self.write is not None and not in_order(self.write, access):
            return self.write
        if access.kind in (WRITE, ATOMIC):
            for earlier in self.reads.values():
                if not in_order(earlier, access):
                    return earlier
        if access.kind != ATOMIC:
            for earlier in self.atomics.values():
                if not in_order(earlier, access):
                    return earlier
        return None

    def record(self, access):
        if access.kind == WRITE:
            self.write = access
            self.reads.clear()
            self.atomics.clear()
        else:
            accesses = self.atomics if access.kind == ATOMIC else self.reads
            accesses[access.block, access.thread_id] = access


class Memory:
    """An array in global or shared memory, and its cells by address."""

    def __init__(self, name, array, cells, is_shared):
        self.name, self.array, self.cells, self.is_shared = name, array, cells, is_shared
        self.cell_bytes = min(CELL_BYTES, array.itemsize)

    def record(self, kind, start, nbytes):
        """Record that the current thread accesses `nbytes` bytes at address `start`. Raises RaceError for a race."""
        access, cells = Access(kind), self.cells
        simulator_kernel._get_kernel_context().observe(self, access, start, nbytes)
        for address in range(start - start % self.cell_bytes, start + nbytes, self.cell_bytes):
            cell = cells.get(address)
            if cell is None:
                if self.is_shared and kind != WRITE:
                    raise RaceError(
                        f"{self.element(address)}: {describe(access)} before any thread of its block has written it: is a barrier missing?"
                    )
                cell = cells[address] = Cell()
            earlier = cell.conflict_with(access)
            if earlier is not None:
                raise RaceError(f"{self.element(address)}: {describe_race(earlier, access)}")
            cell.record(access)

    def element(self, address):
        """Name and index of the element at an address."""
        index, rest = [0] * self.array.ndim, address - address_of(self.array)
        for axis in sorted(range(self.array.ndim), key=lambda axis: -self.array.strides[axis]):
            index[axis], rest = divmod(rest, self.array.strides[axis])
        return f"{self.name}[{', '.join(map(str, index))}]"


class DynamicMemory(Memory):
    """A block's dynamic shared memory. A kernel may use it as arrays of several types, so its cells always have four bytes."""

    def __init__(self, array):
        super().__init__("dynamic shared memory", array, {}, is_shared=True)
        self.cell_bytes = CELL_BYTES

    def element(self, address):
        return f"{self.name}, byte {address - address_of(self.array)}"


# ---------------------------------------------------------------------------- arrays that record accesses


class CheckedArray(np.ndarray):
    """An array whose indices are checked. That is enough for cuda.local.array, which no other thread can access."""

    def __getitem__(self, index):
        self.check_index(index, READ)
        return super().__getitem__(index)

    def __setitem__(self, index, value):
        self.check_index(index, WRITE)
        super().__setitem__(index, value)

    def check_index(self, index, kind):
        """Whether the index selects a single element, not a part of the array. Raises IndexError if it is out of bounds."""
        index, integers = index if type(index) is tuple else (index,), 0
        for i, length in zip(index, self.shape):
            if isinstance(i, (int, np.integer)):
                integers += 1
                if not 0 <= i < length:
                    element = f"{self.name()}[{', '.join(map(str, index))}]"
                    raise IndexError(f"{element}: {describe(Access(kind))}, out of bounds for shape {self.shape}")
        return integers == self.ndim

    def name(self):
        """The name of the kernel's variable for this array."""
        return next((name for name, value in kernel_frame().f_locals.items() if value is self), "local array")


class WatchedArray(CheckedArray):
    """An array in global or shared memory, or a part of one, which records reads and writes of elements.

    When NumPy reads a whole part, that is not recorded: a twin must call simulator.elements_read.
    """

    def __array_finalize__(self, whole):
        self.memory = getattr(whole, "memory", None)
        self.address = None  # computed when needed

    def __getitem__(self, index):
        if self.check_index(index, READ):
            self.record(READ, index)
        return np.ndarray.__getitem__(self, index)

    def __setitem__(self, index, value):
        if self.check_index(index, WRITE):
            self.record(WRITE, index)
        else:
            np.ndarray.__getitem__(self, index).record_all(WRITE)
        np.ndarray.__setitem__(self, index, value)

    def __array_ufunc__(self, ufunc, method, *arrays, **options):
        """Results of NumPy functions are not memory that threads share, so they are ordinary arrays."""
        return getattr(ufunc, method)(*(np.asarray(array) if isinstance(array, WatchedArray) else array for array in arrays), **options)

    def record(self, kind, index):
        """Record an access to one element."""
        if self.address is None:
            self.address = address_of(self)
        index = index if type(index) is tuple else (index,)
        offset = sum(int(i) * stride for i, stride in zip(index, self.strides))
        self.memory.record(kind, self.address + offset, self.itemsize)

    def record_all(self, kind):
        """Record an access to all elements."""
        if self.flags.c_contiguous:
            self.memory.record(kind, address_of(self), self.nbytes)
        else:
            for index in np.ndindex(self.shape):
                self.record(kind, index)

    def elements_read(self, by_tensor_cores):
        """All elements as an ordinary array, for a twin that reads them at once."""
        self.record_all(MULTIPLY if by_tensor_cores else READ)
        return np.asarray(self)

    def name(self):
        return self.memory.name


def watched(array, memory):
    """A view of an ordinary array that records accesses."""
    view = array.view(WatchedArray)
    view.memory = memory
    return view


def address_of(array):
    """Address of the first element."""
    return array.__array_interface__["data"][0]


# ----------------------------------------------------------------------------------- replacements of the simulator's parts


class WatchedBlock(CooperativeBlockManager):
    """A block whose kernel is passed watched arrays."""

    def run(self, grid_point, *arguments):
        self.shared_arrays = {}  # line of source -> array, and None -> the dynamic memory
        context, names = simulator_kernel._get_kernel_context(), self.kernel.__code__.co_varnames
        context.block_starts(self, arguments)
        super().run(grid_point, *(_watched_argument(*named, context.global_cells) for named in zip(names, arguments)))
        context.block_has_ended(self)

    def meet_in_block(self, thread, value, conclude):
        """A barrier: all threads of the block must reach it, through the same lines of kernel and device functions."""
        thread.barrier_lines = _lines_of_kernel(sys._getframe(1))
        returned = next((other for other in self.threads if other.finished), None)
        if returned is not None:
            raise BarrierError(_left_at_barrier(thread, returned))
        if self.at_barrier is not None:
            other = self.threads[next(iter(self.at_barrier.values))]
            if other.barrier_lines != thread.barrier_lines:
                raise BarrierError(
                    f"thread {other.thread_id} waits at a barrier ({_format_lines(other)}) while thread {thread.thread_id} waits at another "
                    f"({_format_lines(thread)}): all threads of a block must reach the same barrier"
                )
        return super().meet_in_block(thread, value, conclude)

    def thread_has_finished(self, thread, error):
        if error is None and self.at_barrier is not None:
            error = BarrierError(_left_at_barrier(self.threads[next(iter(self.at_barrier.values))], thread))
        super().thread_has_finished(thread, error)


def _lines_of_kernel(frame):
    """[(file, line), ...] of the kernel and device functions on the stack, innermost first."""
    lines = []
    while frame is not None and frame.f_code is not SimulatedThread.run.__code__:
        if frame.f_globals["__name__"] not in _NOT_KERNELS:
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return lines


def _format_lines(thread):
    return ", called at ".join(f"{os.path.basename(file)}:{line}" for file, line in thread.barrier_lines)


def _left_at_barrier(waiting, returned):
    return (
        f"thread {waiting.thread_id} waits at a barrier ({_format_lines(waiting)}), and thread {returned.thread_id} has returned without "
        "reaching it: all threads of a block must reach every barrier"
    )


def _watched_argument(name, argument, cells):
    array = argument._item._ary if isinstance(argument, FakeWithinKernelCUDAArray) else None
    if not isinstance(array, np.ndarray) or array.dtype.names:
        return argument  # a scalar, or records
    return watched(array, Memory(name, array, cells, is_shared=False))


class WatchedCuda(FakeCUDAModule):
    """The `cuda` module inside a kernel, for one launch. A subclass may override the three methods that do nothing here."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.global_cells = {}  # shared by all arguments, since two may be the same memory
        self._shared = WatchedShared(self._shared, self._local)
        self._local, self._atomic = WatchedLocal(self._local), WatchedAtomic(self._atomic)

    def block_starts(self, block, arguments):
        """Before a block's first thread runs. block: a WatchedBlock; arguments: those of the launch."""

    def block_has_ended(self, block):
        """After all threads of a block have returned."""

    def observe(self, memory, access, start, nbytes):
        """Before an Access to `nbytes` bytes of a Memory, at address `start`, is checked."""

    def __getattr__(self, name):
        hint = ": use warp_sum, warp_max or block_sum of gpu/reductions.py" if name.startswith("shfl") else ""
        raise AttributeError(f"cuda.{name} does not exist in Numba's simulator{hint}")


class WatchedLocal:
    """cuda.local."""

    def __init__(self, local):
        self.local = local

    def array(self, shape, dtype):
        return self.local.array(shape, dtype).view(CheckedArray)


class WatchedShared:
    """cuda.shared. Each block has its own arrays, one per source line, which start as not written."""

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

        def recorded_operation(array, *arguments):
            index = (0,) * array.ndim if name == "compare_and_swap" else arguments[0]
            array.check_index(index, ATOMIC)
            array.record(ATOMIC, index)
            return operation(np.asarray(array), *arguments)

        return recorded_operation


# ---------------------------------------------------------------------------------------------------------------- messages

# The twins, the simulator and this module: messages name the lines of the kernel that called them.
_NOT_KERNELS = {f"gpt2_numba.gpu.{name}" for name in ("launches", "memory_access", "shared_memory", "simulator", "tensor_cores", "wgmma")}
_NOT_KERNELS |= {__name__, "numba.cuda.simulator.kernelapi", "numba.cuda.simulator.kernel"}


def kernel_frame(frame=None):
    """The innermost frame of a kernel or device function, searched from `frame` (by default the caller's) outwards."""
    frame = frame or sys._getframe(1)
    while frame.f_globals["__name__"] in _NOT_KERNELS:
        frame = frame.f_back
    return frame


def _variable_of_line(filename, line):
    """The variable that a source line assigns to."""
    assignment = re.match(r"\s*(\w+)\s*=", linecache.getline(filename, line))
    return assignment[1] if assignment else "shared array"


def describe_race(earlier, later):
    """Both accesses, and what is missing between them."""
    if earlier.block is not later.block:
        return f"{describe(earlier, with_block=True)}, {describe(later, with_block=True)}, and blocks run in any order"
    if later.kind == MULTIPLY:
        missing = "fence_async and barrier"
    elif earlier.warp == later.warp:
        missing = "barrier or sync_warp"
    else:
        missing = "barrier"
    return f"{describe(earlier)}, {describe(later)}, with no {missing} between"


def describe(access, with_block=False):
    """Which thread has done what, in which line."""
    subject = "tensor cores" if access.kind == MULTIPLY else f"thread {access.thread_id}"
    if with_block:
        x, y, z = access.block
        subject += f" of block {(x, y, z) if y or z else x}"
    line = next(line for start, stop, line in access.code.co_lines() if start <= access.instruction < stop)
    return f"{subject} {access.kind} it ({os.path.basename(access.code.co_filename)}:{line})"
