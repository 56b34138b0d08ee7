"""GELU, eight numbers at a time.

    s = 1 / (1 + exp(-2 u))        out = x s        for each number x of inp; s is `logistic_of_2u(x)`, which is given

`inp` is float32 (count,) [r], `out` float32 (count,) [w]; count is a multiple of 8, and any such multiple. A thread takes eight neighbouring
numbers. It reads them with one `load8` and writes them with one `store8`:

    load8(inp, i, x)        x[0], ..., x[7] = inp[i], ..., inp[i + 7]        i must be a multiple of 8, and i + 7 within the array
    store8(out, i, x)       the other way

`x` is an array of eight registers that is each thread's own. On a GPU either is two instructions of 16 bytes in float32. The launch is
given: about as many threads as there are eights, in blocks of 32, rounded up.

    python -m tutorials.check 05_wide
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.float32_math import exp2, reciprocal
from gpt2_numba.gpu.memory_access import load8, store8

THREADS, WIDTH = 32, 8
ONE = np.float32(1)
POWER = np.float32(-2 * np.sqrt(2 / np.pi) * np.log2(np.e))
POWER_CUBIC = np.float32(-2 * np.sqrt(2 / np.pi) * np.log2(np.e) * 0.044715)


@cuda.jit(device=True)
def logistic_of_2u(x):
    """1 / (1 + exp(-2 u)), where exp(-2 u) = 2 to the power of x (POWER + POWER_CUBIC x²)."""
    return reciprocal(ONE + exp2(x * (POWER + POWER_CUBIC * x * x)))


@cuda.jit
def gelu_wide_kernel(out, inp):
    """Thread number t of all threads has the numbers 8 t, ..., 8 t + 7, if there are such."""
    x = cuda.local.array(WIDTH, float32)
    # your lines:
    i = cuda.grid(1) * WIDTH
    if i < inp.shape[0]:
        load8(inp, i, x)
        for k in range(WIDTH):
            x[k] *= logistic_of_2u(x[k])
        store8(out, i, x)
    # end of your lines


def gelu_wide(out, inp):
    """Launch a thread for each eight numbers."""
    threads = inp.shape[0] // WIDTH
    gelu_wide_kernel[(threads + THREADS - 1) // THREADS, THREADS](out, inp)
