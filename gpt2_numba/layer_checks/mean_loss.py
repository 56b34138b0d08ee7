"""The mean of the losses, added to an accumulator."""

import math

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers import classifier
from gpt2_numba.layers.classifier import accumulate_mean


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    values, mean = np.abs(normal(s.N)), np.ones(1)
    accumulate_mean(mean, values)
    expected = np.array([1 + math.fsum(values) / s.N])
    yield compare("mean loss", "mean", mean, expected, 4 * 2.0**-53 * expected)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""

    def errors(after, before, storage):
        chain = s.N / classifier.THREADS + 12
        return {"mean": summation_error(chain, after.values.mean()) + UNIT * before.mean}

    yield Call(
        "mean loss",
        dict(mean=changed(np.ones(1, np.float32), "f32"), values=read(np.abs(normal(s.N)), "f32")),
        lambda a: accumulate_mean(a.mean, a.values),
        errors,
    )
