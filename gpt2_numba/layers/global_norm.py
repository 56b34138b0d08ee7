"""The norm of all gradients together, to which they are clipped.

    norm = sqrt(Σ grads²)        if norm > clip, every gradient is scaled by clip / norm

Pascanu, Mikolov, Bengio 2012, "On the difficulty of training recurrent neural networks" (arXiv:1211.5063).

All gradients of the model lie in one array, so that one launch reads them all. A fixed number of blocks each add up a fixed part,
then one block adds up the blocks: no atomics, the same bits every time.

    | array       | shape, type      | access                                       |
    | ----------- | ---------------- | -------------------------------------------- |
    | sum_squares | (1,) float32     | [w] the square of the norm                   |
    | grads       | (count,)         | [r] float32 or bfloat16, count a multiple of 8 |
    | scratch     | float32, flat    | [w] at least BLOCKS; None on the host        |
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_scratch, check_width
from gpt2_numba.gpu.memory_access import WIDTH, load8
from gpt2_numba.gpu.reductions import block_sum

ZERO = np.float32(0.0)
# A fixed split: the bits depend on it, so it must not depend on the GPU. 1,024 blocks fill any GPU of today.
BLOCKS = 2 if SIMULATING else 1024
THREADS = 64 if SIMULATING else 512


def sum_of_squares_ref(sum_squares, grads, scratch=None):
    """The definition, summed in float64 a piece at a time. `scratch` is for the kernels."""
    pieces = (grads[start : start + (1 << 20)].astype(np.float64) for start in range(0, len(grads), 1 << 20))
    sum_squares[0] = sum(np.dot(piece, piece) for piece in pieces)


@cuda.jit
def sum_of_squares_kernel(partials, grads):
    """partials[block] = the sum of squares of this block's part: eight numbers a thread, then on by the whole grid."""
    x = cuda.local.array(WIDTH, float32)
    total = ZERO
    for i in range(cuda.grid(1) * WIDTH, grads.shape[0], cuda.gridsize(1) * WIDTH):
        load8(grads, i, x)
        for k in range(WIDTH):
            total += x[k] * x[k]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@cuda.jit
def sum_of_partials_kernel(sum_squares, partials):
    """sum_squares[0] = Σ of the BLOCKS partial sums. One block."""
    total = ZERO
    for i in range(cuda.threadIdx.x, BLOCKS, cuda.blockDim.x):
        total += partials[i]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        sum_squares[0] = total


def sum_of_squares(sum_squares, grads, scratch):
    """sum_squares[0] = Σ grads². The arrays decide: NumPy runs the reference, device arrays the kernels.

    Arguments as in the table above. Raises ValueError or TypeError where a shape or type does not fit.
    """
    count = grads.shape[0]
    check_arrays("sum_of_squares", {"count": count}, grads=(grads, "count"), sum_squares=(sum_squares, "f32 1"))
    if on_host(grads):
        return sum_of_squares_ref(sum_squares, grads, scratch)
    check_width("sum_of_squares", count=count)
    check_scratch("sum_of_squares", scratch, BLOCKS)
    sum_of_squares_kernel[BLOCKS, THREADS, compute_stream()](scratch, grads)
    sum_of_partials_kernel[1, THREADS, compute_stream()](sum_squares, scratch)
