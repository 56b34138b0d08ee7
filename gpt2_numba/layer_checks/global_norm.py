"""The sum of squares of a tensor, of which the gradients' global norm is made."""

import math

import numpy as np

from gpt2_numba.layer_checks.calls import Call, read, scratch, written
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.tolerances import summation_error
from gpt2_numba.layers import global_norm
from gpt2_numba.layers.global_norm import sum_of_squares


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    grads, sum_squares = normal(s.N * s.C), np.full(1, np.nan)
    sum_of_squares(sum_squares, grads, None)
    expected = np.array([math.fsum(g * g for g in grads)])
    yield compare("global norm", "sum_squares", sum_squares, expected, math.sqrt(grads.size) * 2.0**-53 * expected)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    count = s.Vp * s.C  # the largest tensor

    def errors(after, before, storage):
        chain = count / (global_norm.BLOCKS * global_norm.THREADS) + global_norm.BLOCKS / global_norm.THREADS + 20
        return {"sum_squares": summation_error(chain, after.sum_squares)}

    yield Call(
        "global norm",
        dict(sum_squares=written(1, kind="f32"), grads=read(normal(count)), scratch=scratch(global_norm.BLOCKS, kind="f32")),
        lambda a: sum_of_squares(a.sum_squares, a.grads, a.scratch),
        errors,
    )
