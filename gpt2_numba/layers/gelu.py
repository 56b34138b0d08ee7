"""GELU, the MLP's nonlinearity, in the tanh form that GPT-2 uses: x far above 0 passes almost unchanged, x far below 0 becomes almost 0.

    u = sqrt(2/π) (x + 0.044715 x³)        out = ½ x (1 + tanh u)

Backward. Each number of out depends on one number of inp alone, so dinp = dout · d out / d x. x occurs twice, as the factor in front and
inside tanh; the product rule gives a term for each:

    from the factor x:    ½ (1 + tanh u)
    from tanh u:          ½ x · (1 - tanh² u) · u'        since tanh' = 1 - tanh², and by the chain rule times
                                                          u' = sqrt(2/π) (1 + 3 · 0.044715 x²)

    dinp = dout (½ (1 + tanh u) + ½ x (1 - tanh² u) u')

Hendrycks, Gimpel 2016, "Gaussian Error Linear Units", section 2 (arXiv:1606.08415).

    | array     | shape  | forward | backward                                                  |
    | --------- | ------ | ------- | --------------------------------------------------------- |
    | inp       | (N, D) | [r]     | [r]                                                       |
    | out, dout | (N, D) | [w]     | [r]                                                       |
    | dinp      | (N, D) |         | [w] may be the same array as dout: computed in place      |

N = B * T rows, one for each token; D = 4C in GPT-2. [r] read, [w] overwritten.
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.cpu_threads import in_pieces
from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS

# float32 constants. A bare Python literal is float64, and one of them makes the whole expression float64, many times slower on most GPUs.
# The references use the same ones, in float64 too, although they carry only the 24 bits of float32.
HALF, ONE = np.float32(0.5), np.float32(1)
SQRT_2_OVER_PI = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)
THREE_CUBIC = np.float32(3 * 0.044715)


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def gelu_forward_ref(out, inp):
    """The definition. Arguments as in the table above; float32 or float64."""
    tanh_u = np.tanh(SQRT_2_OVER_PI * (inp + CUBIC * inp * inp * inp))
    out[:] = HALF * inp * (ONE + tanh_u)


def gelu_backward_ref(dinp, dout, inp):
    """dout times the slope."""
    square = inp * inp
    tanh_u = np.tanh(SQRT_2_OVER_PI * inp * (ONE + CUBIC * square))
    du = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * square)
    dinp[:] = dout * HALF * (ONE + tanh_u + inp * (ONE - tanh_u * tanh_u) * du)


# ---------------------------------------------------------------------------------------------------- plain kernels


@cuda.jit(cache=True)
def gelu_forward_kernel(out, inp):
    """One block per row; neighbouring threads work on neighbouring numbers."""
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        x = inp[row, c]
        tanh_u = math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
        out[row, c] = HALF * x * (ONE + tanh_u)


@cuda.jit(cache=True)
def gelu_backward_kernel(dinp, dout, inp):
    """One block per row. Forward saves only its input: computing tanh again is cheaper than reading it from memory."""
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        x = inp[row, c]
        tanh_u = math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
        du = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * x * x)
        slope = HALF * (ONE + tanh_u) + HALF * x * (ONE - tanh_u * tanh_u) * du
        dinp[row, c] = dout[row, c] * slope


# -------------------------------------------------------------------------------------------------------- launchers


def gelu_forward(out, inp):
    """out = GELU(inp). NumPy arrays go to the reference, device arrays to the kernel.

    out [w] (N, D)   inp [r] (N, D).   Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, D = inp.shape
    check_arrays("gelu_forward", {"N": N, "D": D}, out=(out, "N D"), inp=(inp, "N D"))
    if on_host(inp):
        return in_pieces(gelu_forward_ref, (out, inp))
    check_float32("gelu_forward", inp)
    gelu_forward_kernel[N, THREADS, compute_stream()](out, inp)


def gelu_backward(dinp, dout, inp):
    """dinp = dout times the slope of the GELU at inp.

    dinp [w] (N, D), may be dout itself   dout, inp [r] (N, D).   Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, D = inp.shape
    check_arrays("gelu_backward", {"N": N, "D": D}, dinp=(dinp, "N D"), dout=(dout, "N D"), inp=(inp, "N D"))
    if on_host(inp):
        return in_pieces(gelu_backward_ref, (dinp, dout, inp))
    check_float32("gelu_backward", inp)
    gelu_backward_kernel[N, THREADS, compute_stream()](dinp, dout, inp)
