"""AdamW against the paper's algorithm, and bfloat16 parameters that are rounded stochastically, bit by bit and on average.

The parameters that are updated lie in several ranges, between others that must stay as they are.
"""

import math

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_values
from gpt2_numba.gpu.stochastic_rounding import squirrel_noise
from gpt2_numba.layer_checks.calls import Call, changed, read
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.running import run_on_device, run_on_host
from gpt2_numba.layer_checks.tolerances import SPREAD, UNIT, half_ulp
from gpt2_numba.layers.adamw import adamw_update

SEED = 5


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    count = s.N * s.C
    ranges, in_params, in_grads, decays = scattered(count)
    all_params, m, v = normal(count + GAP), np.zeros(count), np.zeros(count)
    hyper = dict(beta1=0.9, beta2=0.95, eps=1e-3)
    for t in (1, 2, 3):
        all_grads, right_params = normal(count), all_params.copy()
        params, grads = all_params[in_params], all_grads[in_grads]
        step_values = np.array([0.1, 1 - hyper["beta1"] ** t, 1 - hyper["beta2"] ** t])
        expected = textbook_adamw(
            *(array.tolist() for array in (params, grads, m, v)), learning_rate=0.1, **hyper, grad_scale=0.7, t=t,
            weight_decay=np.where(decays, 0.2, 0).tolist(),
        )  # fmt: skip
        for first, stop in (0, 16), (16, count):  # in two calls: each must leave the other's parameters alone
            adamw_update(
                all_params, all_grads, m, v, None, step_values, np.zeros(1, np.uint32), np.array([0.0, 0.7]), ranges, **hyper,
                weight_decay=0.2, first=first, stop=stop,
            )  # fmt: skip
        right_params[in_params] = expected[0]
        for name, came, right in zip(("params", "m", "v"), (all_params, m, v), (right_params, *expected[1:])):
            # A dozen roundings of numbers no larger than a few units.
            yield compare(f"adamw, step {t}", name, came, np.array(right), 16 * 2.0**-53 * 4)


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


def textbook_adamw(params, grads, m, v, learning_rate, beta1, beta2, eps, weight_decay, grad_scale, t):
    """Algorithm 2 of Loshchilov, Hutter 2017, one parameter at a time, in Python's floats. Returns lists params, m, v."""
    new_params, new_m, new_v = [], [], []
    for theta, g, mean, square, decay in zip(params, grads, m, v, weight_decay):
        g *= grad_scale
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        step = (mean / (1 - beta1**t)) / (math.sqrt(square / (1 - beta2**t)) + eps)
        new_params.append(theta - learning_rate * step - learning_rate * decay * theta)
        new_m.append(mean)
        new_v.append(square)
    return new_params, new_m, new_v


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    # A multiple of eight, but not of a block's share. Betas that float32 holds exactly: then 1 - beta is exact, too.
    count = s.C * s.C + 8
    hyper = dict(beta1=float(np.float32(0.9)), beta2=float(np.float32(0.95)), eps=1e-3, weight_decay=0.2)
    ranges, in_params, in_grads, _ = scattered(count)
    learning_rate, scale = 2.0**-6, float(np.float32(0.37))
    params, grads = normal(count + GAP), normal(count)

    def values_of_step(t, rate=learning_rate, beta1=hyper["beta1"], beta2=hyper["beta2"], factor=scale):
        return dict(
            step_values=read(np.array([rate, 1 - beta1**t, 1 - beta2**t], np.float32), "f32"),
            rounding_seed=read(np.array([SEED]), "u32"),
            norm_and_scale=read(np.array([123.0, factor], np.float32), "f32"),
        )

    def call(name, t, m, v, has_master=False, check=None):
        tensors = dict(params=changed(params), grads=read(grads), m=changed(m, "f32"), v=changed(v, "f32"))
        if has_master:
            tensors["master"] = changed(params[in_params], "f32")
        tensors |= values_of_step(t) | dict(ranges=read(ranges, "i64"))

        def launch(a):
            arrays = a.m, a.v, a.master if has_master else None, a.step_values, a.rounding_seed, a.norm_and_scale, a.ranges
            for first, stop in (0, 16), (16, count):  # in two launches, a range each at least
                adamw_update(a.params, a.grads, *arrays, **hyper, first=first, stop=stop)

        def reference(a):
            all_params = a.params.copy()
            if has_master:
                all_params[in_params] = a.master
            adamw_update(all_params, a.grads, a.m, a.v, None, a.step_values, a.rounding_seed, a.norm_and_scale, a.ranges, **hyper)
            a.params[in_params] = all_params[in_params]
            if has_master:
                a.master[:] = all_params[in_params]

        def errors(after, before, storage):
            # A handful of roundings each; m may cancel, so they count relative to what is added.
            few = 8 * UNIT
            g = np.abs(before.grads[in_grads]) * scale
            m_size = hyper["beta1"] * np.abs(before.m) + (1 - hyper["beta1"]) * g
            update = m_size / (1 - hyper["beta1"] ** t) / (np.sqrt(after.v / (1 - hyper["beta2"] ** t)) + hyper["eps"])
            weights = before.master if has_master else before.params[in_params]
            weights = few * (learning_rate * (2 * update + hyper["weight_decay"] * np.abs(weights)) + np.abs(weights))
            either_neighbour = 2 * half_ulp(np.abs(after.params[in_params]) + weights, storage) if storage == BFLOAT16_BITS else 0
            all_params = np.zeros(count + GAP)  # no error where nothing is to be updated
            all_params[in_params] = weights + either_neighbour
            return {"m": few * m_size, "v": few * after.v, "master": weights, "params": all_params}

        return Call(name, tensors, launch, errors, reference, check)

    yield call("adamw, first step", 1, np.zeros(count), np.zeros(count))
    yield call("adamw, step 7", 7, normal(count), np.abs(normal(count)))
    if storage == FLOAT32:
        return

    def check_master(call, storage):
        # Here the parameters' very bits can be told: the master's, rounded with noise that is known.
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
        deviation = 2.0**-8 * math.sqrt(0.25 * 0.75 / draws)  # of the mean of so many draws with probability 1/4
        yield compare(call.name, "mean", mean, np.array([1 - step]), SPREAD * deviation)
        yield from rows

    yield Call(
        "adamw, tiny steps",
        dict(params=changed(ones), grads=read(ones), m=changed(zeros, "f32"), v=changed(zeros, "f32"),
             **values_of_step(1, step, 0.5, 0.5, 1.0), ranges=read(np.array([[0, 0, 0, 0], [draws] * 4]), "i64")),
        lambda a: adamw_update(a.params, a.grads, a.m, a.v, None, a.step_values, a.rounding_seed, a.norm_and_scale, a.ranges,
                               beta1=0.5, beta2=0.5, eps=0.0, weight_decay=0.0),
        check=check_mean,
    )  # fmt: skip


def _stochastically_rounded(values, places):
    """Bits of bfloat16 that float32 `values` are rounded to, by the definition in gpu/stochastic_rounding.py."""
    noise = squirrel_noise(places.astype(np.uint64), np.uint64(SEED)) & np.uint64(0xFFFF)
    return ((values.view(np.uint32) + noise) >> np.uint64(16)).astype(np.uint16)
