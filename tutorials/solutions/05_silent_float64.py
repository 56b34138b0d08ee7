"""A float64 without a decimal point.

    s = 1 / (1 + exp(-2 u))        out = x s                    for each number x of inp; u is computed, and is float32

Somebody had written this line into the kernel below:

    s = 1 / (1 + math.exp(-2 * u))

There is not one decimal point in it, and its result is right. But the check refused it: for Numba an integer times a float32 is a float64,
and so is an integer plus a float32, so the exponential, the sum and the division were all in float64, and the product `x * s` after them. The
line has been taken out. Write it again, in float32; what it needs besides `u` is defined once, outside of the kernel. `out` and `inp` are
float32 (count,): [w] `out`, [r] `inp`.

    python -m tutorials.check 05_silent_float64
"""

import math

import numpy as np
from numba import cuda

THREADS = 32
SQRT_2_OVER_PI = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)
# your lines:
ONE, MINUS_TWO = np.float32(1), np.float32(-2)
# end of your lines


@cuda.jit
def gelu_logistic_kernel(out, inp):
    """Thread i of all threads writes out[i], if there is such an element."""
    i = cuda.grid(1)
    if i < inp.shape[0]:
        x = inp[i]
        u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x)
        # your lines:
        s = ONE / (ONE + math.exp(MINUS_TWO * u))
        out[i] = x * s
        # end of your lines


def gelu_logistic(out, inp):
    """Launch a thread for each number."""
    gelu_logistic_kernel[(inp.shape[0] + THREADS - 1) // THREADS, THREADS](out, inp)
