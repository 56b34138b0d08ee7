"""GELU, the MLP's nonlinearity, in the tanh form that GPT-2 uses.

    u(x) = sqrt(2/π) (x + 0.044715 x³)        out = ½ x (1 + tanh u)
    d out / d x = ½ (1 + tanh u) + ½ x (1 - tanh² u) u'        u' = sqrt(2/π) (1 + 3 · 0.044715 x²)

Hendrycks, Gimpel 2016, "Gaussian Error Linear Units", section 2 (arXiv:1606.08415).

The kernels write s for ½ (1 + tanh u), which is the logistic function of 2 u: no cancellation, and two special instructions instead of
a tanh of twenty ordinary ones, which would take longer than the memory.

    s = 1 / (1 + exp(-2 u))        out = x s        d out / d x = s (1 + x (1 - s) 2 u')

    | array     | shape   | forward | backward                                              |
    | --------- | ------- | ------- | ----------------------------------------------------- |
    | inp       | (N, 4C) | [r]     | [r]                                                   |
    | out, dout | (N, 4C) | [w]     | [r]                                                   |
    | dinp      | (N, 4C) |         | [w] may be the same array as dout: gradient in place  |
    | dbias     | (4C,)   |         | [+] Σ_rows dinp; may be None                          |

dinp is the dout of the linear layer below, so its column sums are that layer's bias gradient: made here, they save a read of dinp.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_scratch, check_width
from gpt2_numba.gpu.float32_math import exp2, reciprocal
from gpt2_numba.gpu.memory_access import WIDTH, load8, round8, store8
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

THREADS = 32 if SIMULATING else 256
EIGHTS = 2  # of numbers to a thread of the forward pass: one load in flight to a thread would not keep the memory busy
HELD = EIGHTS * WIDTH

# float32 constants: a bare Python literal is float64, and one of them makes the whole expression float64, 64 times slower on a GPU.
HALF, ONE, ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
SQRT_2_OVER_PI = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)
THREE_CUBIC = np.float32(3 * 0.044715)
# -2 u log2(e) = x (POWER + POWER_CUBIC x²)        2 u' = SLOPE + SLOPE_SQUARE x²
POWER = np.float32(-2 * np.sqrt(2 / np.pi) * np.log2(np.e))
POWER_CUBIC = np.float32(-2 * np.sqrt(2 / np.pi) * np.log2(np.e) * 0.044715)
SLOPE = np.float32(2 * np.sqrt(2 / np.pi))
SLOPE_SQUARE = np.float32(2 * np.sqrt(2 / np.pi) * 3 * 0.044715)


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def gelu_forward_ref(out, inp):
    """The definition, a block of rows at a time so that the values between stay in the processor's cache."""
    for rows in _blocks_of_rows(inp):
        x = inp[rows]
        tanh_u = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
        out[rows] = HALF * x * (ONE + tanh_u)


def gelu_backward_ref(dinp, dout, inp, dbias=None, scratch=None):
    """The derivative, a block of rows at a time. `scratch` is for the kernels."""
    for rows in _blocks_of_rows(inp):
        x = inp[rows]
        square = x * x
        tanh_u = np.tanh(SQRT_2_OVER_PI * x * (ONE + CUBIC * square))
        slope_u = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * square)
        dinp[rows] = dout[rows] * HALF * (ONE + tanh_u + x * (ONE - tanh_u * tanh_u) * slope_u)
    if dbias is not None:
        dbias += dinp.sum(axis=0)


def _blocks_of_rows(inp, elements=1 << 15):
    step = max(1, elements // inp.shape[1])
    return (slice(start, start + step) for start in range(0, inp.shape[0], step))


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def logistic_of_2u(x):
    """s(x) = 1 / (1 + exp(-2 u)). Where exp is infinite, s is 0."""
    return reciprocal(ONE + exp2(x * (POWER + POWER_CUBIC * x * x)))


@cuda.jit(device=True)
def slope(x):
    """d out / d x."""
    s = logistic_of_2u(x)
    return s * (ONE + x * (ONE - s) * (SLOPE + SLOPE_SQUARE * x * x))


@cuda.jit(cache=True)
def gelu_forward_kernel(out, inp):
    """One thread makes EIGHTS times eight numbers, a block a piece in which neighbouring threads' numbers lie side by side."""
    start = (cuda.blockIdx.x * EIGHTS * cuda.blockDim.x + cuda.threadIdx.x) * WIDTH
    x = cuda.local.array(HELD, float32)
    for e in range(EIGHTS):
        i = start + e * cuda.blockDim.x * WIDTH
        if i < inp.size:
            load8(inp, i, x, e * WIDTH)
    for e in range(EIGHTS):
        i = start + e * cuda.blockDim.x * WIDTH
        if i < inp.size:
            for k in range(e * WIDTH, (e + 1) * WIDTH):
                x[k] *= logistic_of_2u(x[k])
            store8(out, i, x, e * WIDTH)


@cuda.jit(cache=True)
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
        d[k] *= slope(x[k])
    store8(dinp, i, d)


@cuda.jit(cache=True)
def gelu_backward_dbias_kernel(dinp, partials, dout, inp, rows_per_chunk):
    """One thread goes down one chunk of rows, eight columns wide, and adds up what it writes. `reductions` tells the plan.

    partials (chunks, 4C), flat.
    """
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    N, D = inp.shape
    chunk = cuda.blockIdx.x
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    x = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    total = cuda.local.array(WIDTH, float32)
    for k in range(WIDTH):
        total[k] = ZERO
    if c < D:
        for row in range(chunk * rows_per_chunk + warp, min((chunk + 1) * rows_per_chunk, N), COLUMN_WARPS):
            load8(inp, row * D + c, x)
            load8(dout, row * D + c, d)
            for k in range(WIDTH):
                d[k] *= slope(x[k])
            round8(dinp, d)  # the sums are those of what is stored
            for k in range(WIDTH):
                total[k] += d[k]
            store8(dinp, row * D + c, d)
    add_up_warps(total)  # outside of the condition: it has barriers
    if warp == 0 and c < D:
        store8(partials, chunk * D + c, total)


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
    gelu_forward_kernel[-(-N * D // (THREADS * EIGHTS * WIDTH)), THREADS, compute_stream()](out, inp)


def gelu_scratch_size(D):
    """How many float32 `gelu_backward` needs as scratch for dbias."""
    return partials_size(D)


def gelu_backward(dinp, dout, inp, dbias=None, scratch=None):
    """dinp = dout * GELU'(inp), dbias += its column sums.

    dinp [w] (N, D), may be dout itself   dbias [+] (D,) or None   dout, inp [r] (N, D)
    scratch [w] float32, flat, at least gelu_scratch_size(D); None on the host or without dbias
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, D = inp.shape
    check_arrays("gelu_backward", {"N": N, "D": D}, dinp=(dinp, "N D"), dout=(dout, "N D"), inp=(inp, "N D"), dbias=(dbias, "D"))
    if on_host(inp):
        return gelu_backward_ref(dinp, dout, inp, dbias, scratch)
    check_width("gelu_backward", D=D)
    if dbias is None:
        gelu_backward_kernel[-(-N * D // (THREADS * WIDTH)), THREADS, compute_stream()](dinp, dout, inp)
        return
    check_scratch("gelu_backward", scratch, gelu_scratch_size(D))
    chunks, rows_per_chunk = chunk_rows(N, D)
    grid = (chunks, column_blocks(D))
    gelu_backward_dbias_kernel[grid, COLUMN_WARPS * WARP_SIZE, compute_stream()](dinp, scratch, dout, inp, rows_per_chunk)
    accumulate_partials([dbias], scratch, chunks)
