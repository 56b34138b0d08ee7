"""AdamW: every parameter moves against the running mean of its gradient, divided by the gradient's running size.

    g = scale * gradient                                        the scale clips the norm of all gradients (global_norm.py)
    m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²         running means of the gradient and of its square
    m̂ = m / (1 - β1^t)           v̂ = v / (1 - β2^t)             t = 1, 2, ...
    param -= learning_rate (m̂ / (sqrt(v̂) + eps) + weight_decay param)

Both means start at 0. After t steps the weights of the gradients in a mean add up to only 1 - β^t; dividing by that corrects it. sqrt(v̂)
is about the size of the gradient, so m̂ / sqrt(v̂) is about ±1 for a gradient that keeps its sign, and near 0 for one that keeps changing
it: the learning rate is roughly the largest distance that a parameter moves in a step. Weight decay pulls the parameter towards 0 and is
kept out of the means, which is the W of AdamW. It is 0 for biases and LayerNorms.

Kingma, Ba 2014, "Adam" (arXiv:1412.6980); Loshchilov, Hutter 2017, "Decoupled Weight Decay Regularization" (arXiv:1711.05101).

    | array          | shape        | access                                                                 |
    | -------------- | ------------ | ---------------------------------------------------------------------- |
    | params         | (count,)     | [rw]                                                                   |
    | grads          | (count,)     | [r]                                                                    |
    | m, v           | (count,)     | [rw] zero before the first step                                        |
    | norm_and_scale | (2,) float32 | [r] from global_norm: [1] is the scale; if it is NaN, nothing changes  |

[r] read, [rw] updated in place. The model calls this once for each run of neighbouring tensors that decay alike. There is no backward: here
the gradients are used up.
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.cpu_cache import njit_cached
from gpt2_numba.cpu_threads import ONE_PASS, in_pieces
from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS
from gpt2_numba.integers import ceil_div

ONE = np.float32(1)


# ---------------------------------------------------------------------------------------------- reference, on the host


def adamw_update_ref(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, t):
    """The definition, in place. Constants are rounded to the type of the parameters, float32 or (in checks) float64."""
    if math.isnan(norm_and_scale[1]):
        return
    real = params.dtype.type
    rate, correction1, correction2 = real(learning_rate), real(1 - beta1**t), real(1 - beta2**t)
    decay_factor = real(1 - rate * weight_decay)
    constants = [real(value) for value in (norm_and_scale[1], beta1, 1 - beta1, beta2, 1 - beta2, eps)]
    _step(params, grads, m, v, rate / correction1, correction2, decay_factor, *constants)


# Compiled for the processor by Numba: three times as fast as NumPy, which would pass over memory a dozen times.
@njit_cached(nogil=True, error_model="numpy")
def _step(params, grads, m, v, step_size, correction2, decay_factor, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps):
    for i in range(len(params)):
        g = scale * grads[i]
        m[i] = beta1 * m[i] + one_minus_beta1 * g
        v[i] = beta2 * v[i] + one_minus_beta2 * (g * g)
        # (1 - learning_rate weight_decay) param - learning_rate / (1 - β1^t) · m / (...): the last line of the formula, multiplied out
        params[i] = decay_factor * params[i] - step_size * (m[i] / (np.sqrt(v[i] / correction2) + eps))


# ----------------------------------------------------------------------------------------------------- plain kernel


@cuda.jit(cache=True)
def adamw_kernel(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, correction1, correction2):
    """One thread per parameter. correction1, correction2: 1 - β1^t and 1 - β2^t."""
    i, scale = cuda.grid(1), norm_and_scale[1]
    if i >= params.shape[0] or math.isnan(scale):  # NaN: loss or norm is not finite
        return
    g = scale * grads[i]
    mean = beta1 * m[i] + (ONE - beta1) * g
    square = beta2 * v[i] + (ONE - beta2) * g * g
    m[i], v[i] = mean, square
    update = (mean / correction1) / (math.sqrt(square / correction2) + eps)
    params[i] -= learning_rate * (update + weight_decay * params[i])


# --------------------------------------------------------------------------------------------------------- launcher


# Eleven parameters: the formula has five arrays and six numbers, and each is one of them.
def adamw_update(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, t):
    """One step of AdamW. NumPy arrays go to the reference, device arrays to the kernel.

    Arrays as in the table above. learning_rate, beta1, beta2, eps, weight_decay: floats   t: number of this step, from 1
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    check_arrays(
        "adamw_update", {"count": params.shape[0]},
        params=(params, "count"), grads=(grads, "count"), m=(m, "f32 count"), v=(v, "f32 count"), norm_and_scale=(norm_and_scale, "f32 2"),
    )  # fmt: skip
    constants = learning_rate, beta1, beta2, eps, weight_decay
    if on_host(params):
        return in_pieces(adamw_update_ref, (params, grads, m, v), (norm_and_scale, *constants, t), ONE_PASS)
    check_float32("adamw_update", params)
    constants = [np.float32(value) for value in (*constants, 1 - beta1**t, 1 - beta2**t)]
    adamw_kernel[ceil_div(params.shape[0], THREADS), THREADS, compute_stream()](params, grads, m, v, norm_and_scale, *constants)
