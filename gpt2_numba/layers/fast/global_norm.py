"""The norm of all gradients together, fast: one launch over all gradients in one array, at the speed of memory.

What is different from the plain kernels of layers/global_norm.py, and what it gains. Figures: one H200, 2026-11-22, GPT-2 124M in bf16.

    All tensors lie one after the other in one array, so a single launch sums their squares. The number of blocks is fixed and fills the
    GPU; each block sums a fixed part of the gradients, and one block adds up the blocks' sums: no atomics, the same bits every time.

    Memory is moved 16 bytes at a time (gpu/memory_access.py), and each thread has four loads in flight: 66 to 68 µs for 124,475,904
    gradients; with the second launch 86 % of the rate of a copy, in the training step 90 %.

    The scale stays on the device, where the update reads it: the host does not wait.

    With ZeRO, where the processes share the work of the update (parallel/shards.py), a process sums only its own parts of the gradients,
    which `ranges` lists (gpu/ranges.py), and the partial sums of all processes are added between the two launches. A thread finds the range
    of every eight elements by bisection, which keeps its loads in flight together: 139 µs for half of the gradients. A process that has all
    gradients has one range: 69 µs.

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
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8
from gpt2_numba.gpu.ranges import IN_GRADS, START, find_range
from gpt2_numba.gpu.reductions import block_sum

ONE, ZERO, NAN = np.float32(1.0), np.float32(0.0), np.float32(math.nan)
# The same on every GPU, since the bits depend on it. 1,056 blocks are 8 for each of an H200's 132 multiprocessors.
BLOCKS = 2 if SIMULATING else 1056
THREADS = 64 if SIMULATING else 256
VECTORS = 4  # loads of eight elements that a thread has in flight
IN_FLIGHT = VECTORS * WIDTH  # elements


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(cache=True)
def sum_of_squares_kernel(partials, grads, ranges):
    """partials[block] = this block's sum of squares: a thread takes VECTORS times eight elements, then those one grid further on."""
    count = ranges[ranges.shape[0] - 1, START]
    x = cuda.local.array(IN_FLIGHT, float32)
    total = ZERO
    block_span = VECTORS * cuda.blockDim.x * WIDTH
    for start in range(cuda.blockIdx.x * block_span + cuda.threadIdx.x * WIDTH, count, cuda.gridDim.x * block_span):
        for j in range(VECTORS):
            i = start + j * cuda.blockDim.x * WIDTH
            if i < count:
                r = find_range(ranges, i)
                load8(grads, i - ranges[r, START] + ranges[r, IN_GRADS], x, j * WIDTH)
            else:
                for k in range(WIDTH):
                    x[j * WIDTH + k] = ZERO
        for k in range(IN_FLIGHT):
            total += x[k] * x[k]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@cuda.jit(cache=True)
def norm_and_scale_kernel(result, partials, loss, max_norm):
    """From the BLOCKS partial sums to the norm and the scale; NaN if norm or loss is not finite. One block."""
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
