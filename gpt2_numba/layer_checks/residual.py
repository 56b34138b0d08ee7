"""The residual stream's additions: one rounding each, which IEEE 754 determines, so that no call has bounds."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layers.residual import residual_backward, residual_forward


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    inp, branch, dout = normal((s.N, s.C)), normal((s.N, s.C)), normal((s.N, s.C))
    out, dinp, dbranch = np.full(inp.shape, np.nan), normal(inp.shape), normal(inp.shape)
    before = dinp.copy(), dbranch.copy()
    residual_backward(dinp, dbranch, dout)
    gradients = {"dinp": (inp, before[0], dinp), "dbranch": (branch, before[1], dbranch)}
    yield from check_gradients("residual", lambda: residual_forward(out, inp, branch), out, dout, gradients)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    shape = (s.N, s.C)
    forward = Call(
        "residual forward",
        dict(out=written(*shape), inp=read(normal(*shape)), branch=read(normal(*shape))),
        lambda a: residual_forward(a.out, a.inp, a.branch),
    )
    backward = Call(
        "residual backward",
        dict(dinp=changed(normal(*shape)), dbranch=changed(normal(*shape)), dout=read(normal(*shape))),
        lambda a: residual_backward(a.dinp, a.dbranch, a.dout),
    )
    yield forward
    yield backward
