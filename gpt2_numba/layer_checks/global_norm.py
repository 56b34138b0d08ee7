"""The global norm of the gradients, and the scale that clips them: once a norm that is too large, once one that is not."""

import math

import numpy as np

from gpt2_numba.layer_checks.adamw import scattered
from gpt2_numba.layer_checks.calls import Call, read, scratch, written
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers.global_norm import BLOCKS, THREADS, norm_and_scale, sum_of_squares


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    count = s.N * s.C
    ranges, _, in_grads, _ = scattered(count)
    grads, partials = normal(count + 8), np.full(BLOCKS, np.nan)  # eight of them do not count
    norm = math.sqrt(math.fsum(g * g for g in grads[in_grads]))
    for name, max_norm, scale in (("clipped", norm / 4, 0.25), ("not clipped", norm * 4, 1.0)):
        came = np.full(2, np.nan)
        sum_of_squares(partials, grads, ranges)
        norm_and_scale(came, partials, max_norm)
        expected = np.array([norm, scale])
        yield compare(f"global norm, {name}", "norm, scale", came, expected, math.sqrt(grads.size) * 2.0**-53 * expected)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    count = s.Vp * s.C  # the largest tensor
    ranges, _, _, _ = scattered(count)
    grads = normal(count + 8)  # eight of them do not count

    def errors(after, before, storage):
        chain = count / (BLOCKS * THREADS) + BLOCKS / THREADS + 20
        # The root halves the relative error of the sum; root and division add one rounding each. A scale of 1 is exact.
        relative = summation_error(chain, 1.0) / 2 + 2 * UNIT
        return {"result": after.result * np.where(after.result == 1, 0, relative)}

    def launch(a, partials, max_norm):
        sum_of_squares(partials, a.grads, a.ranges)
        norm_and_scale(a.result, partials, max_norm)

    def call(name, max_norm):
        return Call(
            f"global norm, {name}",
            dict(result=written(2, kind="f32"), grads=read(grads), partials=scratch(BLOCKS, kind="f32"), ranges=read(ranges, "i64")),
            lambda a: launch(a, a.partials, max_norm),
            errors,
            lambda a: launch(a, np.full(BLOCKS, np.nan), max_norm),
        )

    yield call("clipped", 1.0)
    yield call("not clipped", 1e9)
