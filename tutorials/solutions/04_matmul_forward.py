"""The linear layer, forward: a thread for each number of out.

    out[n, o] = Σ_c inp[n, c] weight[o, c] + bias[o]

`inp` (N, C), `weight` (OC, C) and `bias` (OC,) are only read [r], `out` (N, OC) is written [w]; all are float32, and all sizes are any
numbers from 1 on. The last layer of GPT-2 has no bias: then `bias` is None, and nothing is added. The launch is given: blocks of 16 × 16
threads, thread (x, y) for column x and row y of its block's square of `out`. A kernel cannot take None, so without a bias it is given
`weight` in its place, and `has_bias` is False. Keep the sum in a variable. This function is your own GPT-2's, too.

    python -m tutorials.check 04_matmul_forward
"""

import numpy as np
from numba import cuda

ACROSS = 16  # threads of a block, across and down
ZERO = np.float32(0)


@cuda.jit
def matmul_forward_kernel(out, inp, weight, bias, has_bias):
    """The thread of column o and row n writes out[n, o]."""
    o, n = cuda.grid(2)
    # your lines:
    if n < out.shape[0] and o < out.shape[1]:
        total = ZERO
        for c in range(inp.shape[1]):
            total += inp[n, c] * weight[o, c]
        if has_bias:
            total += bias[o]
        out[n, o] = total
    # end of your lines


def matmul_forward(out, inp, weight, bias):
    """Launch blocks enough for all numbers of out."""
    N, OC = out.shape
    blocks = (OC + ACROSS - 1) // ACROSS, (N + ACROSS - 1) // ACROSS
    has_bias = bias is not None
    matmul_forward_kernel[blocks, (ACROSS, ACROSS)](out, inp, weight, bias if has_bias else weight.reshape(weight.size), has_bias)
