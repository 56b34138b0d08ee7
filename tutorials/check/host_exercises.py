"""Exercises without a kernel: the function computes with NumPy, or with Python's numbers.

    EXERCISE = host_exercise(
        function="softmax_backward",
        arguments=lambda random, N: {"dinp": np.full(N, np.nan), "dout": random.standard_normal(N), "out": softmax(random.standard_normal(N))},
        reference=lambda dinp, dout, out: {"dinp": out * (dout - (dout * out).sum())},
        ...
    )

What the reference returns is compared: under the name of an argument, what that array holds after the call; under "return", what the
function returns. Arguments may be arrays, numbers, texts, lists, dicts; all but the arrays that the reference names must not change. Arrays
are float64 unless the arguments say otherwise, so that a formula is right to `tolerance` or wrong.
"""

import copy
import dataclasses
from collections.abc import Callable

import numpy as np

from tutorials.check.exercise import SEED, Task
from tutorials.check.failures import Failure


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostExercise(Task):
    """An exercise whose function launches nothing. A size is a dict of keyword arguments such as {"N": 33}."""

    arguments: Callable  # (random, **size) -> {parameter: value}, in their order
    reference: Callable  # (**arguments) -> {"return" or parameter: value}
    tolerance: float = 1e-9  # of the largest expected number; 0: the bits must agree

    @property
    def parameters(self):
        """The names of the function's parameters."""
        return tuple(self.arguments(np.random.default_rng(0), **self.sizes[0]))


def host_exercise(**fields):
    """A HostExercise."""
    return HostExercise(**fields)


def call_on_host(exercise, function, size):
    """Call the function at one size. Raises Failure for the first thing that is wrong; lets the function's own exceptions pass."""
    before = exercise.arguments(np.random.default_rng(SEED), **size)
    expected = exercise.reference(**copy.deepcopy(before))
    arguments = copy.deepcopy(before)
    returned = function(*arguments.values())
    for name, value in arguments.items():
        if name not in expected and not _same(value, before[name]):
            raise Failure("input", f"{name} is only to be read, but has changed")
    got = {**arguments, "return": returned}
    try:
        for name, values in expected.items():
            compare(exercise, name, got[name], values)
    except Failure as failure:
        failure.hint = next((mistake.hint for mistake in exercise.mistakes if _made(exercise, mistake, before, got)), "")
        raise


def _same(value, other):
    """Whether two arguments are equal, bit by bit where they are arrays."""
    if isinstance(value, np.ndarray):
        return np.array_equal(value, other, equal_nan=value.dtype.kind == "f")
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict):
        return list(value) == list(other) and all(_same(value[key], other[key]) for key in value)
    return value == other or value != value and other != other


def compare(exercise, name, got, expected):
    """Raise Failure if what came is not what was expected. Lists, tuples and dicts are compared item by item."""
    what = "what it returns" if name == "return" else name
    if got is None and expected is not None:
        raise Failure("not written", f"{exercise.function} returns nothing" if name == "return" else f"{what} is None")
    if isinstance(expected, dict):
        if not isinstance(got, dict) or set(got) != set(expected):
            raise Failure("value", f"{what} must be a dict with the keys {', '.join(map(str, expected))}, got {_short(got)}")
        for key, value in expected.items():
            compare(exercise, f"{_returned(name)}[{key!r}]", got[key], value)
    elif isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            raise Failure("value", f"{what} must have {len(expected)} items, got {_short(got)}")
        for index, value in enumerate(expected):
            compare(exercise, f"{_returned(name)}[{index}]", got[index], value)
    elif isinstance(expected, (str, bool)) or expected is None:
        if got != expected:
            raise Failure("value", f"{what} is {_short(got)}, and must be {_short(expected)}")
    else:
        _compare_numbers(exercise, name, what, got, expected)


def _compare_numbers(exercise, name, what, got, expected):
    expected = np.asarray(expected)
    try:
        values = np.asarray(got)
        with np.errstate(invalid="ignore"):  # a learner's bits may be a signalling NaN
            values = values if values.dtype.kind in "iub" else values.astype(np.float64)
    except (TypeError, ValueError):
        raise Failure("value", f"{what} must be {'a number' if not expected.ndim else 'an array'}, got {_short(got)}") from None
    if values.shape != expected.shape:
        raise Failure("value", f"{what} must have the shape {expected.shape}, and has {values.shape}")
    if expected.dtype == np.float32 and exercise.tolerance == 0 and np.asarray(got).dtype != np.float32:
        raise Failure("value", f"{what} must be float32, and is {np.asarray(got).dtype}")
    if expected.dtype.kind in "iu" and values.dtype.kind not in "iu":
        raise Failure("value", f"{what} must be {'an integer' if not expected.ndim else 'integers'}, and is {np.asarray(got).dtype}")
    bound = exercise.tolerance * max(1e-300, float(np.abs(expected[np.isfinite(expected)], dtype=np.float64).max(initial=0)))
    with np.errstate(invalid="ignore"):
        wrong = np.argwhere(
            ~((np.abs(values - expected.astype(np.float64)) <= bound) | (values == expected) | (np.isnan(values) & np.isnan(expected)))
        )
    if not len(wrong):  # its size is 0 where a single number is wrong: that has no index
        return
    index = tuple(int(i) for i in wrong[0])
    element = f"{_returned(name)}[{', '.join(map(str, index))}]" if index else what
    many = f" ({len(wrong):,} of {expected.size:,} elements {'is' if len(wrong) == 1 else 'are'} wrong)" if expected.size > 1 else ""
    if np.isnan(values[index]) and name != "return" and not np.isnan(expected[index]) and np.isnan(values).all():
        raise Failure("not written", f"{element} was never written, and must become {expected[index]:.5g}{many}")
    came, due = f"{values[index]:.5g}", f"{expected[index]:.5g}"
    if came == due:
        came, due = f"{values[index]:.17g}", f"{expected[index]:.17g}"
    raise Failure("value", f"{element} is {came}, and must be {due}{many}")


def _returned(name):
    return "result" if name == "return" else name


def _short(value):
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _made(exercise, mistake, before, got):
    """Whether this usual mistake has this very result."""
    loose = dataclasses.replace(exercise, tolerance=max(exercise.tolerance, 1e-6))
    try:
        for name, values in mistake.result(**copy.deepcopy(before)).items():
            compare(loose, name, got[name], values)
    except (Failure, TypeError, ValueError):  # what came may be no number, or have another shape
        return False
    return True
