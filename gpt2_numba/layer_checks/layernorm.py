"""LayerNorm: sums over channels (mean, rstd, dinp) and over rows (dweight, dbias)."""

from types import SimpleNamespace

import numpy as np

from gpt2_numba.gpu.backend import to_storage
from gpt2_numba.layer_checks.calls import Call, adds_up, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.rows import as_float
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers import layernorm as textbook
from gpt2_numba.layers import residual
from gpt2_numba.layers.fast import layernorm as fast


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against central differences."""
    inp, weight, bias, dout = normal((s.N, s.C)), normal(s.C), normal(s.C), normal((s.N, s.C))
    out, mean, rstd = np.full(inp.shape, np.nan), np.full(s.N, np.nan), np.full(s.N, np.nan)

    def forward():
        textbook.layernorm_forward(out, mean, rstd, inp, weight, bias)

    forward()
    dinp, dweight, dbias = normal(inp.shape), normal(s.C), normal(s.C)
    before = dinp.copy(), dweight.copy(), dbias.copy()
    textbook.layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd)
    gradients = {"dinp": (inp, before[0], dinp), "dweight": (weight, before[1], dweight), "dbias": (bias, before[2], dbias)}
    yield from check_gradients("layernorm", forward, out, dout, gradients)


def inputs(s, normal):
    """inp, weight, bias. The rows have an rstd of 50, as at the start of training."""
    inp = 0.005 + 0.02 * normal(s.N, s.C)
    inp[0] += 1  # E[x²] - E[x]² would be off by a thousand times the bound
    return inp, 1 + 0.3 * normal(s.C), normal(s.C)


def expected_rstd(inp):
    """rstd as forward computes it. eps matters: a row of one channel has no variance."""
    return 1 / np.sqrt(inp.var(axis=1) + textbook.EPS)


def forward_errors(after, before, storage):
    """Bounds for mean, rstd and out.

    Σ (x - m)² is stationary in m, so the error of the mean does not affect rstd; that of the sum does, halved by the square root.
    """
    C = after.inp.shape[1]
    mean = summation_error(C, np.sqrt(np.square(after.inp).mean(axis=1)))
    relative_rstd = summation_error(C, 1.0) + 4 * UNIT
    normed = np.abs(after.out - after.bias)  # |xhat * weight|
    out = mean[:, None] * after.rstd[:, None] * np.abs(after.weight) + normed * (relative_rstd + 4 * UNIT) + UNIT * np.abs(after.bias)
    return {"mean": mean, "rstd": after.rstd * relative_rstd, "out": out}


def backward_errors(after, before, additions):
    """Bounds for dinp, dweight and dbias. additions: the longest chain of additions that a term passes through in a sum over a row."""
    N, C = after.inp.shape
    rstd = after.rstd[:, None]
    xhat = (after.inp - after.mean[:, None]) * rstd
    dxhat = before.dout * after.weight
    mean_dxhat, mean_dxhat_xhat = (np.sqrt(np.square(terms).mean(axis=1, keepdims=True) / C) for terms in (dxhat, dxhat * xhat))
    means = summation_error(additions, 1.0) * (mean_dxhat + np.abs(xhat) * mean_dxhat_xhat)
    few = 8 * UNIT  # the handful of operations on one element
    dinp = rstd * (means + few * (np.abs(dxhat) + mean_dxhat + np.abs(xhat) * mean_dxhat_xhat)) + few * np.abs(before.dinp)
    dweight = summation_error(N, np.sqrt(np.einsum("nc,nc->c", before.dout**2, xhat**2)) + np.abs(before.dweight))
    dbias = summation_error(N, np.sqrt(np.einsum("nc,nc->c", before.dout, before.dout)) + np.abs(before.dbias))
    return {"dinp": dinp, "dweight": dweight, "dbias": dbias}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    inp, weight, bias = inputs(s, normal)
    yield textbook_call(
        functions, textbook, "layernorm_forward",
        dict(out=written(s.N, s.C), mean=written(s.N, kind="f32"), rstd=written(s.N, kind="f32"),
             inp=read(inp), weight=read(weight), bias=read(bias)),
        lambda a: (a.out, a.mean, a.rstd, a.inp, a.weight, a.bias),
        forward_errors,
    )  # fmt: skip
    yield textbook_call(
        functions, textbook, "layernorm_backward",
        dict(dinp=changed(normal(s.N, s.C)), dweight=changed(normal(s.C)), dbias=changed(normal(s.C)), dout=read(normal(s.N, s.C)),
             inp=read(inp), weight=read(weight), mean=read(inp.mean(axis=1), "f32"), rstd=read(expected_rstd(inp), "f32")),
        lambda a: (a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd),
        lambda after, before, storage: backward_errors(after, before, s.C),
    )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    inp, weight, bias = inputs(s, normal)
    yield Call(
        "layernorm_forward",
        "layernorm forward",
        dict(out=written(s.N, s.C), mean=written(s.N, kind="f32"), rstd=written(s.N, kind="f32"),
             inp=read(inp), weight=read(weight), bias=read(bias)),
        lambda a: fast.layernorm_forward(a.out, a.mean, a.rstd, a.inp, a.weight, a.bias),
        forward_errors,
        lambda a: textbook.layernorm_forward(a.out, a.mean, a.rstd, a.inp, a.weight, a.bias),
    )  # fmt: skip

    def residual_forward_errors(after, before, storage):
        # out is computed from the sum as it is stored.
        return forward_errors(SimpleNamespace(**{**vars(after), "inp": after.residual}), before, storage)

    def residual_reference(a):
        residual.residual_forward(a.residual, a.inp, a.branch)
        a.residual[:] = as_float(to_storage(a.residual.astype(np.float32), storage))
        textbook.layernorm_forward(a.out, a.mean, a.rstd, a.residual, a.weight, a.bias)

    yield Call(
        "residual_layernorm_forward",
        "residual layernorm forward",
        dict(residual=written(s.N, s.C), out=written(s.N, s.C), mean=written(s.N, kind="f32"), rstd=written(s.N, kind="f32"),
             inp=read(inp), branch=read(normal(s.N, s.C)), weight=read(weight), bias=read(bias)),
        lambda a: fast.residual_layernorm_forward(a.residual, a.out, a.mean, a.rstd, a.inp, a.branch, a.weight, a.bias),
        residual_forward_errors,
        residual_reference,
    )  # fmt: skip

    mean, rstd = inp.mean(axis=1), expected_rstd(inp)
    accumulators = dict(dweight=changed(normal(s.C)), dbias=changed(normal(s.C)))
    rest = dict(inp=read(inp), weight=read(weight), mean=read(mean, "f32"), rstd=read(rstd, "f32"),
                scratch=scratch(fast.layernorm_scratch_size(s.C), kind="f32"))  # fmt: skip

    def fast_backward_errors(after, before, storage):
        errors = backward_errors(after, before, s.C / 32 + 8)  # a lane's share, and the reduction over lanes
        if hasattr(after, "dinp_sums"):
            errors["dinp_sums"] = summation_error(s.N, np.sqrt(np.square(after.dinp).sum(axis=0)) + np.abs(before.dinp_sums))
        return errors

    def backward_reference(a):
        textbook.layernorm_backward(a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd)

    yield Call(
        "layernorm_backward",
        "layernorm backward",
        dict(dinp=changed(normal(s.N, s.C)), **accumulators, dout=read(normal(s.N, s.C)), **rest),
        lambda a: fast.layernorm_backward(a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd, a.scratch),
        fast_backward_errors,
        backward_reference,
    )
    yield Call(
        "layernorm_backward",
        "layernorm backward with sums",
        dict(dinp=changed(normal(s.N, s.C)), **accumulators, dinp_sums=changed(normal(s.C)), dout=read(normal(s.N, s.C)), **rest),
        lambda a: fast.layernorm_backward(a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd, a.scratch, a.dinp_sums),
        fast_backward_errors,
        backward_reference,
        from_stored=adds_up("dinp_sums", "dinp"),
    )
