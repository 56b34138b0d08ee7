"""The linear layer, fast: its three matrix products by cuBLASLt on tensor cores, and the bias gradient at the speed of memory.

What is different from the plain kernels of layers/matmul.py, and what it gains. Figures: one H200, 2026-11-22, cuBLASLt 13.1, bf16, GPT-2
124M with 65,536 tokens / 1558M with 16,384.

    The products run on NVIDIA's library (gpu/gemm.py), whose kernels use the GPU's tensor cores: qkv forward 702 / 742 TFLOP/s, 88 / 96 %
    of the rate of one large square product. Nearly all of a GPT's arithmetic is here, and 73 / 80 % of the time of a step (2026-11-29).

    The library's algorithm is chosen by timing the candidates under load (gpu/matmul_search.py), instead of taking its first suggestion:
    all products of a micro-step take 74.6 instead of 76.2 ms / 235.1 instead of 237.1.

    GELU is computed in the product's epilogue, before the result leaves the chip (matmul_gelu_forward): 0.635 ms instead of 0.532 + 0.193 /
    0.540 instead of 0.542 + 0.101. Likewise its derivative (before_gelu): with a kernel for fc's bias gradient 0.546 + 0.096 ms instead of
    0.382 + 0.303 / 0.482 + 0.055 instead of 0.412 + 0.184.

    The bias gradient is a sum over rows, limited by memory (gpu/column_sums.py): 90 to 95 / 79 to 84 % of the rate of a copy. By cuBLASLt,
    as a by-product of dweight's product, it cost more: qkv 0.487 ms instead of 0.377 + 0.077 / 0.450 instead of 0.392 + 0.042. Where the
    kernel that makes dout adds up its columns, dbias is None.

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

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.column_sums import bias_backward
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.gpu.reductions import partials_size
from gpt2_numba.layers.matmul import SHAPE_HINT


def matmul_scratch_size(OC):
    """Elements of scratch, float32, that `matmul_backward` needs for dbias."""
    return partials_size(OC)


def matmul_forward(out, inp, weight, bias):
    """out = inp weightᵀ + bias.

    out [w] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)   bias [r] (OC,) or None
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_forward", {"N": N, "C": C, "OC": OC}, SHAPE_HINT,
        out=(out, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), bias=(bias, "OC"),
    )  # fmt: skip
    check_on_device("matmul_forward", inp, "layers/matmul.py")
    gemm(out, inp, weight, rows=N, columns=OC, inner=C, transpose_b=True, bias=bias)


def matmul_gelu_forward(out, before_gelu, inp, weight, bias):
    """out = GELU(before_gelu), before_gelu = inp weightᵀ + bias, in one pass, by cuBLASLt's epilogue. On a real GPU only.

    out, before_gelu [w] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)   bias [r] (OC,)
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_gelu_forward", {"N": N, "C": C, "OC": OC}, SHAPE_HINT,
        out=(out, "N OC"), before_gelu=(before_gelu, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), bias=(bias, "OC"),
    )  # fmt: skip
    check_on_device("matmul_gelu_forward", inp, "layers/matmul.py")
    gemm(out, inp, weight, rows=N, columns=OC, inner=C, transpose_b=True, bias=bias, save_before_gelu=before_gelu)


def matmul_backward(dinp, dweight, dbias, dout, inp, weight, scratch, before_gelu=None):
    """Gradients of matmul_forward.

    dinp [w] (N, C)   dweight [+] (OC, C)   dbias [+] (OC,) or None   dout [r] (N, OC)   inp [r] (N, C)   weight [r] (OC, C)
    scratch [w] float32, flat, at least matmul_scratch_size(OC); None without dbias
    before_gelu [r] (N, C) or None: inp is GELU(before_gelu), and dinp becomes the gradient of before_gelu, in cuBLASLt's epilogue.
    On a real GPU only.
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_backward", {"N": N, "C": C, "OC": OC}, SHAPE_HINT,
        dinp=(dinp, "N C"), dweight=(dweight, "OC C"), dbias=(dbias, "OC"),
        dout=(dout, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), before_gelu=(before_gelu, "N C"),
    )  # fmt: skip
    check_on_device("matmul_backward", inp, "layers/matmul.py")
    if dbias is not None:  # before anything is accumulated
        check_width("matmul_backward", OC=OC)
        check_scratch("matmul_backward", scratch, matmul_scratch_size(OC))
    gemm(dweight, dout, inp, rows=OC, columns=C, inner=N, transpose_a=True, accumulate=True)
    if dbias is not None:
        bias_backward(dbias, dout, scratch)
    gemm(dinp, dout, weight, rows=N, columns=C, inner=OC, before_gelu=before_gelu)
