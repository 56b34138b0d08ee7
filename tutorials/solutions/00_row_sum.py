"""A block for each row: first a loop, then a sum over the block.

    out[row] = the sum of inp[row, c] over all columns c

`inp` is float32 of shape (N, C), `out` of shape (N,), for any N and C. The launch is given: a block of 32 threads for each row. A thread
adds up its columns, i, i + 32, i + 64, …; then the block adds up the threads' sums. For that there is `block_sum(value)`, which you have
read in section 9 of the chapter: all threads of the block must call it, and each of them gets the sum.

    python -m tutorials.check 00_row_sum
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
ZERO = np.float32(0)


@cuda.jit
def row_sum_kernel(out, inp):
    """Block `row` writes out[row]."""
    row, i = cuda.blockIdx.x, cuda.threadIdx.x
    # your lines:
    part = ZERO
    for c in range(i, inp.shape[1], cuda.blockDim.x):
        part += inp[row, c]
    total = block_sum(part)
    if i == 0:
        out[row] = total
    # end of your lines


def row_sum(out, inp):
    """Launch a block for each row."""
    row_sum_kernel[inp.shape[0], THREADS](out, inp)
