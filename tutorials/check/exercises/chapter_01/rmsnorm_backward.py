"""01_rmsnorm_backward: a gradient of one's own."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, N, C):
    inp = random.standard_normal((N, C))
    return {
        "dinp": np.full((N, C), np.nan), "dweight": np.ones(C), "dout": random.standard_normal((N, C)), "inp": inp,
        "weight": random.standard_normal(C), "rstd": 1 / np.sqrt((inp * inp).mean(axis=1) + 1e-5),
    }  # fmt: skip


def gradients(dweight, dout, inp, weight, rstd, stretch=1, offset=0):
    """stretch, offset: how much of the two terms that may be subtracted."""
    xhat, dxhat = inp * rstd[:, None], dout * weight
    means = stretch * xhat * (dxhat * xhat).mean(axis=1, keepdims=True) + offset * dxhat.mean(axis=1, keepdims=True)
    return {"dinp": rstd[:, None] * (dxhat - means), "dweight": dweight + (dout * xhat).sum(axis=0)}


EXERCISE = host_exercise(
    function="rmsnorm_backward",
    arguments=arguments,
    reference=lambda dinp, **given: gradients(**given),
    sizes=({"N": 3, "C": 7}, {"N": 1, "C": 1}, {"N": 5, "C": 2}),
    hints={
        "": (
            "dweight is LayerNorm's. For dinp: inp[c] itself moves xhat[c], and rstd moves every xhat[j]; there is no mean that moves.",
            "rstd shrinks by the fraction ε rstd xhat[c] / C, as in LayerNorm: what stands behind the second minus there is left.",
        ),
        "not written": ("dinp must be written in place: dinp[:] = …, not dinp = …, which makes a new array that nobody sees.",),
    },
    mistakes=(
        Mistake(lambda dinp, **given: {"dinp": gradients(**given, stretch=0)["dinp"]}, "Term (3) is missing: rstd depends on inp[c], too."),
        Mistake(lambda dinp, **given: {"dinp": gradients(**given, offset=1)["dinp"]}, "No mean is subtracted in RMSNorm: term (2) is too much."),
        Mistake(lambda dinp, dweight, **given: {"dweight": dweight}, "dweight is as it was: `dweight = …` makes a new array; += adds to the one you got."),
        Mistake(lambda dinp, dweight, **given: {"dweight": gradients(dweight, **given)["dweight"] - dweight}, "dweight must be added to, not overwritten: it held "
            "ones before the call."),
    ),
    wrong=(
        Wrong("(3) forgotten", {" - xhat * (dxhat * xhat).mean(axis=1, keepdims=True)": ""}, "value", "Term (3)"),
        Wrong("(2) kept", {"(dxhat - xhat": "(dxhat - dxhat.mean(axis=1, keepdims=True) - xhat"}, "value", "term (2)"),
        Wrong("dweight overwritten", {"dweight += ": "dweight[:] = "}, "value", "added to"),
        Wrong("dweight rebound", {"dweight += ": "dweight = "}, "value", "a new array"),
        Wrong("dinp rebound", {"dinp[:] = ": "dinp = "}, "not written", "in place"),
        Wrong("a sum in place of the mean", {".mean(axis=1": ".sum(axis=1"}, "value"),
        Wrong("weight forgotten", {"dxhat = dout * weight": "dxhat = dout"}, "value"),
        Wrong("inp changed", {"xhat = inp * rstd[:, None]": "xhat = inp\n    xhat *= rstd[:, None]"}, "input"),
    ),
)  # fmt: skip
