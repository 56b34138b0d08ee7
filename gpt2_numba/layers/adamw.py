"""AdamW: every parameter takes a step against its gradient's running mean, in units of its running size.

    m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²          g = scale * gradient (the scale clips the norm)
    m̂ = m / (1 - β1^t)           v̂ = v / (1 - β2^t)              t = 1, 2, ...: both means start at zero, this makes up for it
    param -= lr (m̂ / (sqrt(v̂) + eps) + weight_decay param)       weight_decay is 0 for biases and LayerNorms

Kingma, Ba 2014, "Adam" (arXiv:1412.6980); Loshchilov, Hutter 2017, "Decoupled Weight Decay Regularization" (arXiv:1711.05101).

All tensors of the model lie one after the other, so one launch can update them all. With ZeRO a process updates its parts of them only, and
keeps m, v and master for these: `ranges` tells where each part lies (gpu/ranges.py). What changes from step to step is read from the device's
memory, so that a step can be recorded once and replayed, and nobody waits for the norm.

A bfloat16 model keeps, if asked to, a float32 copy of its parameters (`master`): the step is made on the copy, and the bfloat16
parameter is the copy, rounded. Either way it is rounded stochastically (gpu/stochastic_rounding.py), with noise that depends on the
parameter's place among all parameters, so that it makes no difference which process does it.

    | array          | shape, type      | access                                                                  |
    | -------------- | ---------------- | ----------------------------------------------------------------------- |
    | params         | (all,)           | [r], [w] float32 or bfloat16                                            |
    | grads          | (any,)           | [r] same type                                                           |
    | m, v           | (count,) float32 | [r], [w] of the parameters that this process updates                    |
    | master         | (count,) float32 | [r], [w]; None where there are none (always so if params is float32)    |
    | step_values    | (3,) float32     | [r] the learning rate, 1 - β1^t, 1 - β2^t                               |
    | rounding_seed  | (1,) uint32      | [r] chooses the noise of stochastic rounding                            |
    | norm_and_scale | (2,) float32     | [r] of global_norm: [1] multiplies the gradients                        |
    | ranges         | (K + 1, 4) int64 | [r] where these parameters lie in params and grads, and which decay     |
"""

import numpy as np
from numba import cuda, float32, njit, uint64

from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.ranges import DECAYS, IN_GRADS, IN_PARAMS, START, find_range
from gpt2_numba.gpu.stochastic_rounding import round_to_bfloat16_stochastically

ONE, ZERO = np.float32(1.0), np.float32(0.0)
THREADS = 32 if SIMULATING else 256


# ---------------------------------------------------------------------------------------------- reference, on the host


def adamw_update_ref(
    params, grads, m, v, step_values, norm_and_scale, ranges, beta1, beta2, eps, weight_decay, first, stop
):  # fmt: skip
    """The definition, in place, range by range."""
    real = params.dtype.type  # float32; float64 in the checks
    learning_rate, correction1, correction2 = (real(value) for value in step_values)
    constants = [real(value) for value in (norm_and_scale[1], beta1, 1 - beta1, beta2, 1 - beta2, eps)]
    for row, following in zip(ranges, ranges[1:]):
        begin, end = max(row[START], first), min(following[START], stop)
        if begin < end:
            kept = real(1 - learning_rate * weight_decay) if row[DECAYS] else real(1)
            local, param, grad = (
                slice(begin + shift, end + shift) for shift in (0, row[IN_PARAMS] - row[START], row[IN_GRADS] - row[START])
            )
            _step(params[param], grads[grad], m[local], v[local], learning_rate / correction1, correction2, kept, *constants)


# Compiled for the processor: one pass over memory where NumPy would make a dozen, and three times as fast.
@njit(cache=True, nogil=True, error_model="numpy")
def _step(params, grads, m, v, step_size, correction2, kept, scale, beta1, rest1, beta2, rest2, eps):
    for i in range(len(params)):
        grad = scale * grads[i]
        m[i] = beta1 * m[i] + rest1 * grad
        v[i] = beta2 * v[i] + rest2 * (grad * grad)
        params[i] = kept * params[i] - step_size * (m[i] / (np.sqrt(v[i] / correction2) + eps))


# ----------------------------------------------------------------------------------------------------------- kernel


@cuda.jit(cache=True)
def adamw_kernel(
    params, grads, m, v, master, has_master, step_values, rounding_seed, norm_and_scale, ranges, first, stop, beta1, beta2, eps, weight_decay,
    stochastic,
):  # fmt: skip
    """One thread updates eight parameters, whose local place is i: one read and one write of each array."""
    i = first + cuda.grid(1) * WIDTH
    if i >= stop:
        return
    param = cuda.local.array(WIDTH, float32)
    grad = cuda.local.array(WIDTH, float32)
    mean = cuda.local.array(WIDTH, float32)
    square = cuda.local.array(WIDTH, float32)
    load8(m, i, mean)  # first of all, what lies in local arrays: it is on its way while the range is looked for
    load8(v, i, square)
    if has_master:
        load8(master, i, param)
    r = find_range(ranges, i)
    in_params, in_grads = i - ranges[r, START] + ranges[r, IN_PARAMS], i - ranges[r, START] + ranges[r, IN_GRADS]
    decay = weight_decay if ranges[r, DECAYS] else ZERO
    if not has_master:
        load8(params, in_params, param)
    load8(grads, in_grads, grad)
    learning_rate, correction1, correction2 = step_values[0], step_values[1], step_values[2]
    scale = norm_and_scale[1]
    for k in range(WIDTH):
        g = grad[k] * scale
        mean[k] = beta1 * mean[k] + (ONE - beta1) * g
        square[k] = beta2 * square[k] + (ONE - beta2) * g * g
        update = (mean[k] / correction1) / (sqrt(square[k] / correction2) + eps)
        param[k] -= learning_rate * (update + decay * param[k])
    store8(m, i, mean)
    store8(v, i, square)
    if has_master:
        store8(master, i, param)
    if stochastic:
        seed = uint64(rounding_seed[0])
        for k in range(WIDTH):
            param[k] = round_to_bfloat16_stochastically(param[k], in_params + k, seed)
    store8(params, in_params, param)


# --------------------------------------------------------------------------------------------------------- launcher


def adamw_update(
    params, grads, m, v, master, step_values, rounding_seed, norm_and_scale, ranges, beta1, beta2, eps, weight_decay, first=0, stop=None
):  # fmt: skip
    """One step of AdamW. The arrays decide: NumPy runs the reference, device arrays the kernel.

    Arrays as in the table above, on one side all of them; count a multiple of 8 on a GPU. beta1, beta2, eps, weight_decay: floats.
    first, stop: only the parameters with local places [first, stop), multiples of 8; all by default
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    count = m.shape[0]
    stop = count if stop is None else stop
    check_arrays(
        "adamw_update", {"all": params.shape[0], "any": grads.shape[0], "count": count, "K+1": ranges.shape[0]},
        params=(params, "all"), grads=(grads, "any"), m=(m, "f32 count"), v=(v, "f32 count"), master=(master, "f32 count"),
        step_values=(step_values, "f32 3"), rounding_seed=(rounding_seed, "u32 1"), norm_and_scale=(norm_and_scale, "f32 2"),
        ranges=(ranges, "i64 K+1 4"),
    )  # fmt: skip
    if not 0 <= first <= stop <= count:
        raise ValueError(f"adamw_update: 0 <= first <= stop <= count = {count} must hold, got {first} and {stop}")
    if on_host(params):
        if master is not None:
            raise ValueError("adamw_update: master must be None on the host, where parameters are float32 themselves")
        return adamw_update_ref(
            params, grads, m, v, step_values, norm_and_scale, ranges, beta1, beta2, eps, weight_decay, first, stop
        )  # fmt: skip
    check_width("adamw_update", all=params.shape[0], any=grads.shape[0], count=count, first=first, stop=stop)
    if first < stop:
        adamw_kernel[-(-(stop - first) // (THREADS * WIDTH)), THREADS, compute_stream()](
            params, grads, m, v, m if master is None else master, master is not None, step_values, rounding_seed, norm_and_scale, ranges,
            first, stop, np.float32(beta1), np.float32(beta2), np.float32(eps), np.float32(weight_decay), params.dtype == BFLOAT16_BITS,
        )  # fmt: skip
