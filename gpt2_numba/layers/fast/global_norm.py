"""The norm of all gradients together, fast: one launch over all gradients in one array, at the speed of memory.

What is different from the plain kernels of layers/global_norm.py, and what it gains. Figures: one H200, 2026-11-29, GPT-2 124M in bf16.

    All tensors lie one after the other in one array, so a single launch sums their squares. The number of blocks is fixed and fills the
    GPU; each block sums a fixed part of the gradients, and one block adds up the blocks' sums: no atomics, the same bits every time.

    Memory is moved 16 bytes at a time (gpu/memory_access.py), and each thread has eight loads in flight: 66.8 µs for 124,475,904
    gradients, 88 % of the rate of a copy; with four 69.8.

    The scale stays on the device, where the update reads it: the host does not wait.

    With ZeRO, where the processes share the work of the update (parallel/shards.py), a process sums only its own parts of the gradients,
    which `ranges` lists (gpu/ranges.py), and the partial sums of all processes are added between the two launches. A block finds the range
    of a chunk (SPAN elements) with one search; only where a chunk crosses a border does each thread search for every eight elements. The
    search for the next chunk runs while this one's elements are on their way: 49.7 µs for half of the gradients. When each thread searched
    for every eight elements, it took 129.8.

    | array    | shape, type               | access                                                |
    | -------- | ------------------------- | ----------------------------------------------------- |
    | partials | (BLOCKS,) float32         | [w] sums of squares, then [r]                         |
    | grads    | (any,) float32 or bfloat16| [r] a multiple of 8 elements                          |
    | ranges   | (K + 1, 4) int64          | [r] which gradients to sum                            |
    | loss     | (1,) float32              | [r] of the step                                       |
    | result   | (2,) float32              | [w] [0] the norm, [1] the scale                       |
"""

import math

import numpy as np
from numba import cuda, float32, uint32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8_words, widen8
from gpt2_numba.gpu.ranges import IN_GRADS, START, find_range
from gpt2_numba.gpu.reductions import block_sum

ONE, ZERO, NAN = np.float32(1.0), np.float32(0.0), np.float32(math.nan)
# The same on every GPU, since the bits depend on it. 1,056 blocks are 8 for each of an H200's 132 multiprocessors.
BLOCKS = 2 if SIMULATING else 1056
THREADS = 64 if SIMULATING else 256
VECTORS = 8  # loads of eight elements that a thread has in flight
WORDS = VECTORS * WIDTH  # of a thread: what it has loaded
VECTOR_SPAN = THREADS * WIDTH  # elements that a block loads with one load of each thread
SPAN = VECTORS * VECTOR_SPAN  # and with all of them


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def find_span(ranges, base):
    """(whether the local positions base, ..., base + SPAN - 1 lie in one range, what to add to them for those in grads)."""
    r = find_range(ranges, base)
    return base + SPAN <= ranges[r + 1, START], ranges[r, IN_GRADS] - ranges[r, START]


@cuda.jit(device=True)
def load_scattered(words, grads, ranges, first):
    """Load this thread's share, from `first` on, of a chunk that lies in several ranges or ends with the last one: then zeros."""
    for j in range(VECTORS):
        i = first + j * VECTOR_SPAN
        if i < ranges[ranges.shape[0] - 1, START]:
            r = find_range(ranges, i)
            load8_words(grads, i - ranges[r, START] + ranges[r, IN_GRADS], words, j * WIDTH)
        else:
            for k in range(WIDTH):
                words[j * WIDTH + k] = 0  # 0.0 in either type


@cuda.jit(cache=True)
def sum_of_squares_kernel(partials, grads, ranges):
    """partials[block] = this block's sum of squares: a block takes SPAN elements, then those gridDim.x * SPAN further on."""
    count = ranges[ranges.shape[0] - 1, START]
    words = cuda.local.array(WORDS, uint32)
    x = cuda.local.array(WIDTH, float32)
    total = ZERO
    base, own = cuda.blockIdx.x * SPAN, cuda.threadIdx.x * WIDTH
    in_one_range, shift = False, 0
    if base < count:
        in_one_range, shift = find_span(ranges, base)
    while base < count:
        if in_one_range:
            for j in range(VECTORS):
                load8_words(grads, base + shift + own + j * VECTOR_SPAN, words, j * WIDTH)
        else:
            load_scattered(words, grads, ranges, base + own)
        base += cuda.gridDim.x * SPAN
        if base < count:
            in_one_range, shift = find_span(ranges, base)  # before the elements above are used: while they are on their way
        for j in range(VECTORS):
            widen8(grads, words, j * WIDTH, x)
            for k in range(WIDTH):
                total += x[k] * x[k]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@cuda.jit(cache=True)
def norm_and_scale_kernel(result, partials, loss, max_norm):
    """From the BLOCKS partial sums to the norm and the scale, which is NaN if norm or loss is not finite. One block."""
    total = ZERO
    for i in range(cuda.threadIdx.x, BLOCKS, cuda.blockDim.x):
        total += partials[i]
    norm = sqrt(block_sum(total))
    if cuda.threadIdx.x == 0:
        scale = max_norm / norm if norm > max_norm else ONE
        result[0] = norm
        result[1] = scale if math.isfinite(norm) and math.isfinite(loss[0]) else NAN


# -------------------------------------------------------------------------------------------------------- launchers


def sum_of_squares(partials, grads, ranges):
    """The squares of the gradients in `ranges`, summed to BLOCKS partial sums.

    Arguments as in the table above. Raises ValueError or TypeError if a shape or type does not fit.
    """
    check_arrays(
        "sum_of_squares", {"any": grads.shape[0], "K+1": ranges.shape[0], "BLOCKS": BLOCKS},
        grads=(grads, "any"), partials=(partials, "f32 BLOCKS"), ranges=(ranges, "i64 K+1 4"),
    )  # fmt: skip
    check_on_device("sum_of_squares", grads, "layers/global_norm.py")
    check_width("sum_of_squares", any=grads.shape[0])
    sum_of_squares_kernel[BLOCKS, THREADS, compute_stream()](partials, grads, ranges)


def norm_and_scale(result, partials, loss, max_norm):
    """The norm whose square is the sum of `partials`, and the scale that clips it to max_norm (float).

    Arguments as in the table above. Raises ValueError or TypeError if a shape or type does not fit.
    """
    arrays = dict(result=(result, "f32 2"), partials=(partials, "f32 BLOCKS"), loss=(loss, "f32 1"))
    check_arrays("norm_and_scale", {"BLOCKS": BLOCKS}, **arrays)
    check_on_device("norm_and_scale", result, "layers/global_norm.py")
    norm_and_scale_kernel[1, THREADS, compute_stream()](result, partials, loss, np.float32(max_norm))
