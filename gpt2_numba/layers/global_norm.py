"""The norm of all gradients together, to which they are clipped.

    norm = sqrt(Σ grads²)        if norm > max_norm, every gradient is scaled by max_norm / norm

Pascanu, Mikolov, Bengio 2012, "On the difficulty of training recurrent neural networks" (arXiv:1211.5063).

All gradients of the model lie in one array, so that one launch reads them all. A fixed number of blocks each add up a fixed part,
then one block adds up the blocks: no atomics, the same bits every time. The scale stays on the device, where the update reads it: nobody
has to wait for the host.

    | array          | shape, type      | access                                            |
    | -------------- | ---------------- | ------------------------------------------------- |
    | norm_and_scale | (2,) float32     | [w] the norm; what the gradients are to be multiplied by |
    | grads          | (count,)         | [r] float32 or bfloat16, count a multiple of 8    |
    | scratch        | float32, flat    | [w] at least BLOCKS; None on the host             |
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_scratch, check_width
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8
from gpt2_numba.gpu.reductions import block_sum

ONE, ZERO = np.float32(1.0), np.float32(0.0)
# A fixed split: the bits depend on it, so it must not depend on the GPU. 1,056 blocks are 8 for each of an H200's 132 multiprocessors.
BLOCKS = 2 if SIMULATING else 1056
THREADS = 64 if SIMULATING else 256
EIGHTS = 4  # of numbers that a thread has in flight
HELD = EIGHTS * WIDTH
REFERENCE_PIECE = 1 << 14  # numbers


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def global_norm_ref(norm_and_scale, grads, scratch, max_norm):
    """The definition, summed in float64, a piece at a time that stays in the processor's cache. `scratch` is for the kernels."""
    pieces = (grads[start : start + REFERENCE_PIECE].astype(np.float64) for start in range(0, len(grads), REFERENCE_PIECE))
    norm = math.sqrt(sum(np.dot(piece, piece) for piece in pieces))
    norm_and_scale[0] = norm
    norm_and_scale[1] = max_norm / norm if norm > max_norm else 1


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(cache=True)
def sum_of_squares_kernel(partials, grads):
    """partials[block] = the sum of squares of this block's part: EIGHTS times eight numbers a thread, then on by the whole grid."""
    count = grads.shape[0]
    x = cuda.local.array(HELD, float32)
    total = ZERO
    piece = EIGHTS * cuda.blockDim.x * WIDTH  # of a block
    for start in range(cuda.blockIdx.x * piece + cuda.threadIdx.x * WIDTH, count, cuda.gridDim.x * piece):
        for e in range(EIGHTS):
            i = start + e * cuda.blockDim.x * WIDTH
            if i < count:
                load8(grads, i, x, e * WIDTH)
            else:
                for k in range(WIDTH):
                    x[e * WIDTH + k] = ZERO
        for k in range(HELD):
            total += x[k] * x[k]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@cuda.jit(cache=True)
def norm_and_scale_kernel(norm_and_scale, partials, max_norm):
    """From the BLOCKS partial sums to the norm and the scale. One block."""
    total = ZERO
    for i in range(cuda.threadIdx.x, BLOCKS, cuda.blockDim.x):
        total += partials[i]
    norm = sqrt(block_sum(total))
    if cuda.threadIdx.x == 0:
        norm_and_scale[0] = norm
        norm_and_scale[1] = max_norm / norm if norm > max_norm else ONE


# --------------------------------------------------------------------------------------------------------- launcher


def global_norm(norm_and_scale, grads, scratch, max_norm):
    """The norm of all gradients, and the scale that clips them. The arrays decide: NumPy runs the reference, device arrays the kernels.

    Arguments as in the table above; max_norm: float. Raises ValueError or TypeError where a shape or type does not fit.
    """
    count = grads.shape[0]
    check_arrays("global_norm", {"count": count}, grads=(grads, "count"), norm_and_scale=(norm_and_scale, "f32 2"))
    if on_host(grads):
        return global_norm_ref(norm_and_scale, grads, scratch, max_norm)
    check_width("global_norm", count=count)
    check_scratch("global_norm", scratch, BLOCKS)
    sum_of_squares_kernel[BLOCKS, THREADS, compute_stream()](scratch, grads)
    norm_and_scale_kernel[1, THREADS, compute_stream()](norm_and_scale, scratch, np.float32(max_norm))
