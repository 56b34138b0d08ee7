"""The loss of every token: a block for each row of logits.

    losses[n] = log Σ_w exp(logits[n, w]) - logits[n, targets[n]]          the sum over w = 0, ..., V - 1

`logits` [r] is float32 (N, Vp), of which columns V and beyond are padding and count for nothing; `targets` [r] is int32 (N,), each in [0, V);
`losses` [w] is float32 (N,). The launch is given: block number `row` has the row, and its 32 threads take columns i, i + 32, i + 64, ...
Some logits are above 100, and exp of anything above 88.7 is too large for float32; in some rows all are below -200; some targets have a
probability below 10⁻⁴⁵, which float32 cannot hold, and a loss of well over 100, which it can. `block_max(value)` and `block_sum(value)` give
every thread the largest and the sum over the threads of the block; all threads must call them. math.exp and math.log work in kernels. This
function is your own GPT-2's.

    python -m tutorials.check 08_classifier_forward
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_max, block_sum

THREADS = 32
ZERO, MINUS_INFINITY = np.float32(0), np.float32(-np.inf)


@cuda.jit
def classifier_forward_kernel(losses, logits, targets, V):
    """Two passes over the row: the largest logit, the sum of the exponentials."""
    row = cuda.blockIdx.x
    i, stride = cuda.threadIdx.x, cuda.blockDim.x
    # your lines:
    # end of your lines


def classifier_forward(losses, logits, targets, V):
    """Launch a block for each row."""
    classifier_forward_kernel[logits.shape[0], THREADS](losses, logits, targets, V)
