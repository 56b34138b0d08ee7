"""GELU, fast: the formulas of layers/gelu.py rewritten so that memory, not arithmetic, limits the kernels.

What is different from the plain kernels, and what it gains. Figures: one H200, 2026-11-22, bf16, as shares of the rate of a
device-to-device copy.

    One exponential instead of a tanh. tanh is some twenty ordinary instructions, which make the kernel compute-bound. With
    s = ½ (1 + tanh u), the logistic function of 2 u,

        s = 1 / (1 + exp(-2 u))        out = x s        d out / d x = s (1 + x (1 - s) 2 u')

    there are two special instructions, exp2 and a reciprocal, and no cancellation: forward reaches 104 %, backward 107 %. The hardware's
    own tanh (tanh.approx.f32) is too coarse: its error of 2^-11 is absolute, and for negative x 1 + tanh u is nearly 0.

    Memory is moved 16 bytes at a time, eight elements per load or store (gpu/memory_access.py), and in forward each thread has two loads in
    flight.

    The sum for dbias is fused into backward. dinp is the dout of the linear layer below, so its column sums are that layer's bias gradient.
    A thread that works down the rows has the terms in registers, which saves a kernel that would read dinp again: 90 to 99 %, depending on
    how many blocks share the rows. If cuBLASLt applies the derivative of the GELU in the epilogue of the product above (matmul_backward
    with before_gelu), no kernel of this file is needed in backward: 0.546 + 0.096 ms instead of 0.382 + 0.303 (GPT-2 124M, 65,536 tokens).

    | array     | shape, type                | forward | backward                                                  |
    | --------- | -------------------------- | ------- | --------------------------------------------------------- |
    | inp       | (N, D) float32 or bfloat16 | [r]     | [r] D = 4C, a multiple of 8                               |
    | out, dout | (N, D) same type           | [w]     | [r]                                                       |
    | dinp      | (N, D) same type           |         | [w] may be the same array as dout: then in place          |
    | dbias     | (D,) same type             |         | [+] Σ_rows dinp, as rounded; may be None                  |
    | scratch   | flat, float32              |         | [w] partial sums: gelu_scratch_size(D); None without dbias |
    | largest   | (1,) float32               |         | [+] raised to the largest |dinp| (float8.py); or None     |
"""

import functools

import numpy as np
from numba import cuda, float32, int32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float8 import magnitude_bits, raise_largest
from gpt2_numba.gpu.logistic import logistic_of_2u
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
    warp_largest,
)
from gpt2_numba.integers import ceil_div

THREADS = 32 if SIMULATING else 256
VECTORS = 2  # times eight elements per thread in forward: one load in flight per thread does not keep the memory busy
PER_THREAD = VECTORS * WIDTH  # elements

# float32 constants: a bare Python literal is float64, and one of them makes the whole expression float64, up to 64 times slower on a GPU.
ONE, ZERO = np.float32(1.0), np.float32(0.0)
# 2 u' = TWICE_DU + TWICE_DU_SQUARE x²
TWICE_DU = np.float32(2 * np.sqrt(2 / np.pi))
TWICE_DU_SQUARE = np.float32(2 * np.sqrt(2 / np.pi) * 3 * 0.044715)


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def gelu_derivative(x):
    """d out / d x."""
    s = logistic_of_2u(x)
    return s * (ONE + x * (ONE - s) * (TWICE_DU + TWICE_DU_SQUARE * x * x))


@cuda.jit(cache=True)
def gelu_forward_kernel(out, inp):
    """A thread computes VECTORS times eight elements: eight next to its neighbours', then eight one block's width further on."""
    start = (cuda.blockIdx.x * VECTORS * cuda.blockDim.x + cuda.threadIdx.x) * WIDTH
    x = cuda.local.array(PER_THREAD, float32)
    for j in range(VECTORS):
        i = start + j * cuda.blockDim.x * WIDTH
        if i < inp.size:
            load8(inp, i, x, j * WIDTH)
    for j in range(VECTORS):
        i = start + j * cuda.blockDim.x * WIDTH
        if i < inp.size:
            for k in range(j * WIDTH, (j + 1) * WIDTH):
                x[k] *= logistic_of_2u(x[k])
            store8(out, i, x, j * WIDTH)


@cuda.jit(cache=True)
def gelu_backward_kernel(dinp, dout, inp):
    """One thread per eight elements."""
    i = cuda.grid(1) * WIDTH
    if i >= inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    load8(dout, i, d)
    for k in range(WIDTH):
        d[k] *= gelu_derivative(x[k])
    store8(dinp, i, d)


@functools.cache
def make_dbias_kernel(has_largest):
    """The gelu_backward_dbias_kernel. has_largest: it raises largest[0] to the largest |dinp|."""

    @cuda.jit(cache=True)
    def gelu_backward_dbias_kernel(dinp, partials, largest, dout, inp, rows_per_chunk):
        """A thread works down one chunk of rows, eight columns wide, and sums what it writes: step 1 of the scheme in gpu/reductions.py.

        partials [w] (chunks, D), flat.   largest [+] (1,) float32, if has_largest; else any array
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
        bits = int32(0)  # of the largest |dinp|
        if c < D:
            for row in range(chunk * rows_per_chunk + warp, min((chunk + 1) * rows_per_chunk, N), COLUMN_WARPS):
                load8(inp, row * D + c, x)
                load8(dout, row * D + c, d)
                for k in range(WIDTH):
                    d[k] *= gelu_derivative(x[k])
                round8(dinp, d)  # sum what is stored
                for k in range(WIDTH):
                    total[k] += d[k]
                if has_largest:
                    for k in range(WIDTH):
                        bits = max(bits, magnitude_bits(d[k]))
                store8(dinp, row * D + c, d)
        if has_largest:
            bits = warp_largest(bits)
            if lane == 0:
                raise_largest(largest, bits)
        add_up_warps(total)  # outside the condition, since it has barriers
        if warp == 0 and c < D:
            store8(partials, chunk * D + c, total)

    return gelu_backward_dbias_kernel


# -------------------------------------------------------------------------------------------------------- launchers


def gelu_forward(out, inp):
    """out = GELU(inp).

    out [w] (N, D)   inp [r] (N, D), D = 4C in GPT-2.   Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, D = inp.shape
    check_arrays("gelu_forward", {"N": N, "D": D}, out=(out, "N D"), inp=(inp, "N D"))
    check_on_device("gelu_forward", inp, "layers/gelu.py")
    check_width("gelu_forward", D=D)
    gelu_forward_kernel[ceil_div(N * D, THREADS * PER_THREAD), THREADS, compute_stream()](out, inp)


def gelu_scratch_size(D):
    """Elements of scratch, float32, that `gelu_backward` needs for dbias."""
    return partials_size(D)


def gelu_backward(dinp, dout, inp, dbias=None, scratch=None, largest=None):
    """dinp = dout * GELU'(inp), dbias += its column sums.

    dinp [w] (N, D), may be dout itself   dbias [+] (D,) or None   dout, inp [r] (N, D)
    scratch [w] float32, flat, at least gelu_scratch_size(D); None without dbias
    largest [+] (1,) float32 or None: raised to the largest |dinp|, for layers/fast/float8.py; with dbias only
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, D = inp.shape
    check_arrays(
        "gelu_backward",
        {"N": N, "D": D, "1": 1},
        dinp=(dinp, "N D"),
        dout=(dout, "N D"),
        inp=(inp, "N D"),
        dbias=(dbias, "D"),
        largest=(largest, "f32 1"),
    )
    check_on_device("gelu_backward", inp, "layers/gelu.py")
    check_width("gelu_backward", D=D)
    if dbias is None:
        gelu_backward_kernel[ceil_div(N * D, THREADS * WIDTH), THREADS, compute_stream()](dinp, dout, inp)
        return
    check_scratch("gelu_backward", scratch, gelu_scratch_size(D))
    chunks, rows_per_chunk = chunk_rows(N, D)
    grid = (chunks, column_blocks(D))
    kernel, largest = make_dbias_kernel(largest is not None), scratch if largest is None else largest
    kernel[grid, COLUMN_WARPS * WARP_SIZE, compute_stream()](dinp, scratch, largest, dout, inp, rows_per_chunk)
    accumulate_partials([dbias], scratch, chunks)
