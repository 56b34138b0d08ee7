"""Clipping by the global norm: if the norm of all gradients together exceeds max_norm, all are scaled down so that it is max_norm.

    norm = sqrt(Σ grads²)        scale = max_norm / norm if norm > max_norm, else 1; NaN if norm or loss is not finite

So one bad batch cannot distort the running means of AdamW for many steps. Pascanu, Mikolov, Bengio 2012, "On the difficulty of training
recurrent neural networks" (arXiv:1211.5063). A scale of NaN tells AdamW to leave everything as it is: one infinity among the gradients
would make its parameter NaN, and the next step all of them.

The sum over all gradients is too long for one block, and in an ordinary launch blocks cannot wait for each other. So it takes two launches:
PARTIALS blocks each sum the squares of a share of the gradients (`sum_of_squares`), then one block adds the partial sums
(`norm_and_scale`). Which elements a block sums is fixed, so the bits repeat. The scale stays on the device, where AdamW reads it: the host
does not wait for it.

    | array    | shape, type        | access                                                                                      |
    | -------- | ------------------ | ------------------------------------------------------------------------------------------- |
    | grads    | (any,)             | [r]                                                                                         |
    | partials | (PARTIALS,) float32| [+] by sum_of_squares, [r] by norm_and_scale. The reference adds everything to the first    |
    | loss     | (1,) float32       | [r] of the step; only whether it is finite matters                                          |
    | result   | (2,) float32       | [w] [0] the norm, [1] the scale                                                             |

[r] read, [w] overwritten, [+] accumulated into: gradients that are stored in several pieces take several calls, after partials are zeroed.
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.cpu_cache import njit_cached
from gpt2_numba.cpu_threads import ONE_PASS, in_pieces
from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS, block_sum

ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(math.nan)
PARTIALS = 2 if SIMULATING else 1024  # the same on every GPU: the rounding depends on it


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def sum_of_squares_ref(partials, grads):
    """The definition: summed in float64, then rounded and added."""
    partials[0] += sum(in_pieces(_sum_of_squares, (grads,), piece=ONE_PASS))


# Compiled for the processor by Numba: NumPy would write the gradients to memory once more, in float64. reassoc: several sums side by side.
@njit_cached(nogil=True, fastmath={"reassoc"})
def _sum_of_squares(values):
    total = 0.0
    for i in range(len(values)):  # over indices: Numba's loop over the values themselves is several times as slow
        total += np.float64(values[i]) * np.float64(values[i])
    return total


def norm_and_scale_ref(result, partials, loss, max_norm):
    """From the partial sums to the norm and the scale."""
    norm = math.sqrt(partials.sum())
    scale = max_norm / norm if norm > max_norm else 1
    result[0] = norm
    result[1] = scale if math.isfinite(norm) and math.isfinite(loss[0]) else math.nan


# ---------------------------------------------------------------------------------------------------- plain kernels


@cuda.jit(cache=True)
def sum_of_squares_kernel(partials, grads):
    """A thread takes elements i, i + (threads of the whole grid), ...; a block adds the sum over its threads to partials[block]."""
    total = ZERO
    for i in range(cuda.grid(1), grads.shape[0], cuda.gridsize(1)):
        total += grads[i] * grads[i]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] += total


@cuda.jit(cache=True)
def norm_and_scale_kernel(result, partials, loss, max_norm):
    """One block: from the partial sums to the norm and the scale."""
    total = ZERO
    for i in range(cuda.threadIdx.x, partials.shape[0], cuda.blockDim.x):
        total += partials[i]
    norm = math.sqrt(block_sum(total))
    if cuda.threadIdx.x == 0:
        scale = max_norm / norm if norm > max_norm else ONE
        result[0] = norm
        result[1] = scale if math.isfinite(norm) and math.isfinite(loss[0]) else NAN


# -------------------------------------------------------------------------------------------------------- launchers


def sum_of_squares(partials, grads):
    """The squares of the gradients, added to the partial sums. NumPy arrays go to the reference, device arrays to the kernel.

    Arguments as in the table above. Raises ValueError or TypeError if a shape or type does not fit.
    """
    sizes = {"any": grads.shape[0], "PARTIALS": PARTIALS}
    check_arrays("sum_of_squares", sizes, grads=(grads, "any"), partials=(partials, "f32 PARTIALS"))
    if on_host(grads):
        return sum_of_squares_ref(partials, grads)
    check_float32("sum_of_squares", grads)
    sum_of_squares_kernel[PARTIALS, THREADS, compute_stream()](partials, grads)


def norm_and_scale(result, partials, loss, max_norm):
    """The norm whose square is the sum of `partials`, and the scale that clips it to max_norm (float).

    Arguments as in the table above. Raises ValueError or TypeError if a shape or type does not fit.
    """
    arrays = dict(result=(result, "f32 2"), partials=(partials, "f32 PARTIALS"), loss=(loss, "f32 1"))
    check_arrays("norm_and_scale", {"PARTIALS": PARTIALS}, **arrays)
    if on_host(result):
        return norm_and_scale_ref(result, partials, loss, max_norm)
    norm_and_scale_kernel[1, THREADS, compute_stream()](result, partials, loss, np.float32(max_norm))
