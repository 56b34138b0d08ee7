"""The additions of the residual stream: one rounding each, determined by IEEE 754, so no call has bounds."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layers import residual as textbook
from gpt2_numba.layers.fast import residual as fast


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against central differences."""
    inp, branch, dout = normal((s.N, s.C)), normal((s.N, s.C)), normal((s.N, s.C))
    out, dinp, dbranch = (np.full(inp.shape, np.nan) for _ in range(3))
    textbook.residual_backward(dinp, dbranch, dout)
    gradients = {"dinp": (inp, 0, dinp), "dbranch": (branch, 0, dbranch)}
    yield from check_gradients("residual", lambda: textbook.residual_forward(out, inp, branch), out, dout, gradients)


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    shape = (s.N, s.C)
    yield textbook_call(
        functions, textbook, "residual_forward",
        dict(out=written(*shape), inp=read(normal(*shape)), branch=read(normal(*shape))),
        lambda a: (a.out, a.inp, a.branch),
    )  # fmt: skip
    yield textbook_call(
        functions, textbook, "residual_backward",
        dict(dinp=written(*shape), dbranch=written(*shape), dout=read(normal(*shape))),
        lambda a: (a.dinp, a.dbranch, a.dout),
    )  # fmt: skip
    yield textbook_call(
        functions, textbook, "residual_backward",
        dict(dinp=changed(normal(*shape)), dbranch=written(*shape)),
        lambda a: (a.dinp, a.dbranch, a.dinp),
        name="residual backward in place",
    )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    shape = (s.N, s.C)
    yield Call(
        "residual_forward",
        "residual forward",
        dict(out=written(*shape), inp=read(normal(*shape)), branch=read(normal(*shape))),
        lambda a: fast.residual_forward(a.out, a.inp, a.branch),
        reference=lambda a: textbook.residual_forward(a.out, a.inp, a.branch),
    )
