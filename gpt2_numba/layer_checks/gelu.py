"""GELU: the errors of an exponential and a reciprocal, or of a tanh; and of dbias, a sum over rows."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, adds_up, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers import gelu as textbook
from gpt2_numba.layers.fast import gelu as fast


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against central differences."""
    inp, dout = 2 * normal((s.N, 4 * s.C)), normal((s.N, 4 * s.C))
    out, dinp = np.full(inp.shape, np.nan), np.full(inp.shape, np.nan)
    textbook.gelu_backward(dinp, dout, inp)
    # The constants are float32: the rounded 3 * 0.044715 of backward is not three times the rounded 0.044715 of forward.
    yield from check_gradients("gelu", lambda: textbook.gelu_forward(out, inp), out, dout, {"dinp": (inp, 0, dinp)}, extra=2 * UNIT)


# With the logistic function, s = 1 / (1 + e): e is off by four units of its own, plus the effect of the three roundings of its argument
# (of which |2 u| s (1 - s) < 0.23 reaches s), and s by two units of the reciprocal. That is about five units relative to x, not to out,
# plus some for the rest of the formula. With tanh, which is off by two units, plus the four roundings of u times |u| (1 - tanh² u) < 0.45:
# the absolute error of 1 + tanh u is below five units, and half of that times x reaches out; that of tanh² u is below ten, and half of it,
# times x u', reaches dinp.


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
    """Bounds for dinp where it overwrites dout."""
    return {"dinp": dinp_error(before.dinp, after.inp)}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
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
    """Yield the Calls of the fast launchers, each with its error bounds."""
    D = 4 * s.C
    inp, dout, dbias = 2 * normal(s.N, D), normal(s.N, D), normal(D)

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
        from_stored=adds_up("dbias", "dinp"),
    )
