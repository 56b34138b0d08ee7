"""The mean of the losses, added to an accumulator."""

import math

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, textbook_call
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers import classifier as textbook
from gpt2_numba.layers.fast import classifier as fast


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against the definition."""
    values, mean = np.abs(normal(s.N)), np.ones(1)
    textbook.accumulate_mean(mean, values)
    expected = np.array([1 + math.fsum(values) / s.N])
    yield compare("mean loss", "mean", mean, expected, 4 * 2.0**-53 * expected)


def tensors(s, normal):
    """The arguments, shared by both sets of kernels."""
    return dict(mean=changed(np.ones(1, np.float32), "f32"), values=read(np.abs(normal(s.N)), "f32"))


def mean_errors(additions):
    """Bounds for the mean. additions: the longest chain of additions that a term passes through."""
    return lambda after, before, storage: {"mean": summation_error(additions, after.values.mean()) + UNIT * before.mean}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    yield textbook_call(
        functions, textbook, "accumulate_mean", tensors(s, normal), lambda a: (a.mean, a.values),
        errors=mean_errors(s.N + 2), name="mean loss",
    )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    yield Call(
        "accumulate_mean",
        "mean loss",
        tensors(s, normal),
        lambda a: fast.accumulate_mean(a.mean, a.values),
        mean_errors(s.N / fast.THREADS + 12),
        lambda a: textbook.accumulate_mean(a.mean, a.values),
    )
