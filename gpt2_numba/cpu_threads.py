"""Work on large arrays on the host: a piece at a time, so that what is computed on the way stays in the cache, and in several threads.

    in_pieces(gelu_forward_ref, (out, inp))         gelu_forward_ref(out, inp), a few rows at a time

NumPy, and functions that Numba compiles with nogil=True, release Python's global lock while they compute. The pieces depend on the sizes of
the arrays alone, and none on another: so the bits are the same on every number of cores.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache

IN_CACHE = 1 << 15  # numbers in a piece: a dozen temporaries of this length fit a core's second-level cache
ONE_PASS = 1 << 20  # for work without temporaries, where a call for each small piece would cost more than the cache saves


def in_pieces(work, arrays, others=(), piece=IN_CACHE):
    """Call work(*arrays, *others) with neighbouring rows of the arrays, about `piece` numbers at a time, in several threads at once.

    All arrays have the same number of rows, which in a 1-D array are its numbers. Returns the results in the order of the rows; None if
    `work` returns none.
    """
    size = max(array[:1].size for array in arrays)
    results = in_threads(lambda rows: work(*(array[rows] for array in arrays), *others), pieces(len(arrays[0]), size, piece))
    return None if results and results[0] is None else results


def pieces(count, size=1, piece=IN_CACHE):
    """Neighbouring slices that cover `count` items, rows of `size` numbers: `piece` numbers in each at most, but at least one row."""
    step = max(1, piece // max(1, size))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def in_threads(work, arguments):
    """Return [work(argument) for argument in arguments], computed in as many threads as this process may use cores.

    The caller is one of them: it takes all the work if the others are busy, and so may itself be called from a piece of such work.
    """
    results, waiting = [None] * len(arguments), deque(enumerate(arguments))

    def take():
        while waiting:
            try:
                place, argument = waiting.popleft()
            except IndexError:  # another thread has taken the last one
                return
            results[place] = work(argument)

    helpers = [_pool().submit(take) for _ in range(min(cores(), len(arguments)) - 1)]
    try:
        take()
    finally:
        waiting.clear()  # after an exception
        for helper in helpers:
            if not helper.cancel():  # it has begun
                helper.result()
    return results


def cores():
    """How many cores this process may use: fewer than the machine has where a launcher binds each process to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@cache
def _pool():
    return ThreadPoolExecutor(max(1, cores() - 1), thread_name_prefix="in_threads")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of its parent's threads
