"""Your own LayerNorm: an example of a file for --kernels. One thread per row, as one would first write it in C.

    python -m gpt2_numba.train --kernels dev/kernels/my_layernorm.py        trains GPT-2 with it, after it has been checked
    python -m dev.kernels layernorm --mine dev/kernels/my_layernorm.py      its speed, beside the other kernels of the layer

The functions that a file may define are in docs/kernels.md, the formulas in gpt2_numba/layers/layernorm.py, whose kernels have a block
per row.
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.integers import ceil_div

EPS, ZERO, ONE = np.float32(1e-5), np.float32(0), np.float32(1)  # a bare 0.0 is float64 and makes the kernel's sums float64
THREADS = 32  # per block


@cuda.jit
def forward_kernel(out, mean, rstd, inp, weight, bias):
    row = cuda.grid(1)  # the index of this thread among all threads of all blocks
    if row >= inp.shape[0]:
        return
    C = np.float32(inp.shape[1])
    total, squares = ZERO, ZERO
    for c in range(inp.shape[1]):
        total += inp[row, c]
    m = total / C
    for c in range(inp.shape[1]):
        squares += (inp[row, c] - m) * (inp[row, c] - m)
    r = ONE / math.sqrt(squares / C + EPS)
    for c in range(inp.shape[1]):
        out[row, c] = (inp[row, c] - m) * r * weight[c] + bias[c]
    mean[row], rstd[row] = m, r


@cuda.jit
def backward_inp_kernel(dinp, dout, inp, weight, mean, rstd):
    row = cuda.grid(1)
    if row >= inp.shape[0]:
        return
    C = np.float32(inp.shape[1])
    sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
    for c in range(inp.shape[1]):
        sum_dxhat += dout[row, c] * weight[c]
        sum_dxhat_xhat += dout[row, c] * weight[c] * (inp[row, c] - mean[row]) * rstd[row]
    for c in range(inp.shape[1]):
        xhat = (inp[row, c] - mean[row]) * rstd[row]
        dinp[row, c] += rstd[row] * (dout[row, c] * weight[c] - sum_dxhat / C - xhat * sum_dxhat_xhat / C)


@cuda.jit
def backward_params_kernel(dweight, dbias, dout, inp, mean, rstd):
    c = cuda.grid(1)
    if c >= inp.shape[1]:
        return
    dw, db = ZERO, ZERO
    for row in range(inp.shape[0]):
        dw += dout[row, c] * (inp[row, c] - mean[row]) * rstd[row]
        db += dout[row, c]
    dweight[c] += dw
    dbias[c] += db


def layernorm_forward(out, mean, rstd, inp, weight, bias):
    forward_kernel[ceil_div(inp.shape[0], THREADS), THREADS](out, mean, rstd, inp, weight, bias)


def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    backward_inp_kernel[ceil_div(inp.shape[0], THREADS), THREADS](dinp, dout, inp, weight, mean, rstd)
    backward_params_kernel[ceil_div(inp.shape[1], THREADS), THREADS](dweight, dbias, dout, inp, mean, rstd)
