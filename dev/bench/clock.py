"""Time on the GPU, measured by events between launches, so that the host need not keep pace.

Without a GPU (in the tests) a mark is a reading of the host's clock.
"""

import functools
import statistics
import time
from itertools import pairwise

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_supported, compute_stream, real_gpu, synchronize, to_device
from gpt2_numba.gpu.gemm import gemm

FLUSH_BYTES = 128 << 20  # twice the largest L2 cache of current GPUs
BURNER_SIZE = 4096  # a matrix product of this size takes some 0.2 ms
MOST_REPEATS, FEWEST_REPEATS = 30, 5
SECONDS_PER_CALL = 0.2  # how long a call is repeated
QUEUE_MILLISECONDS = 25  # of launching by the host: the GPU's queue certainly holds that many launches


def mark():
    """Mark the current position in the compute stream."""
    if not real_gpu():
        return time.perf_counter()
    event = cuda.event()
    event.record(compute_stream())
    return event


def milliseconds(start, stop):
    """Milliseconds from one mark to a later one. Both must have been reached: synchronize first."""
    return start.elapsed_time(stop) if real_gpu() else (stop - start) * 1000


def wait_for(moment):
    """Wait until the GPU has reached a mark."""
    if real_gpu():
        moment.synchronize()


@functools.cache
def _burner():
    """A matrix product, as a function, and the milliseconds it takes."""
    rows = np.random.default_rng(1).standard_normal((BURNER_SIZE, BURNER_SIZE), np.float32)
    storage = BFLOAT16_BITS if bfloat16_supported() else FLOAT32
    a, b, out = to_device(rows, storage), to_device(rows[::-1], storage), cuda.device_array(rows.shape, storage)

    def product():
        gemm(out, a, b, rows=BURNER_SIZE, columns=BURNER_SIZE, inner=BURNER_SIZE)

    for _ in range(3):
        product()
    start = mark()
    for _ in range(10):
        product()
    stop = mark()
    synchronize()
    return product, milliseconds(start, stop) / 10


def hold(duration):
    """Keep the GPU busy with matrix products for `duration` milliseconds, so that work queued meanwhile runs without gaps."""
    if real_gpu() and duration > 0:
        product, product_ms = _burner()
        for _ in range(int(duration / product_ms) + 1):
            product()


@functools.cache
def _flush_buffers():
    return [cuda.device_array(FLUSH_BYTES, np.uint8) for _ in range(2)]


def flush_cache():
    """Fill the L2 cache with a copy of other data, half of it clean and half dirty, as a memory-bound kernel leaves it."""
    if real_gpu():
        destination, source = _flush_buffers()
        destination.copy_to_device(source, stream=compute_stream())


@functools.cache
def empty_mark():
    """Milliseconds between two marks with nothing in between, to subtract from measurements."""
    hold(5)
    marks = [mark() for _ in range(101)]
    synchronize()
    return statistics.median(milliseconds(a, b) for a, b in pairwise(marks)) if real_gpu() else 0.0


def time_call(call):
    """Milliseconds that `call` takes on the GPU with a cold cache: a list, one per repetition."""
    if not real_gpu():
        start = mark()
        call()
        return [milliseconds(start, mark())]
    empty_ms = empty_mark()

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
    host_ms = (time.perf_counter() - before) * 1000 / 3
    synchronize()
    gpu_ms = min(milliseconds(*pair) for pair in trial)
    fitting = min(SECONDS_PER_CALL * 1000 / max(gpu_ms, 1e-3), QUEUE_MILLISECONDS / host_ms)
    count = max(FEWEST_REPEATS, min(MOST_REPEATS, int(fitting)))
    hold(1.3 * host_ms * count)
    pairs = repeat(count)
    synchronize()
    return [max(milliseconds(*pair) - empty_ms, 1e-6) for pair in pairs]


def time_for(seconds, call):
    """Repeat a call for `seconds`. Returns a list of (second at which the call ended, milliseconds): sustained times come last.

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
