"""The mean of the losses, added to what is there, in an order that never changes.

    mean[0] += 1/N Σ_n values[n]

`values` [r] is float32 (N,), for any N; `mean` [+] is float32 (1,): it holds the sum of the means of earlier batches. The launch is given: one
block of 32 threads, of which thread i takes values i, i + 32, i + 64, ... Then the block adds up with `block_sum(value)`, which all threads
must call and which gives the sum to all. No atomic additions: threads would add in the order in which they arrive, and the last digits of the
loss would differ from run to run. N is an integer: divide by float32(N). This function is your own GPT-2's.

    python -m tutorials.check 08_accumulate_mean
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
ZERO = np.float32(0)


@cuda.jit
def accumulate_mean_kernel(mean, values):
    """One block adds up all values."""
    N = values.shape[0]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x
    # your lines:
    # end of your lines


def accumulate_mean(mean, values):
    """Launch one block."""
    accumulate_mean_kernel[1, THREADS](mean, values)
