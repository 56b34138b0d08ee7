"""Normalise a row that is read once.

    mean = 1/C Σ_c inp[c]          rstd = 1 / sqrt(1/C Σ_c (inp[c] - mean)² + EPS)          out[c] = (inp[c] - mean) rstd          for each row

All arrays are float32. [r] `inp` (N, C), for any N and for C up to 128. [w] `out` (N, C), `mean` and `rstd` (N,). The launch is given: a block
of 32 threads for each row, so a thread has at most four channels: i, i + 32, i + 64, i + 96. `x` is an array of four numbers that belongs to
the thread alone, as a variable does. Read each element of `inp` once, keep it in `x`, and compute all three passes from there. A thread may
have fewer than four channels: `c < C` must hold in each pass.

    python -m tutorials.check 03_read_once
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.block_sum import block_sum

THREADS, PER_THREAD = 32, 4
EPS = np.float32(1e-5)
ZERO, ONE = np.float32(0), np.float32(1)


@cuda.jit
def normalise_kernel(out, mean, rstd, inp):
    """x[j] is channel i + j * THREADS. A loop over range(PER_THREAD) has a constant length, so x can be in registers."""
    row, C = cuda.blockIdx.x, inp.shape[1]
    i = cuda.threadIdx.x
    x = cuda.local.array(PER_THREAD, float32)
    # your lines:
    part = ZERO
    for j in range(PER_THREAD):
        c = i + j * THREADS
        if c < C:
            x[j] = inp[row, c]
            part += x[j]
    row_mean = block_sum(part) / float32(C)

    part = ZERO
    for j in range(PER_THREAD):
        if i + j * THREADS < C:
            part += (x[j] - row_mean) * (x[j] - row_mean)
    row_rstd = ONE / math.sqrt(block_sum(part) / float32(C) + EPS)

    for j in range(PER_THREAD):
        c = i + j * THREADS
        if c < C:
            out[row, c] = (x[j] - row_mean) * row_rstd
    if i == 0:
        mean[row] = row_mean
        rstd[row] = row_rstd
    # end of your lines


def normalise(out, mean, rstd, inp):
    """Launch a block for each row."""
    normalise_kernel[inp.shape[0], THREADS](out, mean, rstd, inp)
