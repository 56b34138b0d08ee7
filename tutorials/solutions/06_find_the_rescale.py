"""Some rows are wrong, if the scores are unfriendly.

    att[t, s] = exp(score[t, s]) / Σ_r exp(score[t, r]), for s <= t         out[t] = Σ_s att[t, s] v[s]

`score` [r] is float32 of shape (T, T), for any T, `v` [r] and `out` [w] are float32 of shape (T,): one channel of one head. The kernel
below has a thread for each query t, and goes over the keys tile by tile, four at a time: the largest score of the tile first, then the
sums. It was tried with four tokens, and with scores that fall from key to key, and was right. With T = 6, all v = 1 and score[5] = [0, 0,
0, 0, 3, 0] it says out[5] = 0.247, and must say 1, as a mean of ones is. One line is missing, in one of the three marked places. Find it,
with a pencil: write down `largest`, `total` and `weighted` of query 5 after each tile.

    python -m tutorials.check 06_find_the_rescale
"""

import math

import numpy as np
from numba import cuda

THREADS, TILE = 32, 4
ZERO, LOWEST = np.float32(0), np.float32(-1e38)


@cuda.jit
def weighted_mean_kernel(out, score, v):
    """Thread t writes out[t]."""
    t = cuda.grid(1)
    if t < out.shape[0]:
        largest, total, weighted = LOWEST, ZERO, ZERO
        for first in range(0, t + 1, TILE):
            # your lines:
            # end of your lines
            end = min(first + TILE, t + 1)
            previous = largest
            for s in range(first, end):
                largest = max(largest, score[t, s])
            rescale = math.exp(previous - largest)
            weighted *= rescale
            # your lines:
            total *= rescale
            # end of your lines
            for s in range(first, end):
                exponential = math.exp(score[t, s] - largest)
                total += exponential
                weighted += exponential * v[s]
            # your lines:
            # end of your lines
        out[t] = weighted / total


def weighted_mean(out, score, v):
    """Launch a thread for each query."""
    weighted_mean_kernel[(out.shape[0] + THREADS - 1) // THREADS, THREADS](out, score, v)
