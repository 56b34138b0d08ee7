"""GELU, the MLP's nonlinearity, in the tanh form that GPT-2 uses.

    u(x) = sqrt(2/π) (x + 0.044715 x³)        out = ½ x (1 + tanh u)
    d out / d x = ½ (1 + tanh u) + ½ x (1 - tanh² u) u'        u' = sqrt(2/π) (1 + 3 · 0.044715 x²)

Hendrycks, Gimpel 2016, "Gaussian Error Linear Units", section 2 (arXiv:1606.08415).

    | array     | shape   | forward | backward                                              |
    | --------- | ------- | ------- | ----------------------------------------------------- |
    | inp       | (N, 4C) | [r]     | [r]                                                   |
    | out, dout | (N, 4C) | [w]     | [r]                                                   |
    | dinp      | (N, 4C) |         | [w] may be the same array as dout: gradient in place  |
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.float32_math import tanh
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8

THREADS = 32 if SIMULATING else 256

# float32 constants: a bare Python literal is float64, and one of them makes the whole expression float64, 64 times slower on a GPU.
HALF, ONE = np.float32(0.5), np.float32(1.0)
SQRT_2_OVER_PI = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)
THREE_CUBIC = np.float32(3 * 0.044715)


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def gelu_forward_ref(out, inp):
    """The definition, a block of rows at a time so that the values between stay in the processor's cache."""
    for rows in _blocks_of_rows(inp):
        x = inp[rows]
        tanh_u = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
        out[rows] = HALF * x * (ONE + tanh_u)


def gelu_backward_ref(dinp, dout, inp):
    """The derivative, a block of rows at a time."""
    for rows in _blocks_of_rows(inp):
        x = inp[rows]
        square = x * x
        tanh_u = np.tanh(SQRT_2_OVER_PI * x * (ONE + CUBIC * square))
        slope_u = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * square)
        dinp[rows] = dout[rows] * HALF * (ONE + tanh_u + x * (ONE - tanh_u * tanh_u) * slope_u)


def _blocks_of_rows(inp, elements=1 << 15):
    step = max(1, elements // inp.shape[1])
    return (slice(start, start + step) for start in range(0, inp.shape[0], step))


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit
def gelu_forward_kernel(out, inp):
    """One thread makes eight numbers."""
    i = cuda.grid(1) * WIDTH
    if i >= inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    for k in range(WIDTH):
        tanh_u = tanh(SQRT_2_OVER_PI * (x[k] + CUBIC * x[k] * x[k] * x[k]))
        x[k] = HALF * x[k] * (ONE + tanh_u)
    store8(out, i, x)


@cuda.jit
def gelu_backward_kernel(dinp, dout, inp):
    """One thread makes eight numbers."""
    i = cuda.grid(1) * WIDTH
    if i >= inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    load8(dout, i, d)
    for k in range(WIDTH):
        square = x[k] * x[k]
        tanh_u = tanh(SQRT_2_OVER_PI * x[k] * (ONE + CUBIC * square))
        slope_u = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * square)
        d[k] = d[k] * HALF * (ONE + tanh_u + x[k] * (ONE - tanh_u * tanh_u) * slope_u)
    store8(dinp, i, d)


# -------------------------------------------------------------------------------------------------------- launchers


def gelu_forward(out, inp):
    """out = GELU(inp). The arrays decide: NumPy runs the reference, device arrays the kernel.

    out [w] (N, D)   inp [r] (N, D), D = 4C in GPT-2.   Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, D = inp.shape
    check_arrays("gelu_forward", {"N": N, "D": D}, out=(out, "N D"), inp=(inp, "N D"))
    if on_host(inp):
        return gelu_forward_ref(out, inp)
    check_width("gelu_forward", D=D)
    gelu_forward_kernel[-(-N * D // (THREADS * WIDTH)), THREADS, compute_stream()](out, inp)


def gelu_backward(dinp, dout, inp):
    """dinp = dout * GELU'(inp).

    dinp [w] (N, D), may be dout itself   dout, inp [r] (N, D).   Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, D = inp.shape
    check_arrays("gelu_backward", {"N": N, "D": D}, dinp=(dinp, "N D"), dout=(dout, "N D"), inp=(inp, "N D"))
    if on_host(inp):
        return gelu_backward_ref(dinp, dout, inp)
    check_width("gelu_backward", D=D)
    gelu_backward_kernel[-(-N * D // (THREADS * WIDTH)), THREADS, compute_stream()](dinp, dout, inp)
