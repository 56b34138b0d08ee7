"""GELU: tanh's own error, and cancellation in 1 + tanh."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.tolerances import UNIT
from gpt2_numba.layers.gelu import gelu_backward, gelu_forward


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    inp, dout = 2 * normal((s.N, 4 * s.C)), normal((s.N, 4 * s.C))
    out, dinp = np.full(inp.shape, np.nan), np.full(inp.shape, np.nan)
    gelu_backward(dinp, dout, inp)
    # The constants are float32: 3 * 0.044715 in backward is not three times the rounded 0.044715 of forward.
    yield from check_gradients("gelu", lambda: gelu_forward(out, inp), out, dout, {"dinp": (inp, 0, dinp)}, extra=2 * UNIT)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    inp, dout = 2 * normal(s.N, 4 * s.C), normal(s.N, 4 * s.C)

    # tanh is off by two units of its own and by what its argument's four roundings make of it (|u| / cosh² u < 0.45); 1 + tanh may
    # cancel, so the error counts relative to x, not to out. Doubled, for the rest of the formula.
    def forward_errors(after, before, storage):
        return {"out": 8 * UNIT * np.abs(after.inp)}

    def backward_errors(after, before, storage):
        slope = 0.8 * (1 + 0.1342 * after.inp**2)
        return {"dinp": 8 * UNIT * np.abs(dout_of(before)) * (1 + np.abs(after.inp) * slope)}

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
    )
    yield from calls
