"""Losses that are a little too large, if the vocabulary is padded.

    losses[n]     = log Σ_w exp(logits[n, w]) - logits[n, targets[n]]
    dlogits[n, v] = exp(logits[n, v]) / Σ_w exp(logits[n, w]) - [v = targets[n]]          for the V tokens;  0 for the padding

There are V = 37 tokens. `logits` [r] and `dlogits` [w] are float32 (N, Vp), where Vp is 37 or more: columns 37 to Vp - 1 are padding, and what
is in them means nothing. `targets` [r] is int32 (N,), below 37; `losses` [w] is float32 (N,). The launch is given: a block of 32 threads for
each row. The kernel below was tried with Vp = 37, and was right. With Vp = 40 and all logits 0 it says losses[0] = 3.689, which is log 40, and
must say log 37 = 3.611; and each column of the padding has a gradient of 1/40, which would train rows of the table of tokens that no token has.

There are three marked places. Put in what is missing; it is more than one line. Whatever is in the padding, the losses and the gradients of the
tokens must not depend on it, and the gradients of the padding must be 0.

    python -m tutorials.check 08_padding
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_max, block_sum

THREADS, V = 32, 37
ZERO, ONE, MINUS_INFINITY = np.float32(0), np.float32(1), np.float32(-np.inf)


@cuda.jit
def loss_and_gradient_kernel(losses, dlogits, logits, targets):
    """A block for each row."""
    row, i, stride = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    columns = logits.shape[1]
    # your lines:
    # end of your lines
    largest = MINUS_INFINITY
    for v in range(i, columns, stride):
        largest = max(largest, logits[row, v])
    largest = block_max(largest)
    # your lines:
    # end of your lines
    sum_exp = ZERO
    for v in range(i, columns, stride):
        sum_exp += math.exp(logits[row, v] - largest)
    sum_exp = block_sum(sum_exp)
    if i == 0:
        losses[row] = math.log(sum_exp) + largest - logits[row, targets[row]]
    for v in range(i, columns, stride):
        p = math.exp(logits[row, v] - largest) / sum_exp
        dlogits[row, v] = p - (ONE if v == targets[row] else ZERO)
    # your lines:
    # end of your lines


def loss_and_gradient(losses, dlogits, logits, targets):
    """Launch a block for each row."""
    loss_and_gradient_kernel[logits.shape[0], THREADS](losses, dlogits, logits, targets)
