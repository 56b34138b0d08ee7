"""Four doors for a float64.

For each column n of `squares` (P, N), a thread computes the root of the mean, and from it a factor that brings it down to a limit:

    rms = sqrt(Σ_p squares[p, n] / P)                 scale[n] = limit[n] / rms if that is below 1, else 1

All arrays are float32: [w] `scale` (N,); [r] `squares` (P, N), `limit` (N,). Somebody had written the lines below. They give right results,
and four times something in them is in float64. Write them again, without any.

    total = 0
    for p in range(P):
        total += squares[p, n]
    rms = (total / P) ** 0.5
    scale[n] = min(1.0, limit[n] / rms)

    python -m tutorials.check 13_float64
"""

import math

import numpy as np
from numba import cuda, float32

THREADS = 32
# your lines:
# end of your lines


@cuda.jit
def clip_scale_kernel(scale, squares, limit):
    """Thread n of all threads computes scale[n], if there is such a column."""
    n = cuda.grid(1)
    if n < scale.shape[0]:
        P = squares.shape[0]
        # your lines:
        # end of your lines


def clip_scale(scale, squares, limit):
    """Launch a thread for each column."""
    clip_scale_kernel[(scale.shape[0] + THREADS - 1) // THREADS, THREADS](scale, squares, limit)
