"""The global norm of the gradients, and the scale that clips them: once a norm that is too large, once one that is not."""

import math

import numpy as np

from gpt2_numba.layer_checks.calls import Call, read, scratch, written
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers.global_norm import BLOCKS, THREADS, global_norm


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    grads = normal(s.N * s.C)
    norm = math.sqrt(math.fsum(g * g for g in grads))
    for name, max_norm, scale in (("clipped", norm / 4, 0.25), ("not clipped", norm * 4, 1.0)):
        came = np.full(2, np.nan)
        global_norm(came, grads, None, max_norm)
        expected = np.array([norm, scale])
        yield compare(f"global norm, {name}", "norm, scale", came, expected, math.sqrt(grads.size) * 2.0**-53 * expected)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    count = s.Vp * s.C  # the largest tensor
    grads = normal(count)

    def errors(after, before, storage):
        chain = count / (BLOCKS * THREADS) + BLOCKS / THREADS + 20
        # The root halves the relative error of the sum; root and division add one rounding each. A scale of 1 is exact.
        relative = summation_error(chain, 1.0) / 2 + 2 * UNIT
        return {"norm_and_scale": after.norm_and_scale * np.where(after.norm_and_scale == 1, 0, relative)}

    def call(name, max_norm):
        return Call(
            f"global norm, {name}",
            dict(norm_and_scale=written(2, kind="f32"), grads=read(grads), scratch=scratch(BLOCKS, kind="f32")),
            lambda a: global_norm(a.norm_and_scale, a.grads, a.scratch, max_norm),
            errors,
        )

    yield call("clipped", 1.0)
    yield call("not clipped", 1e9)
