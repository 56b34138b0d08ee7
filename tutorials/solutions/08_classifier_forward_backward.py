"""The loss of every token and its gradient, which overwrites the logits.

    losses[n]     = log Σ_w exp(logits[n, w]) - logits[n, targets[n]]
    p[n, v]       = exp(logits[n, v]) / Σ_w exp(logits[n, w])
    dlogits[n, v] = (p[n, v] - [v = targets[n]]) dloss          [...] is 1 where it holds, else 0

The sums run over w = 0, ..., V - 1. `logits` [rw] is float32 (N, Vp): after the call each row holds its dlogits, and 0 in the padding, columns V
to Vp - 1. `targets` [r] is int32 (N,), each in [0, V); `losses` [w] is float32 (N,); `dloss` is a float32 number. The launch is given: block
number `row` has the row, and its 32 threads take columns i, i + 32, i + 64, ... As in 08_classifier_forward, subtract the row's largest logit
before exp. And the array is read and overwritten in one kernel: which logit does one thread need that another one overwrites? This function is
your own GPT-2's.

    python -m tutorials.check 08_classifier_forward_backward
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_max, block_sum

THREADS = 32
ZERO, ONE, MINUS_INFINITY = np.float32(0), np.float32(1), np.float32(-np.inf)


@cuda.jit
def classifier_forward_backward_kernel(losses, logits, targets, dloss, V):
    """Three passes over the row: the largest logit, the sum of the exponentials, the gradients."""
    row, Vp = cuda.blockIdx.x, logits.shape[1]
    target = targets[row]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x
    # your lines:
    largest = MINUS_INFINITY
    for v in range(i, V, stride):
        largest = max(largest, logits[row, v])
    largest = block_max(largest)

    sum_exp = ZERO
    for v in range(i, V, stride):
        sum_exp += math.exp(logits[row, v] - largest)
    sum_exp = block_sum(sum_exp)

    if i == 0:
        losses[row] = math.log(sum_exp) + largest - logits[row, target]
    cuda.syncthreads()
    for v in range(i, Vp, stride):
        if v < V:
            p = math.exp(logits[row, v] - largest) / sum_exp
            logits[row, v] = (p - (ONE if v == target else ZERO)) * dloss
        else:
            logits[row, v] = ZERO
    # end of your lines


def classifier_forward_backward(losses, logits, targets, dloss, V):
    """Launch a block for each row."""
    classifier_forward_backward_kernel[logits.shape[0], THREADS](losses, logits, targets, np.float32(dloss), V)
