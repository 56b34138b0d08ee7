"""LayerNorm's forward: a block for each row.

    mean = 1/C Σ_c inp[c]          variance = 1/C Σ_c (inp[c] - mean)²          rstd = 1 / sqrt(variance + EPS)
    out[c] = (inp[c] - mean) rstd weight[c] + bias[c]                              for each row

All arrays are float32. [r] `inp` (N, C), `weight` and `bias` (C,), for any N and C. [w] `out` (N, C), `mean` and `rstd` (N,), which backward
needs. The launch is given: block number `row` has the row, and its 32 threads take channels i, i + 32, i + 64, ... `block_sum(value)` is the
one of chapter 00: all threads must call it, and all get the sum. math.sqrt works in kernels. This function is your own GPT-2's LayerNorm.

    python -m tutorials.check 03_layernorm_forward
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
EPS = np.float32(1e-5)
ZERO, ONE = np.float32(0), np.float32(1)


@cuda.jit
def layernorm_forward_kernel(out, mean, rstd, inp, weight, bias):
    """Three passes over the row: the mean, the variance about it, the output."""
    row, C = cuda.blockIdx.x, inp.shape[1]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x
    # your lines:
    part = ZERO
    for c in range(i, C, stride):
        part += inp[row, c]
    row_mean = block_sum(part) / float32(C)

    part = ZERO
    for c in range(i, C, stride):
        part += (inp[row, c] - row_mean) * (inp[row, c] - row_mean)
    row_rstd = ONE / math.sqrt(block_sum(part) / float32(C) + EPS)

    for c in range(i, C, stride):
        out[row, c] = (inp[row, c] - row_mean) * row_rstd * weight[c] + bias[c]
    if i == 0:
        mean[row] = row_mean
        rstd[row] = row_rstd
    # end of your lines


def layernorm_forward(out, mean, rstd, inp, weight, bias):
    """Launch a block for each row."""
    layernorm_forward_kernel[inp.shape[0], THREADS](out, mean, rstd, inp, weight, bias)
