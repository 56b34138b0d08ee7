"""AdamW against the paper's algorithm; and the stochastic rounding of bfloat16 parameters, bit by bit and on average.

The fast launcher updates parameters in several ranges, with others in between that must not change.
"""

import math

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_values
from gpt2_numba.gpu.stochastic_rounding import squirrel_noise
from gpt2_numba.layer_checks.calls import Call, changed, no_error, read, textbook_call
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.running import run_on_device, run_on_host
from gpt2_numba.layer_checks.tolerances import SPREAD, UNIT, half_ulp
from gpt2_numba.layers import adamw as textbook
from gpt2_numba.layers.fast import adamw as fast

SEED = 5
# Betas that float32 represents exactly: then 1 - beta is exact too.
BETA1, BETA2, EPS, DECAY = float(np.float32(0.9)), float(np.float32(0.95)), 1e-3, 0.2
LEARNING_RATE, SCALE = 2.0**-6, float(np.float32(0.37))


def reference_rows(s, normal):
    """Rows of the NumPy reference against the paper's algorithm."""
    count = s.N * s.C
    params, m, v = normal(count), np.zeros(count), np.zeros(count)
    for t in (1, 2, 3):
        grads, decay = normal(count), 0.2 * (t != 2)
        expected = paper_algorithm(
            *(array.tolist() for array in (params, grads, m, v)),
            learning_rate=0.1, beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=decay, grad_scale=0.7, t=t,
        )  # fmt: skip
        textbook.adamw_update(
            params, grads, m, v, np.array([0.0, 0.7]), learning_rate=0.1, beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=decay, t=t
        )  # fmt: skip
        for name, got, right in zip(("params", "m", "v"), (params, m, v), expected):
            # A dozen roundings of values no larger than a few units.
            yield compare(f"adamw, step {t}", name, got, np.array(right), 16 * 2.0**-53 * 4)
    before = [array.copy() for array in (params, m, v)]
    textbook.adamw_update(
        params, grads, m, v, np.array([math.inf, math.nan]), learning_rate=0.1, beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.2, t=4
    )  # fmt: skip
    for name, got, right in zip(("params", "m", "v"), (params, m, v), before):
        yield compare("adamw, no finite norm", name, got, right, 0.0)


# Eleven parameters: those of adamw_update, with the gradients' scale as a number.
def paper_algorithm(params, grads, m, v, learning_rate, beta1, beta2, eps, weight_decay, grad_scale, t):
    """Algorithm 2 of Loshchilov, Hutter 2017, one parameter at a time, in Python floats. Returns lists params, m, v."""
    new_params, new_m, new_v = [], [], []
    for theta, g, mean, square in zip(params, grads, m, v):
        g *= grad_scale
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        step = (mean / (1 - beta1**t)) / (math.sqrt(square / (1 - beta2**t)) + eps)
        new_params.append(theta - learning_rate * step - learning_rate * weight_decay * theta)
        new_m.append(mean)
        new_v.append(square)
    return new_params, new_m, new_v


def update_errors(params, grads, m, after_v, decay, t):
    """Bounds for the parameters before they are rounded, for m and for v. Arrays of the updated parameters only; after_v: v after the step.

    A handful of roundings each; the terms of m may cancel, so these count relative to the terms.
    """
    few = 8 * UNIT
    m_size = BETA1 * np.abs(m) + (1 - BETA1) * np.abs(grads) * SCALE
    update = m_size / (1 - BETA1**t) / (np.sqrt(after_v / (1 - BETA2**t)) + EPS)
    params = few * (LEARNING_RATE * (2 * update + decay * np.abs(params)) + np.abs(params))
    return {"params": params, "m": few * m_size, "v": few * after_v}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    count = s.C * s.C + (6 if s.C % 8 else 0)  # unless C is a multiple of 8: 7 more than one, so that kernels of 2, 4 or 8 have a rest
    params, grads = normal(count), normal(count)
    zeros, means, squares = np.zeros(count), normal(count), np.abs(normal(count))
    for name, t, m, v, decay, scale in (
        ("adamw, first step", 1, zeros, zeros, DECAY, SCALE),
        ("adamw, step 7", 7, means, squares, DECAY, SCALE),
        ("adamw without decay", 7, means, squares, 0.0, SCALE),
        ("adamw, no finite norm", 7, means, squares, DECAY, math.nan),  # nothing changes
    ):  # fmt: skip
        yield textbook_call(
            functions, textbook, "adamw_update",
            dict(params=changed(params), grads=read(grads), m=changed(m, "f32"), v=changed(v, "f32"),
                 norm_and_scale=read(np.array([123.0, scale]), "f32")),
            lambda a, decay=decay, t=t: (
                a.params, a.grads, a.m, a.v, a.norm_and_scale, LEARNING_RATE, BETA1, BETA2, EPS, decay, t
            ),
            no_error if math.isnan(scale) else lambda after, before, storage, decay=decay, t=t: plain_errors(after, before, storage, decay, t),
            name,
        )  # fmt: skip


def plain_errors(after, before, storage, decay, t):
    """Bounds for the parameters, m and v. A bfloat16 parameter is rounded stochastically, to either neighbour."""
    bounds = update_errors(before.params, before.grads, before.m, after.v, decay, t)
    return {**bounds, "params": bounds["params"] + either_neighbour(after.params, bounds["params"], storage)}


def either_neighbour(params, errors, storage):
    """The distance that rounding `params`, off by `errors`, up or down to the storage type may add: 0 for float32."""
    return 2 * half_ulp(np.abs(params) + errors, storage) if storage == BFLOAT16_BITS else 0


GAP = 40  # elements among `params` that are not updated


def scattered_ranges(count):
    """Ranges (gpu/ranges.py) that lie in a different order in each of three arrays, for `count` elements among count + GAP parameters.

    Returns the table, the indices of these elements among the parameters and among the gradients, and which of them decay.
    """
    lengths, gaps, order, decays = np.array([8, 16, count - 72, 48]), np.array([8, 16, 32, 40]), [2, 0, 3, 1], np.array([1, 0, 1, 0])
    starts = np.cumsum(lengths) - lengths
    in_grads = np.empty(4, np.int64)
    in_grads[order] = np.cumsum(lengths[order]) - lengths[order]
    ranges = np.array([*zip(starts, starts + gaps, in_grads, decays), (count, 0, 0, 0)], np.int64)
    row = np.repeat(np.arange(4), lengths)
    within = np.arange(count) - starts[row]
    return ranges, ranges[row, 1] + within, ranges[row, 2] + within, decays[row] == 1


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    count = s.C * s.C + 8  # a multiple of eight, but not of a block's share
    ranges, in_params, in_grads, decays = scattered_ranges(count)
    hyper = dict(beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY)
    params, grads = normal(count + GAP), normal(count)

    def step_tensors(t, rate=LEARNING_RATE, beta1=BETA1, beta2=BETA2, scale=SCALE):
        return dict(
            step_values=read(np.array([rate, 1 - beta1**t, 1 - beta2**t], np.float32), "f32"),
            rounding_seed=read(np.array([SEED]), "u32"),
            norm_and_scale=read(np.array([123.0, scale], np.float32), "f32"),
        )

    def call(name, t, m, v, has_master=False, check=None, scale=SCALE):
        tensors = dict(params=changed(params), grads=read(grads), m=changed(m, "f32"), v=changed(v, "f32"))
        if has_master:
            tensors["master"] = changed(params[in_params], "f32")
        tensors |= step_tensors(t, scale=scale) | dict(ranges=read(ranges, "i64"))

        def launch(a):
            arrays = a.m, a.v, a.master if has_master else None, a.step_values, a.rounding_seed, a.norm_and_scale, a.ranges
            for first, stop in (0, 16), (16, count):  # two launches, each with at least one range
                fast.adamw_update(a.params, a.grads, *arrays, **hyper, first=first, stop=stop)

        def reference(a):
            weights = a.master if has_master else a.params[in_params]
            for which, decay in (decays, DECAY), (~decays, 0.0):
                arrays = [array[which] for array in (weights, a.grads[in_grads], a.m, a.v)]
                textbook.adamw_update(*arrays, a.norm_and_scale, LEARNING_RATE, BETA1, BETA2, EPS, decay, t)
                weights[which], _, a.m[which], a.v[which] = arrays
            a.params[in_params] = weights

        def errors(after, before, storage):
            weights = before.master if has_master else before.params[in_params]
            bounds = update_errors(weights, before.grads[in_grads], before.m, after.v, DECAY, t)
            master_errors = bounds["params"]
            params_errors = np.zeros(count + GAP)  # no error where nothing is updated
            params_errors[in_params] = master_errors + either_neighbour(after.params[in_params], master_errors, storage)
            return {**bounds, "master": master_errors, "params": params_errors}

        return Call("adamw_update", name, tensors, launch, no_error if math.isnan(scale) else errors, reference, check)

    yield call("adamw, first step", 1, np.zeros(count), np.zeros(count))
    yield call("adamw, step 7", 7, normal(count), np.abs(normal(count)))
    yield call("adamw, no finite norm", 7, normal(count), np.abs(normal(count)), scale=math.nan)
    if storage == FLOAT32:
        return

    def check_master(call, storage):
        # Here even the bits of the parameters are known: the master weights, rounded with known noise.
        results, rows = run_on_device(call, storage)
        after, before = run_on_host(call, storage)
        errors = call.errors(after, before, storage)
        for name in ("m", "v", "master"):
            yield compare(call.name, name, results[name], getattr(after, name), error_bound=errors[name], storage=FLOAT32)
        expected = bfloat16_values(_stochastically_rounded(results["master"], in_params))
        yield compare(call.name, "params", results["params"][in_params], expected, 0.0)
        yield from rows

    yield call("adamw with master", 7, normal(count), np.abs(normal(count)), has_master=True, check=check_master)

    # Steps from 1.0 of a quarter of the distance to the next bfloat16: rounding to nearest would never move it, so it must move on average.
    draws, step = 4096, 2.0**-10
    zeros, ones = np.zeros(draws, np.float32), np.ones(draws, np.float32)

    def check_mean(call, storage):
        results, rows = run_on_device(call, storage)
        mean = bfloat16_values(results["params"]).astype(np.float64).mean(keepdims=True)
        deviation = 2.0**-8 * math.sqrt(0.25 * 0.75 / draws)  # of the mean of `draws` draws with probability 1/4
        yield compare(call.name, "mean", mean, expected=np.array([1 - step]), error_bound=SPREAD * deviation)
        yield from rows

    yield Call(
        "adamw_update",
        "adamw, tiny steps",
        dict(params=changed(ones), grads=read(ones), m=changed(zeros, "f32"), v=changed(zeros, "f32"),
             **step_tensors(1, rate=step, beta1=0.5, beta2=0.5, scale=1.0), ranges=read(np.array([[0, 0, 0, 0], [draws] * 4]), "i64")),
        lambda a: fast.adamw_update(a.params, a.grads, a.m, a.v, None, a.step_values, a.rounding_seed, a.norm_and_scale, a.ranges,
                                    beta1=0.5, beta2=0.5, eps=0.0, weight_decay=0.0),
        check=check_mean,
    )  # fmt: skip


def _stochastically_rounded(values, indices):
    """The bfloat16 bits that float32 `values` at `indices` round to, by the definition in gpu/stochastic_rounding.py."""
    noise = squirrel_noise(indices.astype(np.uint64), np.uint64(SEED)) & np.uint64(0xFFFF)
    return ((values.view(np.uint32) + noise) >> np.uint64(16)).astype(np.uint16)
