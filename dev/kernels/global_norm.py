"""The norm of all gradients: every element is read once, and memory is the only bound.

sum of squares   plain               one element at a time per thread: 4 bytes per load, one load in flight
                 eight_per_thread    16 bytes per load
                 fast                eight times eight elements in flight; ranges, for a process that has only part of the gradients
norm and scale   plain               one small block; the fast one does the same with its own number of partial sums

124,475,904 float32 gradients (one H100, 2026-11-28): 0.182, 0.172 and, with a second launch that a step does not need, 0.174 ms.
"""

import functools

import numpy as np
from numba import cuda, float32

from dev.kernels import buffer, in_both_precisions
from gpt2_numba.gpu.backend import SIMULATING, compute_stream, to_device
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8
from gpt2_numba.gpu.reductions import block_sum
from gpt2_numba.layers import global_norm
from gpt2_numba.layers.fast import global_norm as fast

ZERO = np.float32(0)
THREADS = 32 if SIMULATING else 256


@cuda.jit
def eight_per_thread_kernel(partials, grads):
    """Each thread strides over groups of eight elements. The first thread adds the last len % 8 elements."""
    count = grads.shape[0]
    eights = count // WIDTH
    x = cuda.local.array(WIDTH, float32)
    total = ZERO
    for i in range(cuda.grid(1), eights, cuda.gridsize(1)):
        load8(grads, i * WIDTH, x)
        for k in range(WIDTH):
            total += x[k] * x[k]
    if cuda.grid(1) == 0:
        for i in range(eights * WIDTH, count):
            total += load1(grads, i) * load1(grads, i)
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] += total


@cuda.jit
def add_sums_kernel(partials, sums, grads, rest):
    """One block: partials[0] += Σ sums + the squares of grads[rest:]."""
    total = ZERO
    for i in range(cuda.threadIdx.x, sums.shape[0], cuda.blockDim.x):
        total += sums[i]
    for i in range(rest + cuda.threadIdx.x, grads.shape[0], cuda.blockDim.x):
        total += load1(grads, i) * load1(grads, i)
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[0] += total


@in_both_precisions
def eight_per_thread(partials, grads):
    """16 bytes per load: a quarter of the instructions for the same bytes. The plain kernel has too little in flight to saturate memory."""
    eight_per_thread_kernel[global_norm.PARTIALS, THREADS, compute_stream()](partials, grads)


@in_both_precisions
def fast_sum_of_squares(partials, grads):
    """Four loads of eight elements in flight per thread instead of one. It overwrites its own partial sums: here a second launch adds them
    to `partials`, with the last len % 8 elements. A step needs no second launch: all gradients are in one array.
    """
    eights = grads.size // WIDTH * WIDTH
    sums = buffer("sums", fast.BLOCKS)
    fast.sum_of_squares(sums, grads[:eights], _one_range(eights))
    add_sums_kernel[1, THREADS, compute_stream()](partials, sums, grads, eights)


@functools.cache
def _one_range(count):
    return to_device(np.array([[0] * 4, [count] * 4], np.int64))


LADDER = {
    "sum_of_squares": (global_norm.sum_of_squares, eight_per_thread, fast_sum_of_squares),
    "norm_and_scale": (global_norm.norm_and_scale,),
}
