"""GELU, backward.

    dinp = dout · slope        slope = ½ (1 + tanh u) + ½ x (1 - tanh² u) u'        x: the number of inp
    u = sqrt(2/π) (x + 0.044715 x³)                                                 u' = sqrt(2/π) (1 + 3 · 0.044715 x²)

`dout` and `inp` are float32 (N, D) [r], `dinp` float32 (N, D) [w]: overwritten, not added to. The model passes the same array as `dinp` and
as `dout`, to save one: your kernel must work in place, too. A block of 32 threads has a row. Read each number once. The constants are given.

    python -m tutorials.check 05_gelu_backward
"""

import math

import numpy as np
from numba import cuda

THREADS = 32
HALF, ONE = np.float32(0.5), np.float32(1)
SQRT_2_OVER_PI = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)
THREE_CUBIC = np.float32(3 * 0.044715)


@cuda.jit
def gelu_backward_kernel(dinp, dout, inp):
    """Block number `row` has the row."""
    row = cuda.blockIdx.x
    # your lines:
    # end of your lines


def gelu_backward(dinp, dout, inp):
    """Launch a block for each row."""
    gelu_backward_kernel[inp.shape[0], THREADS](dinp, dout, inp)
