"""The residual connection and the LayerNorm behind it, in one kernel.

    residual[n, c] = inp[n, c] + branch[n, c]
    mean[n], rstd[n] = of row n of residual          out[n, c] = (residual[n, c] - mean[n]) rstd[n] weight[c] + bias[c]

with rstd = 1 / sqrt(variance + 1e-5). All arrays are float32: [w] `residual`, `out` (N, C), `mean`, `rstd` (N,); [r] `inp`, `branch` (N, C),
`weight`, `bias` (C,). C is at most 128. A block of 32 threads has a row, so a thread has at most four of its numbers, those at i, i + 32,
i + 64, i + 96; `x` is an array of four registers for them. Touch each number of global memory once: two sheets are read, two are written, and
what you have written is not read back. `block_sum` adds up the numbers of the block's threads; all of them must call it.

    python -m tutorials.check 07_fused
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
PER_THREAD = 4
ZERO, ONE, EPS = np.float32(0), np.float32(1), np.float32(1e-5)


@cuda.jit
def residual_layernorm_kernel(residual, out, mean, rstd, inp, branch, weight, bias):
    """Block number `row` has the row. x[j] is channel i + j * THREADS, if there is such a channel."""
    row, C, i = cuda.blockIdx.x, inp.shape[1], cuda.threadIdx.x
    x = cuda.local.array(PER_THREAD, float32)
    # your lines:
    # end of your lines


# Eight parameters: outputs, then inputs, as in the package.
def residual_layernorm_forward(residual, out, mean, rstd, inp, branch, weight, bias):
    """Launch a block for each row."""
    residual_layernorm_kernel[inp.shape[0], THREADS](residual, out, mean, rstd, inp, branch, weight, bias)
