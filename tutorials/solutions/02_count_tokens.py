"""How often does each token occur? A histogram in which nothing is lost.

    counts[v] = the number of n with tokens[n] = v

`tokens` [r] is int32 of shape (N,), all in [0, V); `counts` [w] is float32 of shape (V,), whose numbers are exact up to 16,777,216. The
launch is given: a block for each v. Share the tokens among the threads of the block: each counts in a register of its own. `block_sum`, of
chapter 00, adds up what they have found; all threads of the block must call it. The check counts the pieces of memory that a warp fetches,
so one thread that reads all tokens is refused.

    python -m tutorials.check 02_count_tokens
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import THREADS, block_sum

ZERO = np.float32(0)
ONE = np.float32(1)


@cuda.jit
def count_tokens_kernel(counts, tokens):
    """Block v counts the places of token v."""
    v, i = cuda.blockIdx.x, cuda.threadIdx.x
    # your lines:
    count = ZERO
    for n in range(i, tokens.shape[0], cuda.blockDim.x):
        if tokens[n] == v:
            count += ONE
    total = block_sum(count)
    if i == 0:
        counts[v] = total
    # end of your lines


def count_tokens(counts, tokens):
    """Launch a block for each token of the vocabulary."""
    count_tokens_kernel[counts.shape[0], THREADS](counts, tokens)
