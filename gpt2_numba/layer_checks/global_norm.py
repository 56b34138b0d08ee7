"""The global norm of the gradients, and the scale that clips them: for a norm that is too large, for one that is not, and not finite ones."""

import math

import numpy as np

from gpt2_numba.gpu.backend import to_storage
from gpt2_numba.layer_checks.adamw import scattered_ranges
from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.rows import as_float, compare
from gpt2_numba.layer_checks.running import run_on_device
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers import global_norm as textbook
from gpt2_numba.layers.fast import global_norm as fast

LOSS = np.full(1, 3.25)
NOT_FINITE = {"loss": math.nan, "partials": math.inf}  # one case for each: the array that gets this value


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against the definition."""
    grads = normal(s.N * s.C)
    norm = math.sqrt(math.fsum(g * g for g in grads))
    for name, max_norm, scale in (("clipped", norm / 4, 0.25), ("not clipped", norm * 4, 1.0)):
        result, partials = np.full(2, np.nan), np.zeros(textbook.PARTIALS)
        for piece in (grads[:5], grads[5:]):  # the sums accumulate
            textbook.sum_of_squares(partials, piece)
        textbook.norm_and_scale(result, partials, LOSS, max_norm)
        expected = np.array([norm, scale])
        yield compare(f"global norm, {name}", "norm, scale", result, expected, math.sqrt(grads.size) * 2.0**-53 * expected)
    for which in NOT_FINITE:
        arrays = not_finite(dict(partials=np.ones(textbook.PARTIALS), loss=LOSS), which)
        textbook.norm_and_scale(result, arrays["partials"], arrays["loss"], 1.0)
        yield no_scale(f"global norm, {which} not finite", result)


def not_finite(arrays, which):
    """A copy of `arrays` in which the last element of one of them is not finite."""
    changed_array = arrays[which].copy()
    changed_array[-1] = NOT_FINITE[which]
    return {**arrays, which: changed_array}


def no_scale(name, result):
    """A Row: the scale must not be a number, so that AdamW does nothing."""
    return compare(name, "scale is NaN", np.isnan(result[1:]).astype(np.float32), expected=np.ones(1), error_bound=0.0)


def check_no_scale(call, storage):
    """The `check` of a Call whose norm or loss is not finite."""
    results, rows = run_on_device(call, storage)
    yield no_scale(call.name, results["result"])
    yield from rows


def result_errors(after, additions):
    """Bounds for norm and scale. additions: the longest chain of additions that a square passes through.

    The root halves the relative error of the sum; root and division round once each. A scale of 1 is exact.
    """
    relative = summation_error(additions, 1.0) / 2 + 2 * UNIT
    return {"result": after.result * np.where(after.result == 1, 0, relative)}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    count = s.Vp * s.C + 7  # kernels of 2, 4 or 8 elements have a rest
    partials = np.abs(normal(textbook.PARTIALS))

    def check_sum(call, storage):
        # The kernel decides which square goes to which partial sum, so the total is compared.
        results, rows = run_on_device(call, storage)
        total = results["partials"].sum(dtype=np.float64, keepdims=True)
        expected = (
            partials.sum(dtype=np.float64, keepdims=True)
            + np.square(as_float(to_storage(call.tensors["grads"].values, storage)), dtype=np.float64).sum()
        )
        yield compare(call.name, "Σ partials", total, expected, summation_error(count + 1, expected))
        yield from rows

    yield textbook_call(
        functions, textbook, "sum_of_squares", dict(partials=changed(partials, "f32"), grads=read(normal(count))),
        lambda a: (a.partials, a.grads), name="global norm, sum of squares", check=check_sum,
    )  # fmt: skip
    for name, max_norm in (("clipped", 0.5), ("not clipped", 1e9)):
        yield textbook_call(
            functions, textbook, "norm_and_scale",
            dict(result=written(2, kind="f32"), partials=read(1 + partials, "f32"), loss=read(LOSS, "f32")),
            lambda a, max_norm=max_norm: (a.result, a.partials, a.loss, max_norm),
            errors=lambda after, before, storage: result_errors(after, textbook.PARTIALS), name=f"global norm, {name}",
        )  # fmt: skip
    for which in NOT_FINITE:
        arrays = not_finite(dict(partials=partials, loss=LOSS), which)
        yield textbook_call(
            functions, textbook, "norm_and_scale",
            dict(result=written(2, kind="f32"), **{name: read(values, "f32") for name, values in arrays.items()}),
            lambda a: (a.result, a.partials, a.loss, 1.0), name=f"global norm, {which} not finite", check=check_no_scale,
        )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, both of them in each Call, with its error bounds."""
    count = s.Vp * s.C  # the largest tensor
    ranges, _, in_grads, _ = scattered_ranges(count)
    grads = normal(count + 8)  # the last eight are in no range
    additions = count / (fast.BLOCKS * fast.THREADS) + fast.BLOCKS / fast.THREADS + 20

    def launch(a, max_norm):
        fast.sum_of_squares(a.partials, a.grads, a.ranges)
        fast.norm_and_scale(a.result, a.partials, a.loss, max_norm)

    def reference(a, max_norm):
        partials = np.zeros(textbook.PARTIALS)
        textbook.sum_of_squares(partials, a.grads[in_grads])
        textbook.norm_and_scale(a.result, partials, a.loss, max_norm)

    tensors = dict(result=written(2, kind="f32"), partials=scratch(fast.BLOCKS, kind="f32"), ranges=read(ranges, "i64"))
    for name, max_norm in (("clipped", 1.0), ("not clipped", 1e9)):
        yield Call(
            "sum_of_squares",
            f"global norm, {name}",
            tensors | dict(grads=read(grads), loss=read(LOSS, "f32")),
            lambda a, max_norm=max_norm: launch(a, max_norm),
            lambda after, before, storage: result_errors(after, additions),
            lambda a, max_norm=max_norm: reference(a, max_norm),
        )
    infinite = grads.copy()
    infinite[in_grads[-1]] = math.inf
    for name, values, loss in (("loss", grads, np.full(1, math.nan)), ("norm", infinite, LOSS)):
        yield Call(
            "sum_of_squares", f"global norm, {name} not finite", tensors | dict(grads=read(values), loss=read(loss, "f32")),
            lambda a: launch(a, 1.0), check=check_no_scale,
        )  # fmt: skip
