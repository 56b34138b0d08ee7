"""GELU: the errors of one exponential and one reciprocal, or of a tanh; and dbias, a sum over rows."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.rows import as_float
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers import gelu as textbook
from gpt2_numba.layers.fast import gelu as fast


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    inp, dout = 2 * normal((s.N, 4 * s.C)), normal((s.N, 4 * s.C))
    out, dinp = np.full(inp.shape, np.nan), np.full(inp.shape, np.nan)
    textbook.gelu_backward(dinp, dout, inp)
    # The constants are float32: 3 * 0.044715 in backward is not three times the rounded 0.044715 of forward.
    yield from check_gradients("gelu", lambda: textbook.gelu_forward(out, inp), out, dout, {"dinp": (inp, 0, dinp)}, extra=2 * UNIT)


# By the logistic function: s = 1 / (1 + e): e is off by four units of its own, and by what its argument's three roundings make of it
# (|2 u| s (1 - s) < 0.23 of them reaches s), s by two of the reciprocal's. Relative to x, not to out: about five, and some for the rest
# of the formula. By tanh, which is off by two units, and by four of u's roundings times |u| (1 - tanh² u) < 0.45: 1 + tanh u is off
# by less than five, absolutely, and out by half of that times x; tanh² u by less than ten, and half of that, times x u', reaches dinp.


def forward_errors(after, before, storage):
    """Bounds for out."""
    return {"out": 8 * UNIT * np.abs(after.inp)}


def dinp_error(dout, inp):
    """Bound for dinp."""
    du = 0.8 * (1 + 0.1342 * inp**2)
    return 8 * UNIT * np.abs(dout) * (1 + np.abs(inp) * du)


def backward_errors(after, before, storage):
    """Bounds for dinp."""
    return {"dinp": dinp_error(before.dout, after.inp)}


def in_place_errors(after, before, storage):
    """Bounds for dinp where it takes the place of dout."""
    return {"dinp": dinp_error(before.dinp, after.inp)}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions, taken from a namespace, each with the bounds of its errors."""
    inp, dout = 2 * normal(s.N, 4 * s.C), normal(s.N, 4 * s.C)
    yield textbook_call(
        functions, textbook, "gelu_forward",
        dict(out=written(*inp.shape), inp=read(inp)),
        lambda a: (a.out, a.inp),
        forward_errors,
    )  # fmt: skip
    yield textbook_call(
        functions, textbook, "gelu_backward",
        dict(dinp=written(*inp.shape), dout=read(dout), inp=read(inp)),
        lambda a: (a.dinp, a.dout, a.inp),
        backward_errors,
    )  # fmt: skip
    yield textbook_call(
        functions, textbook, "gelu_backward",
        dict(dinp=changed(dout), inp=read(inp)),
        lambda a: (a.dinp, a.dinp, a.inp),
        in_place_errors,
        name="gelu backward in place",
    )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with the bounds of its errors."""
    D = 4 * s.C
    inp, dout, dbias = 2 * normal(s.N, D), normal(s.N, D), normal(D)

    def sums_of_stored(after, before, results):
        after.dbias = before.dbias + as_float(results["dinp"]).sum(axis=0, dtype=np.float64)

    def errors_with_dbias(after, before, storage):
        dbias = summation_error(s.N, np.sqrt(np.square(after.dinp).sum(axis=0)) + np.abs(before.dbias))
        return {**in_place_errors(after, before, storage), "dbias": dbias}

    yield Call(
        "gelu_forward",
        "gelu forward",
        dict(out=written(*inp.shape), inp=read(inp)),
        lambda a: fast.gelu_forward(a.out, a.inp),
        forward_errors,
        lambda a: textbook.gelu_forward(a.out, a.inp),
    )
    yield Call(
        "gelu_backward",
        "gelu backward",
        dict(dinp=written(*inp.shape), dout=read(dout), inp=read(inp)),
        lambda a: fast.gelu_backward(a.dinp, a.dout, a.inp),
        backward_errors,
        lambda a: textbook.gelu_backward(a.dinp, a.dout, a.inp),
    )
    yield Call(
        "gelu_backward",
        "gelu backward in place",
        dict(dinp=changed(dout), inp=read(inp)),
        lambda a: fast.gelu_backward(a.dinp, a.dinp, a.inp),
        in_place_errors,
        lambda a: textbook.gelu_backward(a.dinp, a.dinp, a.inp),
    )
    yield Call(
        "gelu_backward",
        "gelu backward with dbias, in place",
        dict(dinp=changed(dout), dbias=changed(dbias), inp=read(inp), scratch=scratch(fast.gelu_scratch_size(D), kind="f32")),
        lambda a: fast.gelu_backward(a.dinp, a.dinp, a.inp, a.dbias, a.scratch),
        errors_with_dbias,
        lambda a: textbook.gelu_backward(a.dinp, a.dinp, a.inp),
        from_stored=sums_of_stored,
    )
