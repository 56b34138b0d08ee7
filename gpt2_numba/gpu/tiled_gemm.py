"""A matrix product that can be read: the classic tiled kernel. It stands in for cuBLASLt in the simulator.

Computed naively, every element of `out` reads a whole row and a whole column from memory. Here a block of TILE x TILE threads
loads one tile of each factor into shared memory, where all its threads use every number TILE times, then moves on along K.
So memory traffic falls by the factor TILE. cuBLASLt does the same in several layers (registers, tensor cores) and far faster.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import compute_stream
from gpt2_numba.gpu.memory_access import load1, store1

TILE = 8
ZERO = np.float32(0.0)


@cuda.jit(cache=True)
def tiled_gemm_kernel(out, a, b, M, N, K, transpose_a, transpose_b, alpha, accumulate, bias, has_bias):
    """out[z] = alpha op(a[z]) op(b[z]) (+ out[z]) (+ bias). One thread makes one element; blockIdx.z = z counts the batch.

    out, a, b are 3-D, each contiguous; rows may be longer than the part in use.
    """
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    x, y, z = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
    row = cuda.blockIdx.y * TILE + y
    col = cuda.blockIdx.x * TILE + x
    a_start, b_start, out_start = z * a.shape[1] * a.shape[2], z * b.shape[1] * b.shape[2], z * out.shape[1] * out.shape[2]
    total = ZERO
    for k0 in range(0, K, TILE):
        # This thread fetches one number of each tile; outside of the matrices zero, which adds nothing.
        k = k0 + x
        a_value = ZERO
        if row < M and k < K:
            a_value = load1(a, a_start + (k * a.shape[2] + row if transpose_a else row * a.shape[2] + k))
        a_tile[y, x] = a_value
        k = k0 + y
        b_value = ZERO
        if col < N and k < K:
            b_value = load1(b, b_start + (col * b.shape[2] + k if transpose_b else k * b.shape[2] + col))
        b_tile[y, x] = b_value
        cuda.syncthreads()  # both tiles are complete
        for i in range(TILE):
            total += a_tile[y, i] * b_tile[i, x]
        cuda.syncthreads()  # nobody reads them any more
    if row < M and col < N:
        index = out_start + row * out.shape[2] + col
        total *= alpha
        if has_bias:
            total += load1(bias, col)
        if accumulate:
            total += load1(out, index)
        store1(out, index, total)


def tiled_gemm(out, a, b, M, N, K, transpose_a, transpose_b, alpha, accumulate, bias):
    """Arguments as in `gemm.gemm`."""
    out, a, b = (m if m.ndim == 3 else m.reshape(1, *m.shape) for m in (out, a, b))
    grid = (-(-N // TILE), -(-M // TILE), out.shape[0])
    has_bias = bias is not None
    bias = bias if has_bias else out.reshape(out.size)  # a kernel cannot take None: any array will do, it is not read
    tiled_gemm_kernel[grid, (TILE, TILE), compute_stream()](
        out, a, b, M, N, K, transpose_a, transpose_b, np.float32(alpha), accumulate, bias, has_bias
    )
