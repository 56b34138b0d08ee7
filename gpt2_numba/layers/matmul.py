"""The fully connected layer: every output channel is a weighted sum of all input channels, plus a bias.

    out = inp weightᵀ + bias

    dinp = dout weight        dweight += doutᵀ inp        dbias += Σ_rows dout

Three matrix products of the same size, so backward costs twice the forward. Nearly all of a GPT's arithmetic is here: the products
run on cuBLASLt (in the simulator on `gpu/tiled_gemm.py`, which can be read). The bias's gradient is a sum over rows and bound by memory.

    | array          | shape   | forward | backward                                                     |
    | -------------- | ------- | ------- | ------------------------------------------------------------ |
    | inp            | (N, C)  | [r]     | [r]                                                          |
    | weight         | (OC, C) | [r]     | [r]                                                          |
    | bias           | (OC,)   | [r]     | may be None: the classifier has none                         |
    | out, dout      | (N, OC) | [w]     | [r]                                                          |
    | dinp           | (N, C)  |         | [w]                                                          |
    | dweight, dbias | as theirs |       | [+] over the micro-steps; dbias None where bias is           |
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_scratch, check_width
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import (
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    add_up_warps,
    chunk_rows,
    column_blocks,
    partials_size,
)

ZERO = np.float32(0.0)
ROWS_AT_A_TIME = 4  # loads that a thread of the bias's gradient has in flight
HELD = ROWS_AT_A_TIME * WIDTH


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def matmul_forward_ref(out, inp, weight, bias):
    """The definition. Arguments as in the table above; float32 or float64."""
    np.matmul(inp, weight.T, out=out)
    if bias is not None:
        out += bias


def matmul_backward_ref(dinp, dweight, dbias, dout, inp, weight, scratch=None):
    """The chain rule. Arguments as in the table above; `scratch` is for the kernel and stays untouched."""
    np.matmul(dout, weight, out=dinp)
    dweight += dout.T @ inp
    if dbias is not None:
        dbias += dout.sum(axis=0)


# ----------------------------------------------------------------------------------------------------------- kernel


@cuda.jit(cache=True)
def bias_backward_kernel(partials, dout, rows_per_chunk):
    """This block's sums over one chunk of rows of dout, for COLUMNS_PER_WARP columns. `reductions` tells the plan.

    partials (chunks, OC), flat.
    """
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    N, OC = dout.shape
    chunk = cuda.blockIdx.x
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    d = cuda.local.array(HELD, float32)
    total = cuda.local.array(WIDTH, float32)
    for k in range(WIDTH):
        total[k] = ZERO
    if c < OC:
        stop = min((chunk + 1) * rows_per_chunk, N)
        for first in range(chunk * rows_per_chunk + warp, stop, ROWS_AT_A_TIME * COLUMN_WARPS):
            for r in range(ROWS_AT_A_TIME):
                row = first + r * COLUMN_WARPS
                if row < stop:
                    load8(dout, row * OC + c, d, r * WIDTH)
                else:
                    for k in range(WIDTH):
                        d[r * WIDTH + k] = ZERO
            for i in range(HELD):
                total[i % WIDTH] += d[i]
    add_up_warps(total)  # outside of the condition: it has barriers
    if warp == 0 and c < OC:
        store8(partials, chunk * OC + c, total)


# -------------------------------------------------------------------------------------------------------- launchers


def matmul_scratch_size(OC):
    """How many float32 `matmul_backward` needs as scratch for the bias's gradient."""
    return partials_size(OC)


def matmul_forward(out, inp, weight, bias):
    """out = inp weightᵀ + bias. The arrays decide: NumPy runs the reference, device arrays cuBLASLt.

    out [w] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)   bias [r] (OC,) or None
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_forward", {"N": N, "C": C, "OC": OC}, "Weights are (out, in).",
        out=(out, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), bias=(bias, "OC"),
    )  # fmt: skip
    if on_host(inp):
        return matmul_forward_ref(out, inp, weight, bias)
    gemm(out, inp, weight, N, OC, C, transpose_b=True, bias=bias)


def matmul_gelu_forward(out, before_gelu, inp, weight, bias):
    """out = GELU(before_gelu), before_gelu = inp weightᵀ + bias, in one pass: cuBLASLt's epilogue. On a real GPU only.

    out, before_gelu [w] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)   bias [r] (OC,)
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_gelu_forward", {"N": N, "C": C, "OC": OC}, "Weights are (out, in).",
        out=(out, "N OC"), before_gelu=(before_gelu, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), bias=(bias, "OC"),
    )  # fmt: skip
    gemm(out, inp, weight, N, OC, C, transpose_b=True, bias=bias, gelu_to=before_gelu)


def matmul_backward(dinp, dweight, dbias, dout, inp, weight, scratch, before_gelu=None):
    """Gradients of matmul_forward.

    dinp [w] (N, C)   dweight [+] (OC, C)   dbias [+] (OC,) or None   dout [r] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)
    scratch [w] float32, flat, at least matmul_scratch_size(OC); None on the host or without dbias
    before_gelu [r] (N, C) or None: if inp is GELU(before_gelu), dinp becomes the gradient of before_gelu, in cuBLASLt's epilogue.
    On a real GPU only.
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_backward", {"N": N, "C": C, "OC": OC}, "Weights are (out, in).",
        dinp=(dinp, "N C"), dweight=(dweight, "OC C"), dbias=(dbias, "OC"),
        dout=(dout, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), before_gelu=(before_gelu, "N C"),
    )  # fmt: skip
    if on_host(inp):
        return matmul_backward_ref(dinp, dweight, dbias, dout, inp, weight, scratch)
    if dbias is not None:  # before anything is accumulated
        check_width("matmul_backward", OC=OC)
        check_scratch("matmul_backward", scratch, matmul_scratch_size(OC))
    gemm(dweight, dout, inp, OC, C, N, transpose_a=True, accumulate=True)
    if dbias is not None:
        chunks, rows_per_chunk = chunk_rows(N, OC)
        grid = (chunks, column_blocks(OC))
        bias_backward_kernel[grid, COLUMN_WARPS * WARP_SIZE, compute_stream()](scratch, dout, rows_per_chunk)
        accumulate_partials([dbias], scratch, chunks)
    gemm(dinp, dout, weight, N, C, OC, gelu_of=before_gelu)
