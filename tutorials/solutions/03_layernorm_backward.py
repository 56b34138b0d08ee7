"""LayerNorm's backward: a kernel by rows, and one by columns.

    dinp[c] += rstd (dxhat[c] - mean of dxhat - xhat[c] · mean of (dxhat · xhat))          for each row
    dweight[c] += Σ over the rows of dout[c] xhat[c]          dbias[c] += Σ over the rows of dout[c]

with `xhat = (inp - mean) rstd` and `dxhat = dout weight`. All arrays are float32. [r] `dout`, `inp` (N, C), `weight` (C,), `mean`, `rstd`
(N,), as forward left them. [+] `dinp` (N, C), `dweight`, `dbias` (C,): add to what they hold. Both launches are given: the first kernel has a
block for each row, the second one a thread for each channel. This function is your own GPT-2's, too.

    python -m tutorials.check 03_layernorm_backward
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
ZERO = np.float32(0)


@cuda.jit
def layernorm_backward_inp_kernel(dinp, dout, inp, weight, mean, rstd):
    """Block number `row` has the row: two sums over its channels, then dinp."""
    row, C = cuda.blockIdx.x, inp.shape[1]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x
    # your lines:
    row_mean, row_rstd = mean[row], rstd[row]
    sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
    for c in range(i, C, stride):
        xhat = (inp[row, c] - row_mean) * row_rstd
        dxhat = dout[row, c] * weight[c]
        sum_dxhat += dxhat
        sum_dxhat_xhat += dxhat * xhat
    mean_dxhat = block_sum(sum_dxhat) / float32(C)
    mean_dxhat_xhat = block_sum(sum_dxhat_xhat) / float32(C)
    for c in range(i, C, stride):
        xhat = (inp[row, c] - row_mean) * row_rstd
        dxhat = dout[row, c] * weight[c]
        dinp[row, c] += row_rstd * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat)
    # end of your lines


@cuda.jit
def layernorm_backward_params_kernel(dweight, dbias, dout, inp, mean, rstd):
    """Thread number c goes down column c, from the first row to the last one."""
    c = cuda.grid(1)
    # your lines:
    if c < inp.shape[1]:
        dw, db = ZERO, ZERO
        for row in range(inp.shape[0]):
            dw += dout[row, c] * (inp[row, c] - mean[row]) * rstd[row]
            db += dout[row, c]
        dweight[c] += dw
        dbias[c] += db
    # end of your lines


def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """Launch both kernels, which do not need each other's results."""
    N, C = inp.shape
    layernorm_backward_inp_kernel[N, THREADS](dinp, dout, inp, weight, mean, rstd)
    layernorm_backward_params_kernel[(C + THREADS - 1) // THREADS, THREADS](dweight, dbias, dout, inp, mean, rstd)
