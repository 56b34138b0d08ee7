"""The global norm of the gradients, and the scale that clips them: for a norm that is too large, and for one that is not."""

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


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against the definition."""
    grads = normal(s.N * s.C)
    norm = math.sqrt(math.fsum(g * g for g in grads))
    for name, max_norm, scale in (("clipped", norm / 4, 0.25), ("not clipped", norm * 4, 1.0)):
        result, partials = np.full(2, np.nan), np.zeros(textbook.PARTIALS)
        for piece in (grads[:5], grads[5:]):  # the sums accumulate
            textbook.sum_of_squares(partials, piece)
        textbook.norm_and_scale(result, partials, max_norm)
        expected = np.array([norm, scale])
        yield compare(f"global norm, {name}", "norm, scale", result, expected, math.sqrt(grads.size) * 2.0**-53 * expected)


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
            functions, textbook, "norm_and_scale", dict(result=written(2, kind="f32"), partials=read(1 + partials, "f32")),
            lambda a, max_norm=max_norm: (a.result, a.partials, max_norm),
            errors=lambda after, before, storage: result_errors(after, textbook.PARTIALS), name=f"global norm, {name}",
        )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, both of them in each Call, with its error bounds."""
    count = s.Vp * s.C  # the largest tensor
    ranges, _, in_grads, _ = scattered_ranges(count)
    grads = normal(count + 8)  # the last eight are in no range
    additions = count / (fast.BLOCKS * fast.THREADS) + fast.BLOCKS / fast.THREADS + 20

    def launch(a, max_norm):
        fast.sum_of_squares(a.partials, a.grads, a.ranges)
        fast.norm_and_scale(a.result, a.partials, max_norm)

    def reference(a, max_norm):
        partials = np.zeros(textbook.PARTIALS)
        textbook.sum_of_squares(partials, a.grads[in_grads])
        textbook.norm_and_scale(a.result, partials, max_norm)

    for name, max_norm in (("clipped", 1.0), ("not clipped", 1e9)):
        yield Call(
            "sum_of_squares",
            f"global norm, {name}",
            dict(result=written(2, kind="f32"), grads=read(grads), partials=scratch(fast.BLOCKS, kind="f32"), ranges=read(ranges, "i64")),
            lambda a, max_norm=max_norm: launch(a, max_norm),
            lambda after, before, storage: result_errors(after, additions),
            lambda a, max_norm=max_norm: reference(a, max_norm),
        )
