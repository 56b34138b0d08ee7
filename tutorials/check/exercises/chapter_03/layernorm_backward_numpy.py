"""03_layernorm_backward_numpy: the backward in NumPy, with the package's arguments."""

import numpy as np

from gpt2_numba.layers.layernorm import layernorm_backward_ref
from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, N, C):
    normal = random.standard_normal
    inp = 3 + 2 * normal((N, C))
    return {
        "dinp": normal((N, C)), "dweight": normal(C), "dbias": normal(C), "dout": normal((N, C)), "inp": inp, "weight": 1 + 0.3 * normal(C),
        "mean": inp.mean(axis=1), "rstd": 1 / np.sqrt(inp.var(axis=1) + 1e-5),
    }  # fmt: skip


def reference(dinp, dweight, dbias, **inputs):
    layernorm_backward_ref(dinp, dweight, dbias, **inputs)
    return {"dinp": dinp, "dweight": dweight, "dbias": dbias}


def dinp_with(terms, accumulate=True):
    """The result of a usual mistake in dinp. terms: takes dxhat, xhat and dout; returns what stands in the bracket."""

    def result(dinp, dout, inp, weight, mean, rstd, **_):
        xhat = (inp - mean[:, None]) * rstd[:, None]
        return {"dinp": accumulate * dinp + rstd[:, None] * terms(dout * weight, xhat, dout)}

    return result


def mean(values, axis=1):
    return values.mean(axis=axis, keepdims=True)


def right(dxhat, xhat, dout):
    return dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)


EXERCISE = host_exercise(
    function="layernorm_backward",
    arguments=arguments,
    reference=reference,
    sizes=({"N": 3, "C": 5}, {"N": 1, "C": 1}, {"N": 5, "C": 3}, {"N": 4, "C": 4}, {"N": 1, "C": 7}, {"N": 6, "C": 1}),
    hints={
        "": (
            "Begin with xhat = (inp - mean[:, None]) * rstd[:, None] and dxhat = dout * weight.",
            "A mean over the channels of each row, as a column: dxhat.mean(axis=1, keepdims=True).",
        ),
        "error": ("Write down the shape of each factor: (N, C), (N, 1) and (C,) go together, (N,) and (N, C) do not.",),
        "input": ("In place (dout *= weight, inp -= ...) you change the caller's array: give the result a name of its own, dxhat = dout * weight.",),
        "value": (
            "Which array is wrong? If it is dinp, compare with the formula factor by factor: rstd, dxhat, two means over the row, xhat.",
            "dinp, dweight and dbias are added to, in place: dinp += ..., neither dinp = ... nor dinp[:] = ...",
        ),
    },
    mistakes=(
        Mistake(lambda dinp, **_: {"dinp": dinp}, "dinp is as it was. `dinp = ...` only gives a new array that name: += changes the caller's."),
        Mistake(dinp_with(right, accumulate=False), "That is the right gradient, but it has overwritten what dinp held: add it, dinp += ..."),
        Mistake(dinp_with(lambda dxhat, xhat, dout: dxhat - mean(dxhat)), "The third term is missing: the spread, too, moves with inp."),
        Mistake(dinp_with(lambda dxhat, xhat, dout: dxhat - xhat * mean(dxhat * xhat)), "The second term is missing: the mean, too, moves."),
        Mistake(dinp_with(lambda dxhat, xhat, dout: dxhat), "That is term (1) alone: the mean and the spread move, too."),
        Mistake(
            dinp_with(lambda dxhat, xhat, dout: dxhat - mean(dxhat, 0) - xhat * mean(dxhat * xhat, 0)),
            "Those are means over the rows. Which axis of (N, C) are the channels?",
        ),
        Mistake(
            dinp_with(lambda dxhat, xhat, dout: dout - mean(dout) - xhat * mean(dout * xhat)),
            "That is with dout in place of dxhat: what arrives at xhat has gone through weight.",
        ),
        Mistake(
            dinp_with(lambda dxhat, xhat, dout: dxhat - mean(dxhat) - mean(dxhat * xhat)),
            "The third term lacks its factor xhat[c]: channels far from the mean move the spread most.",
        ),
        Mistake(
            lambda dweight, dout, inp, **_: {"dweight": dweight + (dout * inp).sum(axis=0)},
            "That is dweight with inp: weight is multiplied by xhat, so raising it by ε moves out by ε xhat.",
        ),
        Mistake(
            dinp_with(lambda dxhat, xhat, dout: dxhat - xhat.shape[1] * (mean(dxhat) + xhat * mean(dxhat * xhat))),
            "Those are sums over the row: dinp needs the means, so divide both by C.",
        ),
        Mistake(
            dinp_with(lambda dxhat, xhat, dout: dxhat - dxhat.mean() - xhat * (dxhat * xhat).mean()),
            "Those are means over the whole sheet: each row has its own two, axis=1.",
        ),
        Mistake(
            lambda dinp, dout, inp, weight, mean, rstd, **_: {"dinp": dinp + right(dout * weight, (inp - mean[:, None]) * rstd[:, None], dout)},
            "The factor rstd is missing: the whole bracket is multiplied by it.",
        ),
        Mistake(
            lambda dweight, dout, inp, weight, mean, rstd, **_: {"dweight": dweight + (dout * weight * (inp - mean[:, None]) * rstd[:, None]).sum(axis=0)},
            "That is dweight with dxhat: raising weight by ε moves out, not xhat, and what arrives at out is dout.",
        ),
    ),
    wrong=(
        Wrong("= for +=", {"dinp += rstd": "dinp[:] = rstd"}, "value", "overwritten"),
        Wrong("a new array of that name", {"dinp += rstd": "dinp = rstd"}, "value", "as it was"),
        Wrong("without the third term", {" - xhat * mean_dxhat_xhat": ""}, "value", "third term is missing"),
        Wrong("without the second term", {"dxhat - mean_dxhat - xhat": "dxhat - xhat"}, "value", "second term"),
        Wrong("means over the rows", {"axis=1": "axis=0"}, "value", "over the rows"),
        Wrong("without weight", {"dxhat = dout * weight": "dxhat = dout"}, "value", "dout in place"),
        Wrong("without xhat in the third term", {"xhat * mean_dxhat_xhat": "mean_dxhat_xhat"}, "value", "lacks its factor"),
        Wrong("without rstd", {"rstd[:, None] * (dxhat": "(dxhat"}, "value", "factor rstd"),
        Wrong("sums for means", {".mean(axis=1": ".sum(axis=1"}, "value", "sums over the row"),
        Wrong("means over the whole sheet", {".mean(axis=1, keepdims=True)": ".mean()"}, "value", "whole sheet"),
        Wrong("dweight with dxhat", {"(dout * xhat).sum(axis=0)": "(dout * weight * xhat).sum(axis=0)"}, "value", "dweight with dxhat"),
        Wrong("dweight of inp", {"(dout * xhat).sum(axis=0)": "(dout * inp).sum(axis=0)"}, "value", "dweight with inp"),
        Wrong("dweight is overwritten", {"dweight += ": "dweight[:] = "}, "value"),
        Wrong("dbias is overwritten", {"dbias += ": "dbias[:] = "}, "value"),
        Wrong("dout is changed", {"dxhat = dout * weight": "dout *= weight\n    dxhat = dout"}, "input", "caller's array"),
        Wrong("mean without its axis", {"inp - mean[:, None]": "inp - mean"}, "error", "shape of each factor"),
        Wrong("dxhat is changed before it is used again", {"mean_dxhat = dxhat.mean(axis=1, keepdims=True)": "mean_dxhat = dxhat.mean(axis=1, "
            "keepdims=True)\n    dxhat -= mean_dxhat\n    mean_dxhat = 2 * mean_dxhat"}, "value"),
    ),
)  # fmt: skip
