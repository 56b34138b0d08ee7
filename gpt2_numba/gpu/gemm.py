"""Matrix products on the device: cuBLASLt on a GPU, NumPy in the simulator. A matrix product written as a kernel: layers/matmul.py."""

import numpy as np

from gpt2_numba.gpu.backend import SIMULATING, copy_to_host, to_storage
from gpt2_numba.gpu.cublaslt import cublaslt_float8_gemm, cublaslt_gemm
from gpt2_numba.gpu.float8 import FORMATS, float8_values
from gpt2_numba.gpu.launches import observable

_tf32_allowed = True


def allow_tf32(allowed):
    """Set whether float32 products may round their factors to TF32 (10 bits of mantissa), which is several times faster. Process-wide."""
    global _tf32_allowed
    _tf32_allowed = bool(allowed)


def tf32_allowed():
    """The last setting of allow_tf32; True by default."""
    return _tf32_allowed


# Many parameters, as in every BLAS: they describe one product. The sizes are given, since rows with padding do not reveal them.
@observable
def gemm(
    out, a, b, *, rows, columns, inner, transpose_a=False, transpose_b=False, alpha=1.0, accumulate=False, bias=None,
    save_before_gelu=None, before_gelu=None,
):  # fmt: skip
    """out = alpha op(a) op(b) (+ out if accumulate) (+ bias), summed in float32, then rounded to the type of out.

    With accumulate in bfloat16, cuBLASLt rounds twice: first the product, then its sum with the previous contents of out (seen with 13.1
    on an H200: 0.375 instead of 0.361, since a product of about 3 had been rounded to a multiple of 1/64). llm.c's gradients do the same.

    out  [w] or [+] (rows, columns)
    a    [r] (rows, inner), stored as (inner, rows) if transpose_a
    b    [r] (inner, columns), stored as (columns, inner) if transpose_b
    bias [r] (columns,) or None, added to every row; cannot be combined with accumulate
    save_before_gelu [w] (rows, columns) or None: receives the result, and out receives its GELU; needs a bias. cuBLASLt only
    before_gelu      [r] (rows, columns) or None: the product is multiplied by the GELU's derivative at before_gelu. cuBLASLt only
    out, a and b all have a leading batch axis, or none has. Stored rows may be longer than these sizes: the padding is not touched.
    All arrays have one type, float32 or bfloat16 bits, and are C-contiguous and on the device.
    Raises ValueError for a bias together with accumulate, and for GELU in the simulator.
    """
    if accumulate and bias is not None:
        raise ValueError("gemm: a bias is for a layer's output, accumulate for gradients: not both")
    if SIMULATING:
        if save_before_gelu is not None or before_gelu is not None:
            raise ValueError("gemm: GELU in the epilogue needs cuBLASLt; in the simulator call the GELU layer")
        simulated_gemm(out, a, b, rows, columns, inner, transpose_a, transpose_b, alpha, accumulate, bias)
    else:
        cublaslt_gemm(
            out, a, b, rows, columns, inner, transpose_a, transpose_b, alpha, accumulate, bias, _tf32_allowed, save_before_gelu, before_gelu
        )


def simulated_gemm(out, a, b, rows, columns, inner, transpose_a, transpose_b, alpha, accumulate, bias):
    """cuBLASLt's twin for the simulator, in NumPy; it rounds once. Its parameters are those of `gemm`."""
    a = copy_to_host(a[..., :inner, :rows]).swapaxes(-1, -2) if transpose_a else copy_to_host(a[..., :rows, :inner])
    b = copy_to_host(b[..., :columns, :inner]).swapaxes(-1, -2) if transpose_b else copy_to_host(b[..., :inner, :columns])
    result = np.float32(alpha) * (a @ b)
    if accumulate:
        result += copy_to_host(out[..., :rows, :columns])
    if bias is not None:
        result += copy_to_host(bias)
    out[..., :rows, :columns] = to_storage(result, out.dtype)


# Many parameters: each factor has an array, a scale and a format.
@observable
def float8_gemm(out, a, b, a_scale, b_scale, *, formats, accumulate=False, bias=None, fast_accumulation=False):
    """out = a_scale b_scale a bᵀ (+ out if accumulate) (+ bias), for factors of eight bits. Both lie in memory along the sum.

    out  [w] or [+] (rows, columns) bfloat16
    a    [r] (rows, inner) uint8, C-contiguous          b  [r] (columns, inner) uint8; all three sizes multiples of 16
    a_scale, b_scale  [r] (1,) float32, with which the products are multiplied; their addresses are multiples of 16
    formats           of a and b: names in gpu/float8.py, at most one of them e5m2
    bias [r] (columns,) bfloat16 or None; cannot be combined with accumulate
    fast_accumulation let the tensor cores keep partial sums in their own registers, which are shorter than float32
    On a GPU from compute capability 8.9 on. Raises ValueError for a bias together with accumulate.
    """
    if accumulate and bias is not None:
        raise ValueError("float8_gemm: a bias is for a layer's output, accumulate for gradients: not both")
    if not SIMULATING:
        return cublaslt_float8_gemm(out, a, b, a_scale, b_scale, formats, accumulate, bias, fast_accumulation)
    a, b = (
        float8_values(copy_to_host(factor), FORMATS[name]) * copy_to_host(scale)
        for factor, scale, name in ((a, a_scale, formats[0]), (b, b_scale, formats[1]))
    )
    result = a @ b.T
    if accumulate:
        result += copy_to_host(out)
    if bias is not None:
        result += copy_to_host(bias)
    out[:] = to_storage(result, out.dtype)
