"""GELU: a formula for each number, and yet not bound by memory at first.

forward     number_per_thread            two bytes a load; tanh is twenty instructions
            eight_per_thread             16 bytes a load; still tanh
            the package                  the logistic function instead of tanh: two special instructions; two loads in flight
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store1, store8

if SIMULATING:
    from numpy import tanh
else:
    from math import tanh

THREADS = 32 if SIMULATING else 256
HALF, ONE = np.float32(0.5), np.float32(1.0)
SQRT_2_OVER_PI, CUBIC = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)


@cuda.jit(device=True)
def gelu(x):
    """The definition."""
    return HALF * x * (ONE + tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)))


@cuda.jit
def number_per_thread_kernel(out, inp):
    """The definition, number by number."""
    i = cuda.grid(1)
    if i < inp.size:
        store1(out, i, gelu(load1(inp, i)))


def number_per_thread(out, inp):
    """One thread makes one number."""
    number_per_thread_kernel[-(-inp.size // THREADS), THREADS, compute_stream()](out, inp)


@cuda.jit
def eight_per_thread_kernel(out, inp):
    """The definition, eight numbers to a load."""
    i = cuda.grid(1) * WIDTH
    if i >= inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    for k in range(WIDTH):
        x[k] = gelu(x[k])
    store8(out, i, x)


def eight_per_thread(out, inp):
    """One thread makes eight numbers, from one load of 16 bytes."""
    eight_per_thread_kernel[-(-inp.size // (THREADS * WIDTH)), THREADS, compute_stream()](out, inp)


LADDER = {"gelu_forward": (number_per_thread, eight_per_thread)}
