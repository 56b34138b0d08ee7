"""AdamW against the paper's algorithm, and bfloat16 parameters that are rounded stochastically, bit by bit and on average.

The fast launcher updates parameters that lie in several ranges, between others that must stay as they are.
"""

import math

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_values
from gpt2_numba.gpu.stochastic_rounding import squirrel_noise
from gpt2_numba.layer_checks.calls import Call, changed, read, textbook_call
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.running import run_on_device, run_on_host
from gpt2_numba.layer_checks.tolerances import SPREAD, UNIT, half_ulp
from gpt2_numba.layers import adamw as textbook
from gpt2_numba.layers.fast import adamw as fast

SEED = 5
# Betas that float32 holds exactly: then 1 - beta is exact, too.
BETA1, BETA2, EPS, DECAY = float(np.float32(0.9)), float(np.float32(0.95)), 1e-3, 0.2
LEARNING_RATE, SCALE = 2.0**-6, float(np.float32(0.37))


def reference_rows(s, normal):
    """Rows of the NumPy reference against the paper's algorithm."""
    count = s.N * s.C
    params, m, v = normal(count), np.zeros(count), np.zeros(count)
    for t in (1, 2, 3):
        grads, decay = normal(count), 0.2 * (t != 2)
        expected = algorithm_of_the_paper(*(array.tolist() for array in (params, grads, m, v)), 0.1, 0.9, 0.95, 1e-3, decay, 0.7, t)
        textbook.adamw_update(params, grads, m, v, np.array([0.0, 0.7]), 0.1, 0.9, 0.95, 1e-3, decay, t)
        for name, came, right in zip(("params", "m", "v"), (params, m, v), expected):
            # A dozen roundings of numbers no larger than a few units.
            yield compare(f"adamw, step {t}", name, came, np.array(right), 16 * 2.0**-53 * 4)


def algorithm_of_the_paper(params, grads, m, v, learning_rate, beta1, beta2, eps, weight_decay, grad_scale, t):
    """Algorithm 2 of Loshchilov, Hutter 2017, one parameter at a time, in Python's floats. Returns lists params, m, v."""
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


def errors_of(params, grads, m, after_v, decay, t):
    """Bounds for the parameters before they are rounded, m and v. All arrays of the updated parameters; after_v as it is after the step.

    A handful of roundings each; m may cancel, so they count relative to what is added.
    """
    few = 8 * UNIT
    m_size = BETA1 * np.abs(m) + (1 - BETA1) * np.abs(grads) * SCALE
    update = m_size / (1 - BETA1**t) / (np.sqrt(after_v / (1 - BETA2**t)) + EPS)
    params = few * (LEARNING_RATE * (2 * update + decay * np.abs(params)) + np.abs(params))
    return {"params": params, "m": few * m_size, "v": few * after_v}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions, taken from a namespace, each with the bounds of its errors."""
    count = s.C * s.C
    params, grads = normal(count), normal(count)
    zeros, means, squares = np.zeros(count), normal(count), np.abs(normal(count))
    for name, t, m, v, decay in (
        ("adamw, first step", 1, zeros, zeros, DECAY),
        ("adamw, step 7", 7, means, squares, DECAY),
        ("adamw without decay", 7, means, squares, 0.0),
    ):  # fmt: skip
        yield textbook_call(
            functions, textbook, "adamw_update",
            dict(params=changed(params), grads=read(grads), m=changed(m, "f32"), v=changed(v, "f32"),
                 norm_and_scale=read(np.array([123.0, SCALE]), "f32")),
            lambda a, decay=decay, t=t: (
                a.params, a.grads, a.m, a.v, a.norm_and_scale, LEARNING_RATE, BETA1, BETA2, EPS, decay, t
            ),
            lambda after, before, storage, decay=decay, t=t: plain_errors(after, before, storage, decay, t),
            name,
        )  # fmt: skip


def plain_errors(after, before, storage, decay, t):
    """Bounds for the parameters, m and v. A bfloat16 parameter is rounded stochastically: it may be either neighbour."""
    bounds = errors_of(before.params, before.grads, before.m, after.v, decay, t)
    return {**bounds, "params": bounds["params"] + either_neighbour(after.params, bounds["params"], storage)}


def either_neighbour(params, errors, storage):
    """How far from `params` a number is that has been rounded up or down to the storage type, after errors: nothing in float32."""
    return 2 * half_ulp(np.abs(params) + errors, storage) if storage == BFLOAT16_BITS else 0


GAP = 40  # numbers among `params` that are not to be updated


def scattered(count):
    """Ranges (gpu/ranges.py) that lie in three orders in three arrays, for `count` numbers to be updated among count + GAP parameters.

    Returns the table, the places of these numbers among parameters and among gradients, and which of them decay.
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
    """Yield the Calls of the fast launchers, each with the bounds of its errors."""
    count = s.C * s.C + 8  # a multiple of eight, but not of a block's share
    ranges, in_params, in_grads, decays = scattered(count)
    hyper = dict(beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY)
    params, grads = normal(count + GAP), normal(count)

    def values_of_step(t, rate=LEARNING_RATE, beta1=BETA1, beta2=BETA2, scale=SCALE):
        return dict(
            step_values=read(np.array([rate, 1 - beta1**t, 1 - beta2**t], np.float32), "f32"),
            rounding_seed=read(np.array([SEED]), "u32"),
            norm_and_scale=read(np.array([123.0, scale], np.float32), "f32"),
        )

    def call(name, t, m, v, has_master=False, check=None):
        tensors = dict(params=changed(params), grads=read(grads), m=changed(m, "f32"), v=changed(v, "f32"))
        if has_master:
            tensors["master"] = changed(params[in_params], "f32")
        tensors |= values_of_step(t) | dict(ranges=read(ranges, "i64"))

        def launch(a):
            arrays = a.m, a.v, a.master if has_master else None, a.step_values, a.rounding_seed, a.norm_and_scale, a.ranges
            for first, stop in (0, 16), (16, count):  # in two launches, a range each at least
                fast.adamw_update(a.params, a.grads, *arrays, **hyper, first=first, stop=stop)

        def reference(a):
            mine = a.master if has_master else a.params[in_params]
            for which, decay in (decays, DECAY), (~decays, 0.0):
                arrays = [array[which] for array in (mine, a.grads[in_grads], a.m, a.v)]
                textbook.adamw_update(*arrays, a.norm_and_scale, LEARNING_RATE, BETA1, BETA2, EPS, decay, t)
                mine[which], _, a.m[which], a.v[which] = arrays
            a.params[in_params] = mine

        def errors(after, before, storage):
            mine = before.master if has_master else before.params[in_params]
            bounds = errors_of(mine, before.grads[in_grads], before.m, after.v, DECAY, t)
            weights = bounds["params"]
            all_params = np.zeros(count + GAP)  # no error where nothing is to be updated
            all_params[in_params] = weights + either_neighbour(after.params[in_params], weights, storage)
            return {**bounds, "master": weights, "params": all_params}

        return Call("adamw_update", name, tensors, launch, errors, reference, check)

    yield call("adamw, first step", 1, np.zeros(count), np.zeros(count))
    yield call("adamw, step 7", 7, normal(count), np.abs(normal(count)))
    if storage == FLOAT32:
        return

    def check_master(call, storage):
        # Here the parameters' very bits are known: the master's, rounded with noise that is known.
        results, rows = run_on_device(call, storage)
        after, before = run_on_host(call, storage)
        errors = call.errors(after, before, storage)
        for name in ("m", "v", "master"):
            yield compare(call.name, name, results[name], getattr(after, name), errors[name], FLOAT32)
        expected = bfloat16_values(_stochastically_rounded(results["master"], in_params))
        yield compare(call.name, "params", results["params"][in_params], expected, 0.0)
        yield from rows

    yield call("adamw with master", 7, normal(count), np.abs(normal(count)), True, check_master)

    # From 1.0 a quarter of the way to the next bfloat16: rounded to the nearest it would stay for ever, so it must move on average.
    draws, step = 4096, 2.0**-10
    zeros, ones = np.zeros(draws, np.float32), np.ones(draws, np.float32)

    def check_mean(call, storage):
        results, rows = run_on_device(call, storage)
        mean = bfloat16_values(results["params"]).astype(np.float64).mean(keepdims=True)
        deviation = 2.0**-8 * math.sqrt(0.25 * 0.75 / draws)  # of the mean of `draws` draws with probability 1/4
        yield compare(call.name, "mean", mean, np.array([1 - step]), SPREAD * deviation)
        yield from rows

    yield Call(
        "adamw_update",
        "adamw, tiny steps",
        dict(params=changed(ones), grads=read(ones), m=changed(zeros, "f32"), v=changed(zeros, "f32"),
             **values_of_step(1, step, 0.5, 0.5, 1.0), ranges=read(np.array([[0, 0, 0, 0], [draws] * 4]), "i64")),
        lambda a: fast.adamw_update(a.params, a.grads, a.m, a.v, None, a.step_values, a.rounding_seed, a.norm_and_scale, a.ranges,
                                    beta1=0.5, beta2=0.5, eps=0.0, weight_decay=0.0),
        check=check_mean,
    )  # fmt: skip


def _stochastically_rounded(values, places):
    """Bits of bfloat16 that float32 `values` are rounded to, by the definition in gpu/stochastic_rounding.py."""
    noise = squirrel_noise(places.astype(np.uint64), np.uint64(SEED)) & np.uint64(0xFFFF)
    return ((values.view(np.uint32) + noise) >> np.uint64(16)).astype(np.uint16)
