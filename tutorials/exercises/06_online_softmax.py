"""The log of a sum of exponentials, in one pass over the row.

    lse[n] = log Σ_c exp(inp[n, c])

`inp` [r] is float32 of shape (N, C), `lse` [w] is float32 of shape (N,). The launch is given: a block of 32 threads for each row; thread i
takes the columns i, i + 32, i + 64, ... Some scores are in the thousands: exp of them overflows, so the largest must be subtracted, and it
is not known beforehand. Each thread reads each of its elements ONCE. It keeps two numbers: `largest`, the largest of its elements so far,
and `total`, the sum of their exp(element - largest). Then the block brings its 32 pairs together: `block_max(x)` and `block_sum(x)` give
the largest and the sum over the threads of the block, and all threads must call them. A thread without an element brings `LOWEST` and 0.
There is one more trap: scores may be minus infinity, which is how a mask hides them. (`LOWEST` is finite for this reason.)

    python -m tutorials.check 06_online_softmax
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_max, block_sum

THREADS = 32
ZERO, LOWEST = np.float32(0), np.float32(-1e38)


@cuda.jit
def log_sum_exp_kernel(lse, inp):
    """Block n writes lse[n]."""
    n = cuda.blockIdx.x
    largest, total = LOWEST, ZERO
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        score = inp[n, c]
        # your lines:
        # end of your lines
    # your lines:
    # end of your lines


def log_sum_exp(lse, inp):
    """Launch a block for each row."""
    log_sum_exp_kernel[inp.shape[0], THREADS](lse, inp)
