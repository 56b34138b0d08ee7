"""AdamW: every parameter takes a step against its gradient's running mean, in units of its running size.

    m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²          g = grad_scale * gradient (grad_scale clips the norm)
    m̂ = m / (1 - β1^t)           v̂ = v / (1 - β2^t)              t = 1, 2, ...: both means start at zero, this makes up for it
    param -= lr (m̂ / (sqrt(v̂) + eps) + weight_decay param)

Kingma, Ba 2014, "Adam" (arXiv:1412.6980); Loshchilov, Hutter 2017, "Decoupled Weight Decay Regularization" (arXiv:1711.05101).

A bfloat16 model keeps, if asked to, a float32 copy of its parameters (`master`): the step is made on the copy, and the bfloat16
parameter is the copy, rounded. Either way it is rounded stochastically: see gpu/stochastic_rounding.py.

    | array  | shape, type      | access                                                                  |
    | ------ | ---------------- | ----------------------------------------------------------------------- |
    | params | (count,)         | [r], [w] float32 or bfloat16                                            |
    | grads  | (count,)         | [r] same type                                                           |
    | m, v   | (count,) float32 | [r], [w]                                                                |
    | master | (count,) float32 | [r], [w]; None where there are none (always so if params is float32)    |
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.stochastic_rounding import round_to_bfloat16_stochastically

ONE = np.float32(1.0)
THREADS = 32 if SIMULATING else 256


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def adamw_update_ref(params, grads, m, v, learning_rate, beta1, beta2, eps, weight_decay, grad_scale, t):
    """The definition, in place, a piece at a time so that the values between stay in the processor's cache."""
    real = params.dtype.type
    correction1, correction2 = real(1 - beta1**t), real(1 - beta2**t)
    step_size, decay, scale = real(learning_rate), real(learning_rate * weight_decay), real(grad_scale)
    for start in range(0, len(params), 1 << 15):
        piece = slice(start, start + (1 << 15))
        param, m_piece, v_piece = params[piece], m[piece], v[piece]
        grad = grads[piece] * scale
        m_piece *= real(beta1)
        m_piece += real(1 - beta1) * grad
        v_piece *= real(beta2)
        v_piece += real(1 - beta2) * grad * grad
        update = m_piece / correction1
        update /= np.sqrt(v_piece / correction2) + real(eps)
        update *= step_size
        update += decay * param
        param -= update


# ----------------------------------------------------------------------------------------------------------- kernel


@cuda.jit
def adamw_kernel(
    params, grads, m, v, master, has_master, learning_rate, beta1, beta2, correction1, correction2, eps, weight_decay,
    grad_scale, stochastic, first_index, seed,
):  # fmt: skip
    """One thread updates eight parameters: one read and one write of each array."""
    i = cuda.grid(1) * WIDTH
    if i >= params.shape[0]:
        return
    param = cuda.local.array(WIDTH, float32)
    grad = cuda.local.array(WIDTH, float32)
    mean = cuda.local.array(WIDTH, float32)
    square = cuda.local.array(WIDTH, float32)
    if has_master:
        load8(master, i, param)
    else:
        load8(params, i, param)
    load8(grads, i, grad)
    load8(m, i, mean)
    load8(v, i, square)
    for k in range(WIDTH):
        g = grad[k] * grad_scale
        mean[k] = beta1 * mean[k] + (ONE - beta1) * g
        square[k] = beta2 * square[k] + (ONE - beta2) * g * g
        update = (mean[k] / correction1) / (sqrt(square[k] / correction2) + eps)
        param[k] -= learning_rate * (update + weight_decay * param[k])
    store8(m, i, mean)
    store8(v, i, square)
    if has_master:
        store8(master, i, param)
    if stochastic:
        for k in range(WIDTH):
            param[k] = round_to_bfloat16_stochastically(param[k], first_index + i + k, seed)
    store8(params, i, param)


# --------------------------------------------------------------------------------------------------------- launcher


def adamw_update(
    params, grads, m, v, master, learning_rate, beta1, beta2, eps, weight_decay, grad_scale, t, first_index=0, seed=0
):
    """One step of AdamW. The arrays decide: NumPy runs the reference, device arrays the kernel.

    params, master, m, v [r], [w]   grads [r]   all (count,), count a multiple of 8 on a GPU; master may be None
    learning_rate, beta1, beta2, eps, weight_decay, grad_scale: floats   t: 1 for the first step
    first_index, seed: noise of stochastic rounding; first_index is params[0]'s place among all parameters, seed below 2**32
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    count = params.shape[0]
    check_arrays(
        "adamw_update", {"count": count},
        params=(params, "count"), grads=(grads, "count"),
        m=(m, "f32 count"), v=(v, "f32 count"), master=(master, "f32 count"),
    )  # fmt: skip
    if on_host(params):
        if master is not None:
            raise ValueError("adamw_update: master must be None on the host, where parameters are float32 themselves")
        return adamw_update_ref(params, grads, m, v, learning_rate, beta1, beta2, eps, weight_decay, grad_scale, t)
    check_width("adamw_update", count=count)
    adamw_kernel[-(-count // (THREADS * WIDTH)), THREADS, compute_stream()](
        params, grads, m, v, m if master is None else master, master is not None,
        np.float32(learning_rate), np.float32(beta1), np.float32(beta2), np.float32(1 - beta1**t), np.float32(1 - beta2**t),
        np.float32(eps), np.float32(weight_decay), np.float32(grad_scale),
        params.dtype == BFLOAT16_BITS, first_index, np.uint64(seed),
    )  # fmt: skip
