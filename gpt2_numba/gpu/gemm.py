"""Matrix products on the device: cuBLASLt on a GPU, NumPy in the simulator. A product to be read: layers/matmul.py."""

import numpy as np

from gpt2_numba.gpu.backend import SIMULATING, copy_to_host, to_storage
from gpt2_numba.gpu.cublaslt import cublaslt_gemm

_tf32_allowed = True


def allow_tf32(allowed):
    """Whether float32 products may round their factors to TF32 (10 bits of mantissa), several times faster. For the whole process."""
    global _tf32_allowed
    _tf32_allowed = bool(allowed)


def tf32_allowed():
    """What allow_tf32 has said last, True at first."""
    return _tf32_allowed


def gemm(out, a, b, M, N, K, transpose_a=False, transpose_b=False, alpha=1.0, accumulate=False, bias=None, gelu_to=None, gelu_of=None):
    """out = alpha op(a) op(b) (+ out if accumulate) (+ bias), summed in float32, then rounded to the type of out.

    With accumulate in bfloat16, cuBLASLt rounds twice: the product, then its sum with what out held before (seen with 13.1 on an H200:
    0.375 where 0.361 was right, since the product of size 3 had been rounded to a multiple of 1/64). llm.c's gradients do the same.

    out  [w] or [+] (M, N)    a [r] (M, K), stored (K, M) if transpose_a    b [r] (K, N), stored (N, K) if transpose_b
    bias [r] (N,) or None, added to every row; not together with accumulate
    gelu_to [w] (M, N) or None: the result goes there, and its GELU into out; needs a bias. cuBLASLt only
    gelu_of [r] (M, N) or None: the product is multiplied by the derivative of the GELU at gelu_of. cuBLASLt only
    All three with a leading batch axis, or none. Stored rows may be longer than the part in use: only the part is touched.
    All of one type, float32 or bfloat16 bits, C-contiguous, on the device.
    """
    if accumulate and bias is not None:
        raise ValueError("gemm: a bias is for a layer's output, accumulate for gradients: not both")
    if SIMULATING:
        if gelu_to is not None or gelu_of is not None:
            raise ValueError("gemm: GELU in the epilogue needs cuBLASLt; in the simulator call the GELU layer")
        simulated_gemm(out, a, b, M, N, K, transpose_a, transpose_b, alpha, accumulate, bias)
    else:
        cublaslt_gemm(out, a, b, M, N, K, transpose_a, transpose_b, alpha, accumulate, bias, _tf32_allowed, gelu_to, gelu_of)


def simulated_gemm(out, a, b, M, N, K, transpose_a, transpose_b, alpha, accumulate, bias):
    """cuBLASLt's twin for the simulator, in NumPy: rounded once. Arguments as in `gemm`."""
    a = copy_to_host(a[..., :K, :M]).swapaxes(-1, -2) if transpose_a else copy_to_host(a[..., :M, :K])
    b = copy_to_host(b[..., :N, :K]).swapaxes(-1, -2) if transpose_b else copy_to_host(b[..., :K, :N])
    result = np.float32(alpha) * (a @ b)
    if accumulate:
        result += copy_to_host(out[..., :M, :N])
    if bias is not None:
        result += copy_to_host(bias)
    out[..., :M, :N] = to_storage(result, out.dtype)
