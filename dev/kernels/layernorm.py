"""LayerNorm: how often a row is read and written.

forward    plain                a block per row, 4 bytes per load; the row is read three times, with some twenty barriers
           warp_per_row         a warp per row: 16 bytes per load, sums by shuffles, no barrier; still three reads
           fast                 the row stays in registers between the passes: one read
backward   plain                a thread per channel loops over all rows: with 768 channels, three blocks do all the work
           rows_then_columns    16 bytes per load; rows cut into chunks, so the column sums use the whole GPU; two kernels read inp and dout
           fast                 one kernel, whose threads keep the sums of their columns while they loop over the rows

residual   add_then_normalise   two kernels: the sum is written, then read
           fast                 the sum is normalised while it is still in registers
"""

import numpy as np
from numba import cuda, float32

from dev.kernels import buffer, in_both_precisions
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import (
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    add_up_warps,
    chunk_rows,
    column_blocks,
    max_chunks,
    warp_sum,
)
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers import layernorm
from gpt2_numba.layers.fast import layernorm as fast
from gpt2_numba.layers.layernorm import EPS
from gpt2_numba.layers.residual import residual_forward

ONE, ZERO = np.float32(1.0), np.float32(0.0)
THREADS = WARP_SIZE if SIMULATING else 256
ROWS_PER_BLOCK = THREADS // WARP_SIZE  # one warp per row


@cuda.jit
def warp_per_row_kernel(out, mean, rstd, inp, weight, bias):
    """The row is read three times, the second and third time from the cache."""
    row = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE
    lane = cuda.threadIdx.x % WARP_SIZE
    N, C = inp.shape
    if row >= N:  # the whole warp returns together, so all its threads reach the warp sums below
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


@in_both_precisions
def warp_per_row(out, mean, rstd, inp, weight, bias):
    """Wide loads, and a warp per row. Before, threads waited at barriers, and loads were narrow."""
    warp_per_row_kernel[ceil_div(len(inp), ROWS_PER_BLOCK), THREADS, compute_stream()](out, mean, rstd, inp, weight, bias)


@in_both_precisions
def fast_forward(out, mean, rstd, inp, weight, bias):
    """The trainer's kernel: a row is read once. Before, it was read twice more from the cache."""
    fast.layernorm_forward(out, mean, rstd, inp, weight, bias)


@cuda.jit
def backward_rows_kernel(dinp, dout, inp, weight, mean, rstd):
    """dinp: one warp per row, first the two row means, then the gradient."""
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
    """dweight and dbias: the block's sums over one chunk of rows, by the scheme in gpu/reductions.py. partials: (chunks, 2, C), flat."""
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


@in_both_precisions
def rows_then_columns(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """As many blocks for the columns as the GPU holds. Before, a few threads looped over all rows, one load after the other."""
    N, C = inp.shape
    (chunks, rows_per_chunk), partials = chunk_rows(N, C), buffer("partials", 2 * max_chunks(C) * C)
    grid, threads = (chunks, column_blocks(C)), COLUMN_WARPS * WARP_SIZE
    backward_columns_kernel[grid, threads, compute_stream()](partials, dout, inp, mean, rstd, rows_per_chunk)
    accumulate_partials([dweight, dbias], partials, chunks)
    backward_rows_kernel[ceil_div(N, ROWS_PER_BLOCK), THREADS, compute_stream()](dinp, dout, inp, weight, mean, rstd)


@in_both_precisions
def fast_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """The trainer's kernel: inp and dout are read once. Before, two kernels each read them."""
    scratch = buffer("scratch", fast.layernorm_scratch_size(inp.shape[1]))
    fast.layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch)


def add_then_normalise(residual, out, mean, rstd, inp, branch, weight, bias):
    """The plain kernels of the two layers in sequence: the second reads what the first has written."""
    residual_forward(residual, inp, branch)
    layernorm.layernorm_forward(out, mean, rstd, residual, weight, bias)


@in_both_precisions
def fast_residual_layernorm_forward(residual, out, mean, rstd, inp, branch, weight, bias):
    """The trainer's kernel: two reads and two writes. Before, the sum went to memory and back to be normalised."""
    fast.residual_layernorm_forward(residual, out, mean, rstd, inp, branch, weight, bias)


LADDER = {
    "layernorm_forward": (layernorm.layernorm_forward, warp_per_row, fast_forward),
    "layernorm_backward": (layernorm.layernorm_backward, rows_then_columns, fast_backward),
}
FUSED = {"residual_layernorm_forward": (add_then_normalise, fast_residual_layernorm_forward)}
