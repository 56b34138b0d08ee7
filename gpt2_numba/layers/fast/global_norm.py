"""The norm of all gradients together, fast: one launch over all gradients in one array, at the speed of memory.

What is different from the plain kernels of layers/global_norm.py, and what it gains. Figures: one H200, 2026-11-22, GPT-2 124M in bf16.

    All tensors lie one after the other in one array, so a single launch adds up their squares. As many blocks as fill the GPU, always the
    same number of them, have a fixed part of the gradients each, and one block adds up the blocks: no atomics, the same bits every time.

    Memory is moved 16 bytes at a time (gpu/memory_access.py), and a thread has four loads in flight: 66 to 68 µs for 124,475,904 gradients,
    with the second launch 86 % of the rate of a copy, in the training step 90 %.

    With ZeRO a process sums only its own parts of the gradients, which `ranges` names (gpu/ranges.py), and the processes' partial sums are
    added up between the two launches. A thread looks for the range of every eight numbers by bisection, so that its loads stay in flight
    together: 139 µs for half of the gradients. A process that has all of them has one range: 69 µs.

    The scale stays on the device, where the update reads it: the host waits for nothing.

    | array    | shape, type               | access                                                |
    | -------- | ------------------------- | ----------------------------------------------------- |
    | partials | (BLOCKS,) float32         | [w] sums of squares, then [r]                         |
    | grads    | (any,) float32 or bfloat16| [r] a multiple of 8 numbers                           |
    | ranges   | (K + 1, 4) int64          | [r] where the gradients are that count                |
    | result   | (2,) float32              | [w] the norm; what multiplies the gradients           |
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8
from gpt2_numba.gpu.ranges import IN_GRADS, START, find_range
from gpt2_numba.gpu.reductions import block_sum

ONE, ZERO = np.float32(1.0), np.float32(0.0)
# A fixed number: the bits depend on it, so it must not depend on the GPU. 1,056 blocks are 8 for each of an H200's 132 multiprocessors.
BLOCKS = 2 if SIMULATING else 1056
THREADS = 64 if SIMULATING else 256
EIGHTS = 4  # of numbers that a thread has in flight
HELD = EIGHTS * WIDTH


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(cache=True)
def sum_of_squares_kernel(partials, grads, ranges):
    """partials[block] = this block's sum of squares: a thread takes EIGHTS times eight numbers, then those a grid's width further on."""
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
    """The squares of the gradients in `ranges`, summed in BLOCKS parts.

    Arguments as in the table above. Raises ValueError or TypeError where a shape or type does not fit.
    """
    check_arrays(
        "sum_of_squares", {"any": grads.shape[0], "K+1": ranges.shape[0], "BLOCKS": BLOCKS},
        grads=(grads, "any"), partials=(partials, "f32 BLOCKS"), ranges=(ranges, "i64 K+1 4"),
    )  # fmt: skip
    check_on_device("sum_of_squares", grads, "layers/global_norm.py")
    check_width("sum_of_squares", any=grads.shape[0])
    sum_of_squares_kernel[BLOCKS, THREADS, compute_stream()](partials, grads, ranges)


def norm_and_scale(result, partials, max_norm):
    """The norm whose square is the sum of `partials`, and the scale that clips it to max_norm (float).

    Arguments as in the table above. Raises ValueError or TypeError where a shape or type does not fit.
    """
    check_arrays("norm_and_scale", {"BLOCKS": BLOCKS}, result=(result, "f32 2"), partials=(partials, "f32 BLOCKS"))
    check_on_device("norm_and_scale", result, "layers/global_norm.py")
    norm_and_scale_kernel[1, THREADS, compute_stream()](result, partials, np.float32(max_norm))
