"""The linear layer: every output channel is a weighted sum of all input channels, plus a bias.

    out[n, o] = Σ_c inp[n, c] weight[o, c] + bias[o]                           out = inp weightᵀ + bias

Backward. Raise inp[n, c] by a tiny ε: every out[n, o] of that row rises by ε weight[o, c]. Raise weight[o, c]: out[n, o] of every row n
rises by ε inp[n, c]. Raise bias[o]: out[n, o] of every row rises by ε. Multiply by dout, add up over all numbers that move, divide by ε:

    dinp[n, c]     = Σ_o dout[n, o] weight[o, c]                               dinp = dout weight
    dweight[o, c] += Σ_n dout[n, o] inp[n, c]                                  dweight += doutᵀ inp
    dbias[o]      += Σ_n dout[n, o]

Forward is one matrix product; backward is two of the same size and costs twice as much. Nearly all of a GPT's arithmetic is here.

    | array          | shape               | forward | backward                                                  |
    | -------------- | ------------------- | ------- | --------------------------------------------------------- |
    | inp            | (N, C)              | [r]     | [r]                                                       |
    | weight         | (OC, C)             | [r]     | [r]                                                       |
    | bias           | (OC,)               | [r]     | not needed. None in the output layer, which has none      |
    | out, dout      | (N, OC)             | [w]     | [r]                                                       |
    | dinp           | (N, C)              |         | [w]                                                       |
    | dweight, dbias | (OC, C) (OC,)       |         | [+] dbias None if there is no bias                        |

N = B * T rows, one for each token. [r] read, [w] overwritten, [+] accumulated into.

The plain kernel is the classic tiled product. If each thread computed one element of the product straight from memory, it would read a
whole row of one factor and a whole column of the other: 2 reads for every multiplication. So a block of TILE x TILE threads loads a tile of
each factor into shared memory, uses each number of it TILE times, then loads the next pair: memory traffic falls by a factor of TILE.

To train at full speed, the products are delegated to cuBLASLt, NVIDIA's library. By default it follows the BLAS convention, inherited from
Fortran: matrices are stored column by column. Ours are stored row by row. Nothing has to be rearranged for that: a (rows, cols) array
stored by rows is, number for number in memory, its transpose, (cols, rows), stored by columns. So the library sees the transpose of each of
our arrays, and must write the transpose of out. Since

    out = A B     is, transposed,     outᵀ = Bᵀ Aᵀ

it is asked for the product of the factors in exchanged order, and what it sees of an array that is stored as B is just Bᵀ. To transpose a
stored factor beforehand, a flag is set. Forward, out = inp weightᵀ: the first factor is weight with its flag set (the library sees weightᵀ
and needs weight), the second is inp without (it sees inpᵀ and needs that). `gpu/gemm.py` leads to `gpu/cublaslt.py`, where this is done.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.cpu_threads import pieces
from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.integers import ceil_div

ZERO = np.float32(0)
# Rows and columns of a tile. The compiler unrolls a loop of 16 steps, so that every index in it is a constant; one of 32 steps it does not,
# and then computing the indices takes several times as long as multiplying.
TILE = 8 if SIMULATING else 16
# Each row of a tile in shared memory is one number longer. Shared memory has 32 banks, number i in bank i % 32. With rows of 16, the
# 32 threads of a warp that store columns (a_tile[x, y] below) would meet in 4 banks, 8 in each, and be served one after the other; with rows
# of 17 they spread over 31.
TILE_SHAPE = (TILE, TILE + 1)
SHAPE_HINT = "Weights are (out, in)."
PRODUCT = 1 << 22  # numbers of a product in NumPy: the whole of wte's gradient would be an array of its own, as large as wte


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def matmul_forward_ref(out, inp, weight, bias):
    """The definition. Arguments as in the table above; float32 or float64."""
    np.matmul(inp, weight.T, out=out)
    if bias is not None:
        out += bias


def matmul_backward_ref(dinp, dweight, dbias, dout, inp, weight):
    """The three sums. Arguments as in the table above."""
    np.matmul(dout, weight, out=dinp)
    for rows in pieces(*dweight.shape, PRODUCT):
        dweight[rows] += dout[:, rows].T @ inp
    if dbias is not None:
        dbias += dout.sum(axis=0)


# ---------------------------------------------------------------------------------------------------- plain kernels


@cuda.jit(device=True)
def element_or_zero(matrix, row, col):
    """matrix[row, col], or 0 outside of the matrix, which adds nothing to a sum."""
    return matrix[row, col] if row < matrix.shape[0] and col < matrix.shape[1] else ZERO


@cuda.jit(cache=True)
def product_kernel(out, a, b, bias, inner, a_transposed, b_transposed, has_bias, accumulate):
    """out = a b (+ bias) (+ out). A block computes one tile of out, a thread one element, its `inner` products in order: the bits repeat.

    out is (rows, cols). a is stored (rows, inner), or (inner, rows) if a_transposed; b is stored (inner, cols), or (cols, inner) if b_transposed.
    """
    a_tile = cuda.shared.array(TILE_SHAPE, float32)  # [row of out, k]
    b_tile = cuda.shared.array(TILE_SHAPE, float32)  # [k, column of out]
    x, y = cuda.threadIdx.x, cuda.threadIdx.y  # the 32 threads of a warp: two values of y, each with x = 0 ... 15
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    total = ZERO
    for k0 in range(0, inner, TILE):
        # Either way x is the last index of what is loaded: the threads of a warp read neighbouring numbers.
        if a_transposed:
            a_tile[x, y] = element_or_zero(a, k0 + y, row0 + x)
        else:
            a_tile[y, x] = element_or_zero(a, row0 + y, k0 + x)
        if b_transposed:
            b_tile[x, y] = element_or_zero(b, col0 + y, k0 + x)
        else:
            b_tile[y, x] = element_or_zero(b, k0 + y, col0 + x)
        cuda.syncthreads()  # both tiles are complete
        for k in range(TILE):
            total += a_tile[y, k] * b_tile[k, x]
        cuda.syncthreads()  # every thread is done with the tiles, so the next ones may be loaded
    row, col = row0 + y, col0 + x
    if row < out.shape[0] and col < out.shape[1]:  # not earlier: threads outside of out have loaded, and must reach the barriers
        if has_bias:
            total += bias[col]
        if accumulate:
            total += out[row, col]
        out[row, col] = total


@cuda.jit(cache=True)
def bias_backward_kernel(dbias, dout):
    """One thread per output channel sums its column of dout, first row to last."""
    o = cuda.grid(1)
    if o >= dout.shape[1]:
        return
    total = ZERO
    for n in range(dout.shape[0]):
        total += dout[n, o]
    dbias[o] += total


def launch_product(out, a, b, bias=None, a_transposed=False, b_transposed=False, accumulate=False):
    """out = a b (+ bias) (+ out) by the plain kernel; out, a, b 2-D float32 device arrays."""
    rows, cols = out.shape
    inner = a.shape[0] if a_transposed else a.shape[1]
    grid = (ceil_div(cols, TILE), ceil_div(rows, TILE))
    has_bias = bias is not None
    bias = bias if has_bias else out.reshape(out.size)  # a kernel cannot take None: any array will do, since it is not read
    product_kernel[grid, (TILE, TILE), compute_stream()](out, a, b, bias, inner, a_transposed, b_transposed, has_bias, accumulate)


# -------------------------------------------------------------------------------------------------------- launchers


def matmul_forward(out, inp, weight, bias):
    """out = inp weightᵀ + bias. The arrays decide: NumPy runs the reference, device arrays the plain kernel.

    out [w] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)   bias [r] (OC,) or None
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    _check_forward(out, inp, weight, bias)
    if on_host(inp):
        return matmul_forward_ref(out, inp, weight, bias)
    launch_product(out, inp, weight, bias, b_transposed=True)


def matmul_backward(dinp, dweight, dbias, dout, inp, weight):
    """Gradients of matmul_forward.

    dinp [w] (N, C)   dweight [+] (OC, C)   dbias [+] (OC,) or None   dout [r] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    _check_backward(dinp, dweight, dbias, dout, inp, weight)
    if on_host(inp):
        return matmul_backward_ref(dinp, dweight, dbias, dout, inp, weight)
    launch_product(dinp, dout, weight)
    launch_product(dweight, dout, inp, a_transposed=True, accumulate=True)
    if dbias is not None:
        bias_backward_kernel[ceil_div(dout.shape[1], THREADS), THREADS, compute_stream()](dbias, dout)


def matmul_forward_by_library(out, inp, weight, bias):
    """matmul_forward with the product by cuBLASLt, float32 device arrays. In the simulator NumPy takes the library's place."""
    _check_forward(out, inp, weight, bias)
    (N, C), OC = inp.shape, weight.shape[0]
    gemm(out, inp, weight, rows=N, columns=OC, inner=C, transpose_b=True, bias=bias)


def matmul_backward_by_library(dinp, dweight, dbias, dout, inp, weight):
    """matmul_backward with the products by cuBLASLt, float32 device arrays."""
    _check_backward(dinp, dweight, dbias, dout, inp, weight)
    (N, C), OC = inp.shape, weight.shape[0]
    gemm(dinp, dout, weight, rows=N, columns=C, inner=OC)
    gemm(dweight, dout, inp, rows=OC, columns=C, inner=N, transpose_a=True, accumulate=True)
    if dbias is not None:
        bias_backward_kernel[ceil_div(OC, THREADS), THREADS, compute_stream()](dbias, dout)


def _check_forward(out, inp, weight, bias):
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_forward", {"N": N, "C": C, "OC": OC}, SHAPE_HINT,
        out=(out, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), bias=(bias, "OC"),
    )  # fmt: skip
    if not on_host(inp):
        check_float32("matmul_forward", inp)


def _check_backward(dinp, dweight, dbias, dout, inp, weight):
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_backward", {"N": N, "C": C, "OC": OC}, SHAPE_HINT,
        dinp=(dinp, "N C"), dweight=(dweight, "OC C"), dbias=(dbias, "OC"), dout=(dout, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"),
    )  # fmt: skip
    if not on_host(inp):
        check_float32("matmul_backward", inp)
