"""A faster, stricter scheduler for Numba's simulator, and twins of the warp instructions, which the simulator lacks.

Numba's simulator runs each CUDA thread in an operating-system thread. These compete for Python's interpreter lock, watched by a polling
loop, though only one can run at a time anyway. So here they take turns: thread 0 runs until it must wait for others, at a barrier or a warp
instruction, then thread 1, and so on. The same threads run block after block. This is many times faster, is deterministic, and detects at
once when threads wait for others that never arrive.

`install()` replaces the simulator's `BlockManager`; the modules of gpu/ that have twins call it.
"""

import contextlib
import os
import threading
from collections import Counter, deque

import numpy as np

WARP_SIZE = 32


class _Abandoned(BaseException):
    """Raised in the waiting threads of a block when one of them has failed."""


class Meeting:
    """A point where threads wait for each other, each with a value. The last to arrive computes `result` from all values."""

    def __init__(self, what):
        self.what, self.values, self.result = what, {}, None


class SimulatedThread(threading.Thread):
    """One CUDA thread. Numba's fake `cuda` module takes indices and barriers from threading.current_thread()."""

    def __init__(self):
        super().__init__(daemon=True)
        self.turn = threading.Lock()  # held: not this thread's turn. A plain lock is several times faster than a Semaphore.
        self.turn.acquire()
        self.start()

    def begin(self, block, thread_id, block_index, thread_index):
        """Prepare to run one thread of a block."""
        self.block, self.thread_id, self.blockIdx, self.threadIdx = block, thread_id, block_index, thread_index
        self.started, self.finished, self.abandoned, self.waits_at = False, False, False, None
        self.copies = [[]]  # groups of asynchronous copies in flight, see shared_memory.py
        self.products = []  # products of the warpgroup in flight, see wgmma.py
        self.barriers = self.warp_barriers = self.team_barriers = 0  # passed so far; these and `fences` are for race_detector.py
        self.team = None  # its number, once the thread waits for its team
        self.fences = []  # for each fence_async so far, the number of barriers passed before it

    def run(self):
        # All on one processor: switching is twice as fast, and only one thread runs at a time anyway.
        if hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {allowed[os.getpid() % len(allowed)]})  # 0 is this thread
        while True:
            self.turn.acquire()
            self.started, error = True, None
            try:
                self.block.work()
            except BaseException as raised:  # the block raises it in the thread that launched the kernel
                error = raised
            self.finished = True
            self.block.thread_has_finished(self, error)

    def syncthreads(self):
        self.block.meet_in_block(self, None, lambda values: None)

    def sync_warp(self):
        self.block.meet_in_warp(self, None, lambda values: None)
        self.warp_barriers += 1

    def sync_team(self, team, threads):
        assert team == self.thread_id // threads, f"thread {self.thread_id} is not in team {team} of {threads} threads"
        self.team = team
        self.block.meet_in_warp(self, None, lambda values: None, size=threads, name="team")
        self.team_barriers += 1

    def syncthreads_count(self, value):
        return self.block.meet_in_block(self, value, lambda values: sum(bool(v) for v in values.values()))

    def syncthreads_and(self, value):
        return self.block.meet_in_block(self, value, lambda values: int(all(values.values())))

    def syncthreads_or(self, value):
        return self.block.meet_in_block(self, value, lambda values: int(any(values.values())))


_threads = []  # shared by all blocks of all kernels


class CooperativeBlockManager:
    """Runs the blocks of a kernel. Same interface as numba.cuda.simulator.kernel.BlockManager."""

    def __init__(self, f, grid_dim, block_dim, debug):
        from numba.cuda.simulator.kernelapi import Dim3

        self.kernel, self.make_index = f, Dim3
        columns, rows, layers = block_dim
        self.indices = [Dim3(x, y, z) for z in range(layers) for y in range(rows) for x in range(columns)]
        while len(_threads) < len(self.indices):
            _threads.append(SimulatedThread())
        self.threads = _threads[: len(self.indices)]

    def run(self, grid_point, *args):
        """Run one block to its end. An exception of a thread is raised with the thread's indices in front of its message.

        Raises RuntimeError if threads wait for others that never arrive.
        """
        block_index = self.make_index(*grid_point)
        self.work = lambda: self.kernel(*args)
        self.live, self.failed = len(self.threads), None
        self.has_shared_memory = False
        self.at_barrier, self.at_warp = None, {}
        self.ready = deque(self.threads)
        self.is_over = threading.Lock()
        self.is_over.acquire()
        for thread_id, (thread, index) in enumerate(zip(self.threads, self.indices)):
            thread.begin(self, thread_id, block_index, index)
        self.next_turn()
        self.is_over.acquire()
        if self.failed is not None:
            thread, error = self.failed
            self.abandon()
            indices = f"tid={list(thread.threadIdx)} ctaid={list(thread.blockIdx)}"
            raise type(error)(f"{indices}: {error}").with_traceback(error.__traceback__)
        if self.live:
            waiting = sorted({thread.waits_at.what for thread in self.threads if not thread.finished})
            self.abandon()
            raise RuntimeError(
                f"threads wait for others that never arrive, at {' and '.join(waiting)}. "
                "Is a barrier or a warp instruction under a condition that differs between threads?"
            )

    def next_turn(self):
        """Wake the next thread that can run or, if there is none, the one that launched the kernel."""
        (self.ready.popleft().turn if self.ready else self.is_over).release()

    def meet(self, thread, meeting, value, expected, conclude):
        """Wait for `expected` threads. Returns to each of them conclude(values), where values maps thread ids to what they brought."""
        meeting.values[thread.thread_id] = value
        if len(meeting.values) == expected:
            self.conclude(meeting, conclude, thread)
        else:
            meeting.conclude = conclude
            thread.waits_at = meeting
            self.next_turn()
            thread.turn.acquire()
            if thread.abandoned:
                raise _Abandoned
        return meeting.result

    def conclude(self, meeting, conclude, last_arrived=None):
        meeting.result = conclude(meeting.values)
        for thread_id in meeting.values:
            thread = self.threads[thread_id]
            if thread is not last_arrived:
                thread.waits_at = None
                self.ready.append(thread)

    def meet_in_block(self, thread, value, conclude):
        """Wait for all threads of the block that have not returned, as a GPU's barrier does."""
        meeting = self.at_barrier = self.at_barrier or Meeting("cuda.syncthreads")
        if len(meeting.values) + 1 == self.live:
            self.at_barrier = None
        result = self.meet(thread, meeting, value, self.live, conclude)
        thread.barriers += 1
        return result

    def meet_in_warp(self, thread, value, conclude, size=WARP_SIZE, name="warp"):
        """Wait for all other threads of the warp, of a warpgroup of 128, or of a team. None may have returned."""
        group = thread.thread_id // size
        if len(self.threads) < (group + 1) * size:
            raise RuntimeError(f"a {name} instruction needs blocks of whole {name}s of {size} threads, got {len(self.threads)}")
        meeting = self.at_warp.setdefault((name, group), Meeting(f"a {name} instruction of {name} {group}"))
        if len(meeting.values) + 1 == size:
            del self.at_warp[name, group]
        return self.meet(thread, meeting, value, size, conclude)

    def thread_has_finished(self, thread, error):
        self.live -= 1
        if isinstance(error, _Abandoned):
            self.is_over.release()  # `abandon` waits for it
        elif error is not None:
            self.failed = (thread, error)
            self.is_over.release()
        else:
            barrier = self.at_barrier
            if barrier is not None and len(barrier.values) == self.live:  # the others were waiting only for this one
                self.at_barrier = None
                self.conclude(barrier, barrier.conclude)
            self.next_turn()

    def abandon(self):
        """Unwind the threads that have started and not finished, so that they can run the next block."""
        for thread in self.threads:
            if thread.started and not thread.finished:
                thread.abandoned = True
                thread.turn.release()
                self.is_over.acquire()


_real_modules, _calls = (
    {},
    Counter(),
)  # by id of a file's globals: its names for numba.cuda, and how many calls of its functions are running


@contextlib.contextmanager
def swapped_cuda_module(function, fake_cuda):
    """While functions of a file run, its `cuda` is the simulator's. Numba without numba-cuda takes that away when the first thread returns."""
    from numba import cuda

    names = function.__globals__
    key = id(names)
    if not _calls[key]:
        _real_modules[key] = {name: value for name, value in names.items() if value is cuda}
        names.update(dict.fromkeys(_real_modules[key], fake_cuda))
    _calls[key] += 1
    try:
        yield
    finally:
        _calls[key] -= 1
        if not _calls[key]:
            names.update(_real_modules.pop(key))


def install():
    """Replace the simulator's scheduler by this one."""
    from numba.cuda.simulator import kernel

    kernel.BlockManager, kernel.swapped_cuda_module = CooperativeBlockManager, swapped_cuda_module


_LANES = np.arange(WARP_SIZE)


def meet_warp(value, conclude):
    """Wait for the other threads of the warp. Returns conclude(list of the 32 threads' values) to each of them."""
    thread = threading.current_thread()
    return thread.block.meet_in_warp(thread, value, lambda values: conclude([values[thread_id] for thread_id in sorted(values)]))


def meet_warpgroup(value, conclude):
    """meet_warp for the 128 threads of a warpgroup."""
    thread = threading.current_thread()
    meet = thread.block.meet_in_warp
    return meet(thread, value, lambda values: conclude([values[thread_id] for thread_id in sorted(values)]), 128, "warpgroup")


def sync_team(team, threads):
    """Wait for the other threads of team 0, 1, ... of a block, which is divided into teams of `threads` threads: reductions.py's twin."""
    threading.current_thread().sync_team(team, threads)


def butterfly(value, combine, distances=(16, 8, 4, 2, 1)):
    """Combine the values of a warp in the order of xor shuffles over these distances. Returns each thread its own lane's result."""

    def conclude(values):
        lanes = np.array(values)
        for distance in distances:
            lanes = combine(lanes, lanes[_LANES ^ distance])
        return lanes

    return meet_warp(value, conclude)[threading.current_thread().thread_id % WARP_SIZE]


def elements_of(array):
    """A kernel argument as a one-dimensional NumPy array. Inside a kernel the simulator wraps arrays twice."""
    item = getattr(array, "_item", array)
    return getattr(item, "_ary", item).reshape(-1)


def elements_read(part, by_tensor_cores=False):
    """The elements of part of an array, all read by a twin at once. While the race detector is on, it records the read."""
    return part.elements_read(by_tensor_cores) if hasattr(part, "elements_read") else part


def dynamic_shared_memory():
    """The block's dynamic shared memory as uint8, filled with 0xFF (NaN) when the block starts."""
    from numba.cuda.simulator.kernel import _get_kernel_context

    block, memory = threading.current_thread().block, _get_kernel_context().shared.array(0, np.dtype(np.uint8))
    if not block.has_shared_memory:
        np.asarray(memory)[:] = 0xFF
        block.has_shared_memory = True
    return memory
