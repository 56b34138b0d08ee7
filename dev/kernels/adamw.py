"""AdamW: memory-bound from the first rung on, with seven values moved for a dozen operations. So there is little to gain.

update     plain               one parameter per thread: 4 bytes per load
           eight_per_thread    eight parameters per thread: 16 bytes per load, eight loads in flight per thread
           fast                all tensors in one launch; learning rate and scale in device memory, so that a graph can replay the step

In float32; 33,554,432 parameters (one H100, 2026-11-28): 0.339, 0.319 and 0.317 ms. In bfloat16 the fast kernel also rounds
stochastically: layers/fast/adamw.py.
"""

import functools
import math

import numpy as np
from numba import cuda, float32

from dev.kernels import in_both_precisions
from gpt2_numba.gpu.argument_checks import check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream, to_device
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers import adamw
from gpt2_numba.layers.fast import adamw as fast

ONE = np.float32(1)
THREADS = 32 if SIMULATING else 256


@cuda.jit
def eight_per_thread_kernel(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, correction1, correction2):
    """The plain kernel for parameters i ... i + 7."""
    i = cuda.grid(1) * WIDTH
    if i >= params.shape[0]:
        return
    param, grad = cuda.local.array(WIDTH, float32), cuda.local.array(WIDTH, float32)
    mean, square = cuda.local.array(WIDTH, float32), cuda.local.array(WIDTH, float32)
    load8(params, i, param)
    load8(grads, i, grad)
    load8(m, i, mean)
    load8(v, i, square)
    scale = norm_and_scale[1]
    if math.isnan(scale):
        return
    for k in range(WIDTH):
        g = scale * grad[k]
        mean[k] = beta1 * mean[k] + (ONE - beta1) * g
        square[k] = beta2 * square[k] + (ONE - beta2) * g * g
        update = (mean[k] / correction1) / (sqrt(square[k] / correction2) + eps)
        param[k] -= learning_rate * (update + weight_decay * param[k])
    store8(m, i, mean)
    store8(v, i, square)
    store8(params, i, param)


def eight_per_thread(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, t):
    """16 bytes per load: a quarter of the instructions for the same bytes. The plain kernel is within a tenth of the memory's rate; what it
    lacks is bytes in flight, since a thread loads 4 values and then waits.
    """
    count = params.shape[0]
    check_width("eight_per_thread", count=count)
    constants = [np.float32(value) for value in (learning_rate, beta1, beta2, eps, weight_decay, 1 - beta1**t, 1 - beta2**t)]
    eight_per_thread_kernel[ceil_div(count, THREADS * WIDTH), THREADS, compute_stream()](params, grads, m, v, norm_and_scale, *constants)


@in_both_precisions
def fast_update(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, t):
    """One launch for all tensors, with a table of the ranges that decay. With the earlier rungs the model launches once for each group of
    tensors with the same decay, and waits for each. Here there is only one range, so this shows only that the table costs next to
    nothing. In bfloat16 a parameter is rounded stochastically; the trainer uses a new seed in every step.
    """
    step_values = _on_device((learning_rate, 1 - beta1**t, 1 - beta2**t), np.float32)
    ranges = _on_device(((0, 0, 0, 1), (params.shape[0],) * 4), np.int64)
    seed = _on_device((0,), np.uint32)
    fast.adamw_update(params, grads, m, v, None, step_values, seed, norm_and_scale, ranges, beta1, beta2, eps, weight_decay)


@functools.cache
def _on_device(values, dtype):
    return to_device(np.array(values, dtype))


LADDER = {"adamw_update": (adamw.adamw_update, eight_per_thread, fast_update)}
