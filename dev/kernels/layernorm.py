"""LayerNorm: from one thread a row to one read a row.

forward     thread_per_row               32 neighbouring threads read 32 different rows: every load of a warp is 32 pieces of memory
            warp_per_row                 neighbouring threads read neighbouring numbers, eight each; the row three times
            the package                  the row stays in registers between the passes

residual    add_then_normalise           two kernels: the sum is written, then read
            the package                  the sum is normalised while it is still in registers

backward    rows_then_columns            dinp by rows, dweight and dbias by columns: two kernels read inp and dout
            the package                  one kernel, whose threads keep the sums of their columns while they go down the rows
"""

import numpy as np
from numba import cuda, float32

from dev.kernels import buffer
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store1, store8
from gpt2_numba.gpu.reductions import (
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    add_up_warps,
    chunk_rows,
    column_blocks,
    most_chunks,
    warp_sum,
)
from gpt2_numba.layers.fast.residual import residual_forward
from gpt2_numba.layers.layernorm import EPS

ONE, ZERO = np.float32(1.0), np.float32(0.0)
THREADS = WARP_SIZE if SIMULATING else 256
ROWS_PER_BLOCK = THREADS // WARP_SIZE  # where a row is a warp's


@cuda.jit
def thread_per_row_kernel(out, mean, rstd, inp, weight, bias):
    """The formula, as one would write it in C."""
    row = cuda.grid(1)
    N, C = inp.shape
    if row >= N:
        return
    total = ZERO
    for c in range(C):
        total += load1(inp, row * C + c)
    m = total / float32(C)
    total = ZERO
    for c in range(C):
        centred = load1(inp, row * C + c) - m
        total += centred * centred
    s = ONE / sqrt(total / float32(C) + EPS)
    for c in range(C):
        store1(out, row * C + c, (load1(inp, row * C + c) - m) * s * load1(weight, c) + load1(bias, c))
    mean[row] = m
    rstd[row] = s


def thread_per_row(out, mean, rstd, inp, weight, bias):
    """One thread a row."""
    thread_per_row_kernel[-(-len(inp) // THREADS), THREADS, compute_stream()](out, mean, rstd, inp, weight, bias)


@cuda.jit
def warp_per_row_kernel(out, mean, rstd, inp, weight, bias):
    """The row is read three times; the second and third time it comes from the cache."""
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

    total = ZERO
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


def warp_per_row(out, mean, rstd, inp, weight, bias):
    """One warp a row, which it reads three times."""
    warp_per_row_kernel[-(-len(inp) // ROWS_PER_BLOCK), THREADS, compute_stream()](out, mean, rstd, inp, weight, bias)


def add_then_normalise(residual, out, mean, rstd, inp, branch, weight, bias):
    """The residual stream's addition, then the kernel above."""
    residual_forward(residual, inp, branch)
    warp_per_row(out, mean, rstd, residual, weight, bias)


@cuda.jit
def backward_rows_kernel(dinp, dout, inp, weight, mean, rstd):
    """dinp: one warp a row, first the two row means, then the gradient."""
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
            sum_dxhat += d[k] * w[k]
            sum_dxhat_xhat += d[k] * w[k] * ((x[k] - m) * s)
    mean_dxhat, mean_dxhat_xhat = warp_sum(sum_dxhat) / float32(C), warp_sum(sum_dxhat_xhat) / float32(C)

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
def backward_columns_kernel(partials, dout, inp, mean, rstd, rows_per_chunk):
    """dweight and dbias: this block's sums over one chunk of rows. gpu/reductions.py tells the plan. partials (chunks, 2, C), flat."""
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    N, C = inp.shape
    chunk = cuda.blockIdx.x
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    x = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    dw = cuda.local.array(WIDTH, float32)
    db = cuda.local.array(WIDTH, float32)
    for k in range(WIDTH):
        dw[k], db[k] = ZERO, ZERO
    if c < C:
        for row in range(chunk * rows_per_chunk + warp, min((chunk + 1) * rows_per_chunk, N), COLUMN_WARPS):
            m, s = mean[row], rstd[row]
            load8(inp, row * C + c, x)
            load8(dout, row * C + c, d)
            for k in range(WIDTH):
                dw[k] += d[k] * ((x[k] - m) * s)
                db[k] += d[k]
    add_up_warps(dw)
    add_up_warps(db)
    if warp == 0 and c < C:
        store8(partials, 2 * chunk * C + c, dw)
        store8(partials, (2 * chunk + 1) * C + c, db)


def rows_then_columns(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch):
    """Two kernels, deterministic by their structure: nobody adds to what another one adds to."""
    N, C = inp.shape
    (chunks, rows_per_chunk), partials = chunk_rows(N, C), buffer(2 * most_chunks(C) * C)
    grid, threads = (chunks, column_blocks(C)), COLUMN_WARPS * WARP_SIZE
    backward_columns_kernel[grid, threads, compute_stream()](partials, dout, inp, mean, rstd, rows_per_chunk)
    accumulate_partials([dweight, dbias], partials, chunks)
    backward_rows_kernel[-(-N // ROWS_PER_BLOCK), THREADS, compute_stream()](dinp, dout, inp, weight, mean, rstd)


LADDER = {
    "layernorm_forward": (thread_per_row, warp_per_row),
    "residual_layernorm_forward": (add_then_normalise,),
    "layernorm_backward": (rows_then_columns,),
}
