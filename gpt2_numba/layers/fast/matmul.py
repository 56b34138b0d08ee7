"""The fully connected layer, fast: its three matrix products by cuBLASLt, on tensor cores, and the bias's gradient at the speed of memory.

What is different from the plain kernels of layers/matmul.py, and what it gains. Figures: one H200, 2026-11-22, cuBLASLt 13.1, bf16, GPT-2
124M with 65,536 tokens / 1558M with 16,384.

    The products run on NVIDIA's library (gpu/gemm.py), whose kernels use the GPU's tensor cores: qkv forward 702 / 742 TFLOP/s, 88 / 96 %
    of the rate of one large square product. Nearly all of a GPT's arithmetic is here, 72 % of a training step.

    The library's algorithm is chosen by trying, under load (gpu/matmul_search.py), instead of taking the first: all products of a
    micro-step in 74.6 instead of 76.2 ms / 235.1 instead of 237.1.

    GELU is computed in the product's epilogue, before the result leaves the chip (matmul_gelu_forward): 0.635 ms instead of 0.532 + 0.193 /
    0.540 instead of 0.542 + 0.101. Likewise its derivative (before_gelu): with a kernel for fc's bias gradient 0.546 + 0.096 ms instead of
    0.382 + 0.303 / 0.482 + 0.055 instead of 0.412 + 0.184.

    The bias's gradient is a sum over rows and bound by memory: 16 bytes a load, four loads in flight per thread, the rows cut into chunks
    that as many blocks share (gpu/reductions.py): 90 to 95 / 79 to 84 % of the rate of a copy. By cuBLASLt, as a by-product of the product
    that makes dweight, it cost more: qkv 0.487 ms instead of 0.377 + 0.077 / 0.450 instead of 0.392 + 0.042.

    | array          | shape, type                 | forward | backward                                                               |
    | -------------- | --------------------------- | ------- | ---------------------------------------------------------------------- |
    | inp            | (N, C) float32 or bfloat16  | [r]     | [r]                                                                    |
    | weight         | (OC, C) same type           | [r]     | [r]                                                                    |
    | bias           | (OC,) same type             | [r]     | may be None: the classifier has none                                   |
    | out, dout      | (N, OC) same type           | [w]     | [r]                                                                    |
    | before_gelu    | as out; backward as inp     | [w]     | [r] the inp of the GELU that is fused in; may be None                  |
    | dinp           | (N, C) same type            |         | [w]                                                                    |
    | dweight, dbias | as weight, bias             |         | [+] dbias may be None; else OC a multiple of 8                         |
    | scratch        | flat, float32               |         | [w] partial sums: matmul_scratch_size(OC); None without dbias          |
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import compute_stream
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


# ----------------------------------------------------------------------------------------------------------- kernel


@cuda.jit(cache=True)
def bias_backward_kernel(partials, dout, rows_per_chunk):
    """This block's sums over one chunk of rows of dout, for COLUMNS_PER_WARP columns. The plan: gpu/reductions.py.

    partials [w] (chunks, OC), flat.
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
    add_up_warps(total)  # not under the condition: it has barriers
    if warp == 0 and c < OC:
        store8(partials, chunk * OC + c, total)


# -------------------------------------------------------------------------------------------------------- launchers


def matmul_scratch_size(OC):
    """How many float32 `matmul_backward` needs as scratch for the bias's gradient."""
    return partials_size(OC)


def matmul_forward(out, inp, weight, bias):
    """out = inp weightᵀ + bias.

    out [w] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)   bias [r] (OC,) or None
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_forward", {"N": N, "C": C, "OC": OC}, "Weights are (out, in).",
        out=(out, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), bias=(bias, "OC"),
    )  # fmt: skip
    check_on_device("matmul_forward", inp, "layers/matmul.py")
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
    check_on_device("matmul_gelu_forward", inp, "layers/matmul.py")
    gemm(out, inp, weight, N, OC, C, transpose_b=True, bias=bias, gelu_to=before_gelu)


def matmul_backward(dinp, dweight, dbias, dout, inp, weight, scratch, before_gelu=None):
    """Gradients of matmul_forward.

    dinp [w] (N, C)   dweight [+] (OC, C)   dbias [+] (OC,) or None   dout [r] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)
    scratch [w] float32, flat, at least matmul_scratch_size(OC); None without dbias
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
    check_on_device("matmul_backward", inp, "layers/matmul.py")
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
