"""Time on the GPU: events between launches, none of which the host has to keep up with.

Where there is no GPU (the tests) a mark is the host's clock.
"""

import functools
import statistics
import time
from itertools import pairwise

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_supported, compute_stream, real_gpu, synchronize, to_device
from gpt2_numba.gpu.gemm import gemm

FLUSH_BYTES = 128 << 20  # twice the largest L2 cache of today
BURNER_SIZE = 4096  # a matrix product of this size takes some 0.2 ms
MOST_REPEATS, FEWEST_REPEATS = 30, 5
SECONDS_A_CALL = 0.2  # how long a call is repeated for
QUEUE_MILLISECONDS = 25  # of the host's time: as many launches as the GPU's queue holds with certainty


def mark():
    """This moment, in the order of the compute stream."""
    if not real_gpu():
        return time.perf_counter()
    event = cuda.event()
    event.record(compute_stream())
    return event


def milliseconds(start, stop):
    """From one mark to a later one. Both must have been reached: synchronize first."""
    return start.elapsed_time(stop) if real_gpu() else (stop - start) * 1000


def wait_for(moment):
    """Wait until the GPU has come to a mark."""
    if real_gpu():
        moment.synchronize()


@functools.cache
def _burner():
    """One matrix product, and how many milliseconds it takes."""
    rows = np.random.default_rng(1).standard_normal((BURNER_SIZE, BURNER_SIZE), np.float32)
    storage = BFLOAT16_BITS if bfloat16_supported() else FLOAT32
    a, b, out = to_device(rows, storage), to_device(rows[::-1], storage), cuda.device_array(rows.shape, storage)

    def product():
        gemm(out, a, b, BURNER_SIZE, BURNER_SIZE, BURNER_SIZE)

    for _ in range(3):
        product()
    start = mark()
    for _ in range(10):
        product()
    stop = mark()
    synchronize()
    return product, milliseconds(start, stop) / 10


def hold(duration):
    """Keep the GPU busy with matrix products for so many milliseconds, so that what the host queues meanwhile runs without gaps."""
    if real_gpu() and duration > 0:
        product, of_one = _burner()
        for _ in range(int(duration / of_one) + 1):
            product()


@functools.cache
def _flush_buffers():
    return [cuda.device_array(FLUSH_BYTES, np.uint8) for _ in range(2)]


def flush_cache():
    """Fill the L2 cache with a copy of other data: half of it clean, half of it still to be written, as a memory-bound kernel leaves it."""
    if real_gpu():
        there, here = _flush_buffers()
        there.copy_to_device(here, stream=compute_stream())


@functools.cache
def empty_mark():
    """Milliseconds between two marks with nothing in between: subtracted from what is measured."""
    hold(5)
    marks = [mark() for _ in range(101)]
    synchronize()
    return statistics.median(milliseconds(a, b) for a, b in pairwise(marks)) if real_gpu() else 0.0


def time_call(call):
    """Milliseconds that `call` takes on the GPU, with a cold cache: a list, one number a repetition."""
    if not real_gpu():
        start = mark()
        call()
        return [milliseconds(start, mark())]
    of_nothing = empty_mark()

    def repeat(count):
        pairs = []
        for _ in range(count):
            flush_cache()
            start = mark()
            call()
            pairs.append((start, mark()))
        return pairs

    repeat(2)
    synchronize()
    before = time.perf_counter()
    trial = repeat(3)
    of_host = (time.perf_counter() - before) * 1000 / 3
    synchronize()
    of_gpu = min(milliseconds(*pair) for pair in trial)
    fitting = min(SECONDS_A_CALL * 1000 / max(of_gpu, 1e-3), QUEUE_MILLISECONDS / of_host)
    count = max(FEWEST_REPEATS, min(MOST_REPEATS, int(fitting)))
    hold(1.3 * of_host * count)
    pairs = repeat(count)
    synchronize()
    return [max(milliseconds(*pair) - of_nothing, 1e-6) for pair in pairs]


def time_for(seconds, call):
    """Call again and again for so many seconds. Returns a list of (second of its end, milliseconds): what is sustained comes last.

    The host is never more than two calls ahead.
    """
    marks, start = [mark()], time.perf_counter()
    while time.perf_counter() - start < seconds or len(marks) < 3:
        call()
        marks.append(mark())
        if len(marks) > 2:
            wait_for(marks[-3])
    synchronize()
    return [(milliseconds(marks[0], b) / 1000, milliseconds(a, b)) for a, b in pairwise(marks)]
