"""Layer normalisation: every token's C channels are brought to mean 0 and variance 1, then scaled and shifted.

    mean = 1/C Σ_c inp[c]        rstd = 1 / sqrt(1/C Σ_c (inp[c] - mean)² + eps)
    xhat = (inp - mean) rstd     out = xhat * weight + bias

Backward, with dxhat = dout * weight: since mean and rstd depend on every channel of the row, two row means are taken away:

    dinp += rstd (dxhat - mean_c(dxhat) - xhat mean_c(dxhat * xhat))
    dweight += Σ_rows dout * xhat        dbias += Σ_rows dout

Ba, Kiros, Hinton 2016, "Layer Normalization", equation 4 (arXiv:1607.06450). eps and the place before each branch as in GPT-2.

    | array               | shape  | forward | backward                                              |
    | ------------------- | ------ | ------- | ----------------------------------------------------- |
    | inp, out            | (N, C) | [r] [w] | inp [r]; out is not needed                            |
    | mean, rstd (float32)| (N,)   | [w]     | [r] saved by forward                                  |
    | weight, bias        | (C,)   | [r]     | weight [r]                                            |
    | dout                | (N, C) |         | [r]                                                   |
    | dinp                | (N, C) |         | [+] the residual stream's gradient flows past, too    |
    | dweight, dbias      | (C,)   |         | [+] over the micro-steps                              |

N = B * T rows. [w] overwritten, [+] accumulated into, [r] read.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_scratch, check_width
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import (
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    add_up_warps,
    chunk_rows,
    partials_size,
    warp_sum,
)

EPS = np.float32(1e-5)
ONE, ZERO = np.float32(1.0), np.float32(0.0)

# One warp a row. Four rows a block keep the block small enough that many fit on a multiprocessor.
ROWS_PER_BLOCK = 4


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def layernorm_forward_ref(out, mean, rstd, inp, weight, bias):
    """The definition. Arguments as in the table above; float32 or float64."""
    mean[:] = inp.mean(axis=1)
    np.subtract(inp, mean[:, None], out=out)
    variance = np.einsum("nc,nc->n", out, out) / inp.shape[1]  # of the centred values: E[x²] - E[x]² would cancel
    rstd[:] = 1 / np.sqrt(variance + EPS)
    out *= rstd[:, None]
    out *= weight
    out += bias


def layernorm_backward_ref(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch=None):
    """The chain rule. Arguments as in the table above; `scratch` is for the kernels and stays untouched."""
    xhat = (inp - mean[:, None]) * rstd[:, None]
    dbias += dout.sum(axis=0)
    dweight += np.einsum("nc,nc->c", dout, xhat)
    dxhat = dout * weight
    mean_dxhat = dxhat.mean(axis=1)
    mean_dxhat_xhat = np.einsum("nc,nc->n", dxhat, xhat) / inp.shape[1]
    dxhat -= mean_dxhat[:, None]
    xhat *= mean_dxhat_xhat[:, None]
    dxhat -= xhat
    dxhat *= rstd[:, None]
    dinp += dxhat


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit
def layernorm_forward_kernel(out, mean, rstd, inp, weight, bias):
    """One warp a row. The row is read three times; the second and third time it comes from the cache."""
    row = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE
    lane = cuda.threadIdx.x % WARP_SIZE
    N, C = inp.shape
    if row >= N:  # the whole warp leaves together, so the warp sums below have all their threads
        return
    one_over_C = ONE / float32(C)
    x = cuda.local.array(WIDTH, float32)
    w = cuda.local.array(WIDTH, float32)
    b = cuda.local.array(WIDTH, float32)

    total = ZERO
    for c in range(lane * WIDTH, C, COLUMNS_PER_WARP):
        load8(inp, row * C + c, x)
        for k in range(WIDTH):
            total += x[k]
    m = warp_sum(total) * one_over_C

    total = ZERO  # squares of the centred values, in a pass of their own: E[x²] - E[x]² would cancel
    for c in range(lane * WIDTH, C, COLUMNS_PER_WARP):
        load8(inp, row * C + c, x)
        for k in range(WIDTH):
            total += (x[k] - m) * (x[k] - m)
    s = ONE / sqrt(warp_sum(total) * one_over_C + EPS)

    for c in range(lane * WIDTH, C, COLUMNS_PER_WARP):
        load8(inp, row * C + c, x)
        load8(weight, c, w)
        load8(bias, c, b)
        for k in range(WIDTH):
            x[k] = (x[k] - m) * s * w[k] + b[k]
        store8(out, row * C + c, x)
    if lane == 0:
        mean[row] = m
        rstd[row] = s


@cuda.jit
def layernorm_backward_inp_kernel(dinp, dout, inp, weight, mean, rstd):
    """dinp, by rows: one warp a row, first the two row means, then the gradient."""
    row = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE
    lane = cuda.threadIdx.x % WARP_SIZE
    N, C = inp.shape
    if row >= N:
        return
    m, s = mean[row], rstd[row]
    x = cuda.local.array(WIDTH, float32)
    w = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)

    sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
    for c in range(lane * WIDTH, C, COLUMNS_PER_WARP):
        load8(inp, row * C + c, x)
        load8(dout, row * C + c, d)
        load8(weight, c, w)
        for k in range(WIDTH):
            dxhat = d[k] * w[k]
            sum_dxhat += dxhat
            sum_dxhat_xhat += dxhat * ((x[k] - m) * s)
    one_over_C = ONE / float32(C)
    mean_dxhat = warp_sum(sum_dxhat) * one_over_C
    mean_dxhat_xhat = warp_sum(sum_dxhat_xhat) * one_over_C

    for c in range(lane * WIDTH, C, COLUMNS_PER_WARP):
        load8(inp, row * C + c, x)
        load8(dout, row * C + c, d)
        load8(weight, c, w)
        for k in range(WIDTH):
            x[k] = s * (d[k] * w[k] - mean_dxhat - (x[k] - m) * s * mean_dxhat_xhat)
        load8(dinp, row * C + c, d)
        for k in range(WIDTH):
            d[k] += x[k]
        store8(dinp, row * C + c, d)


@cuda.jit
def layernorm_backward_params_kernel(partials, dout, inp, mean, rstd, rows_per_chunk):
    """dweight and dbias, by columns: this block's sums over one chunk of rows. `reductions` tells the plan.

    partials (2, chunks, C): the chunks' sums for dweight, then those for dbias.
    """
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    N, C = inp.shape
    chunk, chunks = cuda.blockIdx.x, cuda.gridDim.x
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    x = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    dw = cuda.local.array(WIDTH, float32)
    db = cuda.local.array(WIDTH, float32)
    for k in range(WIDTH):
        dw[k] = ZERO
        db[k] = ZERO
    if c < C:
        for row in range(chunk * rows_per_chunk + warp, min((chunk + 1) * rows_per_chunk, N), COLUMN_WARPS):
            m, s = mean[row], rstd[row]
            load8(inp, row * C + c, x)
            load8(dout, row * C + c, d)
            for k in range(WIDTH):
                dw[k] += d[k] * ((x[k] - m) * s)
                db[k] += d[k]
    add_up_warps(dw)  # outside of the condition: it has barriers
    add_up_warps(db)
    if warp == 0 and c < C:
        store8(partials, chunk * C + c, dw)
        store8(partials, (chunks + chunk) * C + c, db)


# -------------------------------------------------------------------------------------------------------- launchers


def layernorm_scratch_size(C):
    """How many float32 `layernorm_backward` needs as scratch."""
    return 2 * partials_size(C)


def layernorm_forward(out, mean, rstd, inp, weight, bias):
    """Normalise the rows of inp. The arrays decide: NumPy runs the reference, device arrays the kernel.

    out  [w] (N, C)   mean, rstd [w] (N,) float32, kept for backward   inp [r] (N, C)   weight, bias [r] (C,)
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_forward", {"N": N, "C": C}, "Did you pass the parameters of another layer?",
        out=(out, "N C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"), inp=(inp, "N C"), weight=(weight, "C"), bias=(bias, "C"),
    )  # fmt: skip
    if on_host(inp):
        return layernorm_forward_ref(out, mean, rstd, inp, weight, bias)
    check_width("layernorm_forward", C=C)
    blocks = -(-N // ROWS_PER_BLOCK)
    layernorm_forward_kernel[blocks, ROWS_PER_BLOCK * WARP_SIZE, compute_stream()](out, mean, rstd, inp, weight, bias)


def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch):
    """Gradients of layernorm_forward, accumulated.

    dinp [+] (N, C)   dweight, dbias [+] (C,)   dout, inp [r] (N, C)   weight [r] (C,)   mean, rstd [r] (N,) float32
    scratch [w] float32, flat, at least layernorm_scratch_size(C); None on the host
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_backward", {"N": N, "C": C}, "Did you pass the parameters of another layer?",
        dinp=(dinp, "N C"), dweight=(dweight, "C"), dbias=(dbias, "C"), dout=(dout, "N C"), inp=(inp, "N C"),
        weight=(weight, "C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"),
    )  # fmt: skip
    if on_host(inp):
        return layernorm_backward_ref(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch)
    check_width("layernorm_backward", C=C)
    check_scratch("layernorm_backward", scratch, layernorm_scratch_size(C))
    chunks, rows_per_chunk = chunk_rows(N)
    columns = -(-C // COLUMNS_PER_WARP)
    threads = COLUMN_WARPS * WARP_SIZE
    layernorm_backward_params_kernel[(chunks, columns), threads, compute_stream()](
        scratch, dout, inp, mean, rstd, rows_per_chunk
    )
    accumulate_partials(dweight, scratch, 0, chunks)
    accumulate_partials(dbias, scratch, chunks * C, chunks)
    # Last, so that dinp may be the same array as dout.
    blocks = -(-N // ROWS_PER_BLOCK)
    layernorm_backward_inp_kernel[blocks, ROWS_PER_BLOCK * WARP_SIZE, compute_stream()](dinp, dout, inp, weight, mean, rstd)
