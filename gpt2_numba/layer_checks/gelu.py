"""GELU: the errors of one exponential and one reciprocal; and dbias, a sum over rows."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.rows import as_float, compare
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers.gelu import gelu_backward, gelu_forward, gelu_scratch_size


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    inp, dout = 2 * normal((s.N, 4 * s.C)), normal((s.N, 4 * s.C))
    out, dinp = np.full(inp.shape, np.nan), np.full(inp.shape, np.nan)
    dbias = normal(4 * s.C)
    expected = dbias.copy()
    gelu_backward(dinp, dout, inp, dbias)
    for row in dinp:
        expected += row
    yield compare("gelu", "dbias", dbias, expected, 4 * s.N * 2.0**-53 * (1 + np.abs(dinp).sum(axis=0)))
    # The constants are float32: 3 * 0.044715 in backward is not three times the rounded 0.044715 of forward.
    yield from check_gradients("gelu", lambda: gelu_forward(out, inp), out, dout, {"dinp": (inp, 0, dinp)}, extra=2 * UNIT)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    inp, dout = 2 * normal(s.N, 4 * s.C), normal(s.N, 4 * s.C)

    # s = 1 / (1 + e): e is off by four units of its own, and by what its argument's three roundings make of it (|2 u| s (1 - s) < 0.23
    # of them reaches s), s by two of the reciprocal's. Relative to x, not to out: about five, and some for the rest of the formula.
    def forward_errors(after, before, storage):
        return {"out": 8 * UNIT * np.abs(after.inp)}

    def backward_errors(after, before, storage):
        slope = 0.8 * (1 + 0.1342 * after.inp**2)
        dinp = 8 * UNIT * np.abs(dout_of(before)) * (1 + np.abs(after.inp) * slope)
        if not hasattr(after, "dbias"):
            return {"dinp": dinp}
        return {"dinp": dinp, "dbias": summation_error(s.N, np.sqrt(np.square(after.dinp).sum(axis=0)) + np.abs(before.dbias))}

    def sums_of_stored(after, before, results):
        after.dbias = before.dbias + as_float(results["dinp"]).sum(axis=0, dtype=np.float64)

    def dout_of(before):
        return before.dout if hasattr(before, "dout") else before.dinp

    calls = (
        Call("gelu forward", dict(out=written(*inp.shape), inp=read(inp)), lambda a: gelu_forward(a.out, a.inp), forward_errors),
        Call(
            "gelu backward",
            dict(dinp=written(*inp.shape), dout=read(dout), inp=read(inp)),
            lambda a: gelu_backward(a.dinp, a.dout, a.inp),
            backward_errors,
        ),
        Call(
            "gelu backward in place",
            dict(dinp=changed(dout), inp=read(inp)),
            lambda a: gelu_backward(a.dinp, a.dinp, a.inp),
            backward_errors,
        ),
        Call(
            "gelu backward with dbias, in place",
            dict(
                dinp=changed(dout), dbias=changed(normal(4 * s.C)), inp=read(inp), scratch=scratch(gelu_scratch_size(4 * s.C), kind="f32")
            ),
            lambda a: gelu_backward(a.dinp, a.dinp, a.inp, a.dbias, a.scratch),
            backward_errors,
            from_stored=sums_of_stored,
        ),
    )
    yield from calls
