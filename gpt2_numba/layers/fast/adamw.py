"""AdamW, fast: all parameters in one launch, every array read once and written once, in float32 or in stochastically rounded bfloat16.

What is different from the plain kernel of layers/adamw.py, and what it gains. Figures: one H200, 2026-11-22, GPT-2 124M in bf16 with
float32 master weights, 124,475,904 parameters.

    All tensors lie one after the other in one array, so one launch updates them all. `ranges` (gpu/ranges.py) lists which of them decay.
    With ZeRO, where the processes share the work of the update (parallel/shards.py), a process updates only its own parts of the parameters
    and has m, v and master for these alone; then `ranges` also lists where each part lies. A thread finds its range by bisection, after it
    has started the loads that do not depend on it: 858 µs; with a scan of the table 872.

    Memory is moved 16 bytes at a time: eight neighbouring parameters per thread (gpu/memory_access.py). 96 % of the rate of a copy, 98 % in
    fp32.

    What changes from step to step (the learning rate, 1 - β1^t, 1 - β2^t, the gradients' scale, the seed) is read from device memory, so
    that a step can be recorded as a CUDA graph and replayed, and the host does not wait for the norm.

    A bfloat16 model can keep a float32 copy of its parameters (`master`): the copy is updated, and the bfloat16 parameter is the copy,
    rounded. With or without a copy, rounding is stochastic (gpu/stochastic_rounding.py): rounded to nearest, a step smaller than half a
    unit in the last place would never take effect. The noise depends on the parameter's index among all parameters, not on the process.

    | array          | shape, type                 | access                                                                      |
    | -------------- | --------------------------- | --------------------------------------------------------------------------- |
    | params         | (all,) float32 or bfloat16  | [rw] those in `ranges`; a multiple of 8 elements, as are any and count      |
    | grads          | (any,) same type            | [r]                                                                         |
    | m, v           | (count,) float32            | [rw] of the parameters that this process updates                            |
    | master         | (count,) float32            | [rw] may be None, and is if params is float32                               |
    | step_values    | (3,) float32                | [r] the learning rate, 1 - β1^t, 1 - β2^t                                   |
    | rounding_seed  | (1,) uint32                 | [r] selects the noise of stochastic rounding                                |
    | norm_and_scale | (2,) float32                | [r] from global_norm: [1] multiplies the gradients; NaN: nothing changes    |
    | ranges         | (K + 1, 4) int64            | [r] where these parameters lie in params and grads, and which decay         |
"""

import math

import numpy as np
from numba import cuda, float32, uint64

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_width
from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.ranges import DECAYS, IN_GRADS, IN_PARAMS, START, find_range
from gpt2_numba.gpu.stochastic_rounding import round_to_bfloat16_stochastically
from gpt2_numba.integers import ceil_div

ONE, ZERO = np.float32(1.0), np.float32(0.0)
THREADS = 32 if SIMULATING else 256


# ----------------------------------------------------------------------------------------------------------- kernel


@cuda.jit(cache=True)
def adamw_kernel(
    params, grads, m, v, master, has_master, step_values, rounding_seed, norm_and_scale, ranges, first, stop,
    beta1, beta2, eps, weight_decay, stochastic,
):  # fmt: skip
    """One thread updates the eight parameters at local position i: one read and one write of each array."""
    i = first + cuda.grid(1) * WIDTH
    if i >= stop:
        return
    param = cuda.local.array(WIDTH, float32)
    grad = cuda.local.array(WIDTH, float32)
    mean = cuda.local.array(WIDTH, float32)
    square = cuda.local.array(WIDTH, float32)
    load8(m, i, mean)  # first what does not depend on the range: these loads are in flight during the search
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
    if math.isnan(scale):  # loss or norm is not finite. Asked here, when all loads are in flight
        return
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


# Fifteen parameters, to be passed by keyword: every array that a recorded step reads or writes, the constants that are recorded with it,
# and which part of the parameters to update.
def adamw_update(
    params, grads, m, v, master, step_values, rounding_seed, norm_and_scale, ranges, beta1, beta2, eps, weight_decay, first=0, stop=None
):  # fmt: skip
    """One step of AdamW.

    Arrays as in the table above. beta1, beta2, eps, weight_decay: floats.
    first, stop: update only the parameters at local positions first to stop - 1, both multiples of 8; all by default
    Raises ValueError or TypeError if a shape or type does not fit.
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
    check_on_device("adamw_update", params, "layers/adamw.py")
    check_width("adamw_update", all=params.shape[0], any=grads.shape[0], count=count, first=first, stop=stop)
    if first < stop:
        adamw_kernel[ceil_div(stop - first, THREADS * WIDTH), THREADS, compute_stream()](
            params, grads, m, v, m if master is None else master, master is not None, step_values, rounding_seed, norm_and_scale, ranges,
            first, stop, np.float32(beta1), np.float32(beta2), np.float32(eps), np.float32(weight_decay), params.dtype == BFLOAT16_BITS,
        )  # fmt: skip
