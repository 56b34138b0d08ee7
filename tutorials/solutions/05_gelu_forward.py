"""GELU, forward.

    u = sqrt(2/π) (x + 0.044715 x³)        out = ½ x (1 + tanh u)        for each number x of inp

`inp` is float32 (N, D) [r], `out` float32 (N, D) [w]. A block of 32 threads has a row; D may be smaller or larger than 32. Read each number
once. The constants are given, in float32; `math.tanh` works in a kernel.

    python -m tutorials.check 05_gelu_forward
"""

import math

import numpy as np
from numba import cuda

THREADS = 32
HALF, ONE = np.float32(0.5), np.float32(1)
SQRT_2_OVER_PI = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)


@cuda.jit
def gelu_forward_kernel(out, inp):
    """Block number `row` has the row."""
    row = cuda.blockIdx.x
    # your lines:
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        x = inp[row, c]
        tanh_u = math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
        out[row, c] = HALF * x * (ONE + tanh_u)
    # end of your lines


def gelu_forward(out, inp):
    """Launch a block for each row."""
    gelu_forward_kernel[inp.shape[0], THREADS](out, inp)
