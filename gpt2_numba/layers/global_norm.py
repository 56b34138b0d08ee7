"""The norm of all gradients together, to which they are clipped.

    norm = sqrt(Σ grads²)        if norm > max_norm, every gradient is scaled by max_norm / norm

Pascanu, Mikolov, Bengio 2012, "On the difficulty of training recurrent neural networks" (arXiv:1211.5063).

A fixed number of blocks each add up the squares of a fixed part of the gradients (`sum_of_squares`), then one block adds up the blocks
(`norm_and_scale`): no atomics, the same bits every time. With ZeRO a process sums its own parts only, which `ranges` tells
(gpu/ranges.py), and the processes' partial sums are added between the two. The scale stays on the device, where the update reads it: nobody has to wait for the host.

    | array    | shape, type      | access                                                                                   |
    | -------- | ---------------- | ---------------------------------------------------------------------------------------- |
    | partials | (BLOCKS,) float32| [w] sums of squares, then [r]; the reference puts all into the first                     |
    | grads    | (any,)           | [r] float32 or bfloat16                                                                  |
    | ranges   | (K + 1, 4) int64 | [r] where the gradients lie that are to be counted                                       |
    | result   | (2,) float32     | [w] the norm; what the gradients are to be multiplied by                                 |
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8
from gpt2_numba.gpu.ranges import IN_GRADS, START, find_range
from gpt2_numba.gpu.reductions import block_sum

ONE, ZERO = np.float32(1.0), np.float32(0.0)
# A fixed split: the bits depend on it, so it must not depend on the GPU. 1,056 blocks are 8 for each of an H200's 132 multiprocessors.
BLOCKS = 2 if SIMULATING else 1056
THREADS = 64 if SIMULATING else 256
EIGHTS = 4  # of numbers that a thread has in flight
HELD = EIGHTS * WIDTH
REFERENCE_PIECE = 1 << 14  # numbers


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def sum_of_squares_ref(partials, grads, ranges):
    """The definition, summed in float64, a piece at a time that stays in the processor's cache."""
    total = 0.0
    for row, following in zip(ranges, ranges[1:]):
        mine = grads[row[IN_GRADS] : row[IN_GRADS] + following[START] - row[START]]
        for start in range(0, len(mine), REFERENCE_PIECE):
            piece = mine[start : start + REFERENCE_PIECE].astype(np.float64)
            total += np.dot(piece, piece)
    partials[0], partials[1:] = total, 0


def norm_and_scale_ref(result, partials, max_norm):
    """The definition."""
    norm = math.sqrt(partials.sum())
    result[0] = norm
    result[1] = max_norm / norm if norm > max_norm else 1


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(cache=True)
def sum_of_squares_kernel(partials, grads, ranges):
    """partials[block] = the sum of squares of this block's part: EIGHTS times eight numbers a thread, then on by the whole grid."""
    count = ranges[ranges.shape[0] - 1, START]
    x = cuda.local.array(HELD, float32)
    total = ZERO
    piece = EIGHTS * cuda.blockDim.x * WIDTH  # of a block
    for start in range(cuda.blockIdx.x * piece + cuda.threadIdx.x * WIDTH, count, cuda.gridDim.x * piece):
        for e in range(EIGHTS):
            i = start + e * cuda.blockDim.x * WIDTH
            if i < count:
                r = find_range(ranges, i)
                load8(grads, i - ranges[r, START] + ranges[r, IN_GRADS], x, e * WIDTH)
            else:
                for k in range(WIDTH):
                    x[e * WIDTH + k] = ZERO
        for k in range(HELD):
            total += x[k] * x[k]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@cuda.jit(cache=True)
def norm_and_scale_kernel(result, partials, max_norm):
    """From the BLOCKS partial sums to the norm and the scale. One block."""
    total = ZERO
    for i in range(cuda.threadIdx.x, BLOCKS, cuda.blockDim.x):
        total += partials[i]
    norm = sqrt(block_sum(total))
    if cuda.threadIdx.x == 0:
        result[0] = norm
        result[1] = max_norm / norm if norm > max_norm else ONE


# -------------------------------------------------------------------------------------------------------- launchers


def sum_of_squares(partials, grads, ranges):
    """The squares of the gradients in `ranges`, summed in parts. The arrays decide: NumPy runs the reference, device arrays the kernel.

    Arguments as in the table above. Raises ValueError or TypeError where a shape or type does not fit.
    """
    check_arrays(
        "sum_of_squares", {"any": grads.shape[0], "K+1": ranges.shape[0], "BLOCKS": BLOCKS},
        grads=(grads, "any"), partials=(partials, "f32 BLOCKS"), ranges=(ranges, "i64 K+1 4"),
    )  # fmt: skip
    if on_host(grads):
        return sum_of_squares_ref(partials, grads, ranges)
    check_width("sum_of_squares", any=grads.shape[0])
    sum_of_squares_kernel[BLOCKS, THREADS, compute_stream()](partials, grads, ranges)


def norm_and_scale(result, partials, max_norm):
    """The norm whose square is the sum of `partials`, and the scale that clips it to max_norm (float).

    Arguments as in the table above. Raises ValueError or TypeError where a shape or type does not fit.
    """
    check_arrays("norm_and_scale", {"BLOCKS": BLOCKS}, result=(result, "f32 2"), partials=(partials, "f32 BLOCKS"))
    if on_host(result):
        return norm_and_scale_ref(result, partials, max_norm)
    norm_and_scale_kernel[1, THREADS, compute_stream()](result, partials, np.float32(max_norm))
