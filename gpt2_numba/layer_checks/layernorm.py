"""LayerNorm: sums over channels (mean, rstd, dinp) and over rows (dweight, dbias)."""

from types import SimpleNamespace

import numpy as np

from gpt2_numba.gpu.backend import to_storage
from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.rows import as_float, compare
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers.layernorm import (
    layernorm_backward,
    layernorm_forward,
    layernorm_scratch_size,
    residual_layernorm_forward,
)


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    inp, weight, bias, dout = normal((s.N, s.C)), normal(s.C), normal(s.C), normal((s.N, s.C))
    out, mean, rstd = np.full(inp.shape, np.nan), np.full(s.N, np.nan), np.full(s.N, np.nan)

    def forward():
        layernorm_forward(out, mean, rstd, inp, weight, bias)

    forward()
    dinp, dweight, dbias, dinp_sums = normal(inp.shape), normal(s.C), normal(s.C), normal(s.C)
    before = dinp.copy(), dweight.copy(), dbias.copy()
    expected_sums = dinp_sums.copy()
    layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, None, dinp_sums)
    gradients = {"dinp": (inp, before[0], dinp), "dweight": (weight, before[1], dweight), "dbias": (bias, before[2], dbias)}
    yield from check_gradients("layernorm", forward, out, dout, gradients)
    for row in dinp:
        expected_sums += row
    yield compare("layernorm", "dinp_sums", dinp_sums, expected_sums, 4 * s.N * 2.0**-53 * (1 + np.abs(dinp).sum(axis=0)))

    branch, residual = normal(inp.shape), np.full(inp.shape, np.nan)
    layernorm_forward(out, mean, rstd, inp + branch, weight, bias)
    expected = {"out": out.copy(), "mean": mean.copy(), "rstd": rstd.copy(), "residual": inp + branch}
    residual_layernorm_forward(residual, out, mean, rstd, inp, branch, weight, bias)
    for name, came in (("residual", residual), ("out", out), ("mean", mean), ("rstd", rstd)):
        yield compare("residual layernorm", name, came, expected[name], 0.0)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    inp = 0.005 + 0.02 * normal(s.N, s.C)  # rstd is 50, as when training begins
    inp[0] += 1  # E[x²] - E[x]² would be off by a thousand times the bound
    weight, bias = 1 + 0.3 * normal(s.C), normal(s.C)

    def forward_errors(after, before, storage):
        # Σ (x - m)² is stationary in m, so the mean's error does not matter for rstd; the sum's does, halved by the square root.
        size = np.sqrt(np.square(after.inp).mean(axis=1))
        mean = summation_error(s.C, size)
        relative_rstd = summation_error(s.C, 1.0) + 4 * UNIT
        normed = np.abs(after.out - after.bias)  # |xhat * weight|
        out = mean[:, None] * after.rstd[:, None] * np.abs(after.weight) + normed * (relative_rstd + 4 * UNIT) + UNIT * np.abs(after.bias)
        return {"mean": mean, "rstd": after.rstd * relative_rstd, "out": out}

    yield Call(
        "layernorm forward",
        dict(out=written(s.N, s.C), mean=written(s.N, kind="f32"), rstd=written(s.N, kind="f32"),
             inp=read(inp), weight=read(weight), bias=read(bias)),
        lambda a: layernorm_forward(a.out, a.mean, a.rstd, a.inp, a.weight, a.bias),
        forward_errors,
    )  # fmt: skip

    def residual_forward_errors(after, before, storage):
        # out is that of the sum as it is stored.
        return forward_errors(SimpleNamespace(**{**vars(after), "inp": after.residual}), before, storage)

    def residual_reference(a):
        residual_layernorm_forward(a.residual, a.out, a.mean, a.rstd, a.inp, a.branch, a.weight, a.bias)
        a.residual[:] = as_float(to_storage(a.residual.astype(np.float32), storage))
        layernorm_forward(a.out, a.mean, a.rstd, a.residual, a.weight, a.bias)

    yield Call(
        "residual layernorm forward",
        dict(residual=written(s.N, s.C), out=written(s.N, s.C), mean=written(s.N, kind="f32"), rstd=written(s.N, kind="f32"),
             inp=read(inp), branch=read(normal(s.N, s.C)), weight=read(weight), bias=read(bias)),
        lambda a: residual_layernorm_forward(a.residual, a.out, a.mean, a.rstd, a.inp, a.branch, a.weight, a.bias),
        residual_forward_errors,
        residual_reference,
    )  # fmt: skip

    mean, rstd = inp.mean(axis=1), 1 / inp.std(axis=1)
    accumulators = dict(dweight=changed(normal(s.C)), dbias=changed(normal(s.C)))
    rest = dict(inp=read(inp), weight=read(weight), mean=read(mean, "f32"), rstd=read(rstd, "f32"),
                scratch=scratch(layernorm_scratch_size(s.C), kind="f32"))  # fmt: skip

    def backward_errors(after, before, storage):
        rstd = after.rstd[:, None]
        xhat = (after.inp - after.mean[:, None]) * rstd
        dxhat = before.dout * after.weight
        mean_dxhat, mean_dxhat_xhat = (np.sqrt(np.square(terms).mean(axis=1, keepdims=True) / s.C) for terms in (dxhat, dxhat * xhat))
        chain = s.C / 32 + 8  # a lane's share, and what joins the lanes
        means = summation_error(chain, 1.0) * (mean_dxhat + np.abs(xhat) * mean_dxhat_xhat)
        few = 8 * UNIT  # the handful of operations on one element
        dinp = rstd * (means + few * (np.abs(dxhat) + mean_dxhat + np.abs(xhat) * mean_dxhat_xhat)) + few * np.abs(before.dinp)
        dweight = summation_error(s.N, np.sqrt(np.einsum("nc,nc->c", before.dout**2, xhat**2)) + np.abs(before.dweight))
        dbias = summation_error(s.N, np.sqrt(np.einsum("nc,nc->c", before.dout, before.dout)) + np.abs(before.dbias))
        errors = {"dinp": dinp, "dweight": dweight, "dbias": dbias}
        if hasattr(after, "dinp_sums"):
            errors["dinp_sums"] = summation_error(s.N, np.sqrt(np.square(after.dinp).sum(axis=0)) + np.abs(before.dinp_sums))
        return errors

    def sums_of_stored(after, before, results):
        after.dinp_sums = before.dinp_sums + as_float(results["dinp"]).sum(axis=0, dtype=np.float64)

    yield Call(
        "layernorm backward",
        dict(dinp=changed(normal(s.N, s.C)), **accumulators, dout=read(normal(s.N, s.C)), **rest),
        lambda a: layernorm_backward(a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd, a.scratch),
        backward_errors,
    )
    yield Call(
        "layernorm backward with sums",
        dict(dinp=changed(normal(s.N, s.C)), **accumulators, dinp_sums=changed(normal(s.C)), dout=read(normal(s.N, s.C)), **rest),
        lambda a: layernorm_backward(a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd, a.scratch, a.dinp_sums),
        backward_errors,
        from_stored=sums_of_stored,
    )
