"""One thread for each number.

    out[i] = 2 inp[i]

`out` and `inp` are float32 of shape (N,), with N at most 1,024. The launch is given: one block of N threads. Write what one thread does:
it finds out its number, `cuda.threadIdx.x`, reads one element, and writes one. Then:

    python -m tutorials.check 00_double
"""

import numpy as np
from numba import cuda

TWO = np.float32(2)


@cuda.jit
def double_kernel(out, inp):
    """Thread i writes out[i]."""
    # your lines:
    i = cuda.threadIdx.x
    out[i] = TWO * inp[i]
    # end of your lines


def double(out, inp):
    """Launch one block with as many threads as there are elements."""
    double_kernel[1, inp.shape[0]](out, inp)
