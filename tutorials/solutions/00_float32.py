"""A silent float64.

    celsius[i] = (fahrenheit[i] - 32) * 5 / 9

Both are float32 of shape (N,). The file is complete and its results are right. But the two constants below are Python's numbers, and Numba
takes them at their word: an integer minus or times a float32 is a float64, and so is 5 / 9. So all of the arithmetic is in float64, which
most GPUs do 32 or 64 times more slowly, and an H200 twice as slowly, and nothing says so. Add what makes it float32.

    python -m tutorials.check 00_float32
"""

import numpy as np
from numba import cuda

THREADS = 32
FREEZING = 32
RATIO = 5 / 9
# your lines:
FREEZING = np.float32(FREEZING)
RATIO = np.float32(RATIO)
# end of your lines


@cuda.jit
def to_celsius_kernel(celsius, fahrenheit):
    """Thread i of all threads writes celsius[i], if there is such an element."""
    i = cuda.grid(1)
    if i < fahrenheit.shape[0]:
        celsius[i] = (fahrenheit[i] - FREEZING) * RATIO


def to_celsius(celsius, fahrenheit):
    """Launch a thread for each element, in blocks of THREADS."""
    blocks = (fahrenheit.shape[0] + THREADS - 1) // THREADS
    to_celsius_kernel[blocks, THREADS](celsius, fahrenheit)
