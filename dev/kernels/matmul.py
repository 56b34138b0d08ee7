"""The linear layer: from one product per value read from shared memory to tensor cores.

forward    plain            a tile in shared memory: a value from memory is used in 32 products, one from shared memory in a single product
           register_tile    8 x 8 results per thread: a value from shared memory is used in eight products, from a register
           by_library       cuBLASLt in float32: wider loads, the next tile prefetched during the products, tile shapes chosen by size
           fast             the same library on tensor cores: float32 with factors rounded to TF32, then bfloat16; layers/fast/matmul.py
backward   the same rungs: two products, and a sum over rows for the bias, which only the fast rung spreads over the whole GPU

A multiprocessor of an H100 does 128 float32 multiply-adds per cycle, and reads 32 values from shared memory. The plain kernel reads two
values per multiply-add, so it reaches at most an eighth of the arithmetic peak. 8 x 8 results need 16 values for 64 multiply-adds: a
quarter of a value each. Forward at N=8,192, C=768, OC=2,304 in float32 (one H100, 2026-11-28): plain 15.4 ms, register_tile 1.57,
by_library 0.64.
"""

import numpy as np
from numba import cuda, float32

from dev.kernels import buffer, in_all_precisions
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.block_sum import THREADS
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers import matmul
from gpt2_numba.layers.fast import matmul as fast

ZERO = np.float32(0)
ACROSS = 4 if SIMULATING else 16  # a block has ACROSS x ACROSS threads
EACH = 8  # a thread computes EACH x EACH results, in 64 registers
TILE = ACROSS * EACH  # of out, rows and columns; 128 on a GPU
TILE_SHAPE = (ACROSS, TILE + 1)  # [k, row or column of out]: ACROSS steps of the inner axis; one column of padding against bank conflicts


@cuda.jit(device=True)
def load_tile(tile, matrix, start, k0, k_is_last):
    """tile[k, i] = matrix[start + i, k0 + k] if k_is_last, else matrix[k0 + k, start + i].

    EACH elements per thread; neighbouring threads load neighbouring elements.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    for i in range(0, TILE, ACROSS):
        if k_is_last:
            tile[x, y + i] = matmul.element_or_zero(matrix, start + y + i, k0 + x)
        else:
            tile[y, x + i] = matmul.element_or_zero(matrix, k0 + y, start + x + i)


@cuda.jit
def register_tile_kernel(out, a, b, bias, inner, a_transposed, b_transposed, has_bias, accumulate):
    """out = a b (+ bias) (+ out). A thread computes rows y, y + ACROSS, ... and columns x, x + ACROSS, ... of its block's tile.

    In the loop over k every index of total, a_own and b_own is a constant once the inner loops are unrolled, so they stay in registers.
    """
    a_tile = cuda.shared.array(TILE_SHAPE, float32)
    b_tile = cuda.shared.array(TILE_SHAPE, float32)
    total = cuda.local.array((EACH, EACH), float32)
    a_own, b_own = cuda.local.array(EACH, float32), cuda.local.array(EACH, float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    for i in range(EACH):
        for j in range(EACH):
            total[i, j] = ZERO
    for k0 in range(0, inner, ACROSS):
        load_tile(a_tile, a, row0, k0, not a_transposed)
        load_tile(b_tile, b, col0, k0, b_transposed)
        cuda.syncthreads()
        for k in range(ACROSS):
            for i in range(EACH):
                a_own[i] = a_tile[k, y + i * ACROSS]
                b_own[i] = b_tile[k, x + i * ACROSS]
            for i in range(EACH):
                for j in range(EACH):
                    total[i, j] += a_own[i] * b_own[j]
        cuda.syncthreads()
    for i in range(EACH):
        for j in range(EACH):
            row, col = row0 + y + i * ACROSS, col0 + x + j * ACROSS
            if row < out.shape[0] and col < out.shape[1]:
                if has_bias:
                    total[i, j] += bias[col]
                if accumulate:
                    total[i, j] += out[row, col]
                out[row, col] = total[i, j]


def launch_register_tile(out, a, b, bias=None, a_transposed=False, b_transposed=False, accumulate=False):
    """out = a b (+ bias) (+ out), like matmul.launch_product."""
    (rows, cols), inner = out.shape, a.shape[0] if a_transposed else a.shape[1]
    grid, has_bias = (ceil_div(cols, TILE), ceil_div(rows, TILE)), bias is not None
    configured = register_tile_kernel[grid, (ACROSS, ACROSS), compute_stream()]
    configured(out, a, b, bias if has_bias else out.reshape(out.size), inner, a_transposed, b_transposed, has_bias, accumulate)


def register_tile_forward(out, inp, weight, bias):
    """A tile of results per thread. The plain kernel is bound by shared memory: two reads per multiply-add."""
    launch_register_tile(out, inp, weight, bias, b_transposed=True)


def register_tile_backward(dinp, dweight, dbias, dout, inp, weight):
    """Both products by the kernel of register_tile_forward; the bias gradient as in the plain layer."""
    launch_register_tile(dinp, dout, weight)
    launch_register_tile(dweight, dout, inp, a_transposed=True, accumulate=True)
    if dbias is not None:
        matmul.bias_backward_kernel[ceil_div(dout.shape[1], THREADS), THREADS, compute_stream()](dbias, dout)


@in_all_precisions
def fast_forward(out, inp, weight, bias):
    """On tensor cores: float32 if factors may be rounded to TF32, then bfloat16. by_library is bound by the ordinary arithmetic units, and
    so is this rung in float32 without TF32, where it is the same call.
    """
    fast.matmul_forward(out, inp, weight, bias)


@in_all_precisions
def fast_backward(dinp, dweight, dbias, dout, inp, weight):
    """The products as in fast_forward. The bias gradient, so far one thread per channel, occupies the whole GPU, with 16 bytes per load."""
    scratch = None if dbias is None else buffer("scratch", fast.matmul_scratch_size(dout.shape[1]))
    fast.matmul_backward(dinp, dweight, dbias, dout, inp, weight, scratch)


LADDER = {
    "matmul_forward": (matmul.matmul_forward, register_tile_forward, matmul.matmul_forward_by_library, fast_forward),
    "matmul_backward": (matmul.matmul_backward, register_tile_backward, matmul.matmul_backward_by_library, fast_backward),
}
