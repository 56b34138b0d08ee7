"""A barrier is missing.

    out[i] = inp[i] + inp[i + 1] + … up to the end of its piece

`out` and `inp` are float32 of shape (N,), cut into pieces of 64 elements, a block of 64 threads for each; the last piece may be shorter. The
kernel below is complete but for one barrier, which belongs in one of the three marked places. In the simulator's usual order of threads its
result is right all the same: a test of its numbers passes. Find the place. A barrier too many is refused.

    python -m tutorials.check 00_find_the_barrier
"""

import numpy as np
from numba import cuda, float32

THREADS = 64
ZERO = np.float32(0)


@cuda.jit
def sum_to_the_end_kernel(out, inp):
    """After each round values[i] is the sum of twice as many elements: inp[i], then inp[i] and inp[i + 1], then of four, ..."""
    values = cuda.shared.array(THREADS, float32)
    i, element = cuda.threadIdx.x, cuda.grid(1)
    values[i] = inp[element] if element < inp.shape[0] else ZERO
    cuda.syncthreads()
    distance = 1
    while distance < THREADS:
        # your lines:
        # end of your lines
        other = values[i + distance] if i + distance < THREADS else ZERO
        # your lines:
        # end of your lines
        values[i] += other
        cuda.syncthreads()
        distance *= 2
    # your lines:
    # end of your lines
    if element < inp.shape[0]:
        out[element] = values[i]


def sum_to_the_end(out, inp):
    """Launch a block for each piece."""
    pieces = (inp.shape[0] + THREADS - 1) // THREADS
    sum_to_the_end_kernel[pieces, THREADS](out, inp)
