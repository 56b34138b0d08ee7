"""A step of AdamW, for all parameters of an array.

    g = scale · grads         m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²
    params -= learning_rate (m̂ / (sqrt(v̂) + eps) + weight_decay params)        m̂ = m / (1 - β1^t)        v̂ = v / (1 - β2^t)

`params`, `m` and `v` are float32 (count,), updated in place [rw]; `grads` [r] is float32 (count,), `norm_and_scale` [r] float32 (2,):
norm_and_scale[1] is the scale. If it is NaN, params, m and v stay as they are. The numbers are Python floats, t an int, from 1.
`correction1` and `correction2` in the kernel are 1 - β1^t and 1 - β2^t. A thread has one parameter; there may be more threads than
parameters. It reads each array once: keep the new m and v in variables.

In the launcher `numbers` are Python's floats, of 64 bits, and the whole kernel would compute in float64: your line there makes float32 of
them. This function is your own GPT-2's.

    python -m tutorials.check 09_adamw_update
"""

import math

import numpy as np
from numba import cuda

THREADS = 32
ONE = np.float32(1)


@cuda.jit
def adamw_kernel(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, correction1, correction2):
    """Thread i of all threads has parameter i."""
    i = cuda.grid(1)
    # your lines:
    scale = norm_and_scale[1]
    if i < params.shape[0] and not math.isnan(scale):
        param, g = params[i], scale * grads[i]
        mean = beta1 * m[i] + (ONE - beta1) * g
        square = beta2 * v[i] + (ONE - beta2) * g * g
        update = (mean / correction1) / (math.sqrt(square / correction2) + eps)
        m[i], v[i] = mean, square
        params[i] = param - learning_rate * (update + weight_decay * param)
    # end of your lines


def adamw_update(params, grads, m, v, norm_and_scale, learning_rate, beta1, beta2, eps, weight_decay, t):
    """Launch a thread for each parameter."""
    numbers = [learning_rate, beta1, beta2, eps, weight_decay, 1 - beta1**t, 1 - beta2**t]
    # your lines:
    numbers = [np.float32(number) for number in numbers]
    # end of your lines
    adamw_kernel[(params.shape[0] + THREADS - 1) // THREADS, THREADS](params, grads, m, v, norm_and_scale, *numbers)
