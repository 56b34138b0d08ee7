"""LayerNorm: sums over channels (mean, rstd, dinp) and over rows (dweight, dbias)."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error
from gpt2_numba.layers.layernorm import layernorm_backward, layernorm_forward, layernorm_scratch_size


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    inp, weight, bias, dout = normal((s.N, s.C)), normal(s.C), normal(s.C), normal((s.N, s.C))
    out, mean, rstd = np.full(inp.shape, np.nan), np.full(s.N, np.nan), np.full(s.N, np.nan)

    def forward():
        layernorm_forward(out, mean, rstd, inp, weight, bias)

    forward()
    dinp, dweight, dbias = normal(inp.shape), normal(s.C), normal(s.C)
    before = dinp.copy(), dweight.copy(), dbias.copy()
    layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, None)
    gradients = {"dinp": (inp, before[0], dinp), "dweight": (weight, before[1], dweight), "dbias": (bias, before[2], dbias)}
    yield from check_gradients("layernorm", forward, out, dout, gradients)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    inp = 0.5 + 2 * normal(s.N, s.C)
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
        return {"dinp": dinp, "dweight": dweight, "dbias": dbias}

    yield Call(
        "layernorm backward",
        dict(dinp=changed(normal(s.N, s.C)), **accumulators, dout=read(normal(s.N, s.C)), **rest),
        lambda a: layernorm_backward(a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd, a.scratch),
        backward_errors,
    )
