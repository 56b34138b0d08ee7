"""09_adamw_update: four reads, three writes, and one number that may stop it all."""

from dataclasses import dataclass, replace

import numpy as np

from gpt2_numba.layer_checks.adamw import BETA1, BETA2, DECAY, EPS, LEARNING_RATE
from gpt2_numba.layer_checks.sizes import ONES
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import LayerExercise

LAST = "params[i] = param - learning_rate * (update + weight_decay * param)"
UPDATE = "update = (mean / correction1) / (math.sqrt(square / correction2) + eps)"
SAVED = "m[i], v[i] = mean, square"
GUARD = "if i < params.shape[0] and not math.isnan(scale):"


@dataclass(frozen=True, kw_only=True)
class AdamWUpdate(LayerExercise):
    """A LayerExercise whose sizes are shown as a number of parameters."""

    def format_size(self, size):
        return f"{size.C**2 + (6 if size.C % 8 else 0)} parameters"


def made(of_params, g_of=lambda g, params: g):
    """The result of a usual mistake. of_params takes params, m̂, v̂, m, v, the corrections; g_of: what the means are taken of."""

    def result(params, grads, m, v, norm_and_scale, **_):
        t = 7 if m.any() else 1  # of the checks
        g = g_of(norm_and_scale[1] * grads, params)
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        corrections = 1 - BETA1**t, 1 - BETA2**t
        return {"params": of_params(params, m / corrections[0], v / corrections[1], m, v)}

    return result


def step(params, m_hat, v_hat, decay=DECAY):
    with np.errstate(all="ignore"):
        return params - LEARNING_RATE * (m_hat / (np.sqrt(v_hat) + EPS) + decay * params)


def without_scale(params, grads, m, v, norm_and_scale, **_):
    """Neither params, m nor v has the scale."""
    return {"m": BETA1 * m + (1 - BETA1) * grads}


def as_nan(params, norm_and_scale, **_):
    """Everything is NaN, since the scale is."""
    return {"params": params * norm_and_scale[1] * np.nan if np.isnan(norm_and_scale[1]) else params + np.inf}


EXERCISE = AdamWUpdate(
    function="adamw_update",
    layers=("adamw",),
    sizes=(replace(ONES, C=5), ONES, replace(ONES, C=8), replace(ONES, C=13)),
    least=Counts(global_reads=5, global_writes=3),
    most=Counts(global_reads=7, global_writes=3),
    least_transactions=166,
    most_barriers=0,
    drawn=("params",),
    hints={
        "": (
            "First the guard: i < params.shape[0], and not math.isnan(norm_and_scale[1]). Then the formula, line by line, each result in a variable.",
            "mean = beta1 * m[i] + (ONE - beta1) * g; the same with square and g * g. Write both back to m[i] and v[i], as they are, not corrected.",
            "update = (mean / correction1) / (math.sqrt(square / correction2) + eps)",
        ),
        "not written": ("params, m and v are all updated in place: does each get its new value?",),
        "value": (
            "If m or v is wrong, look at the means; if params is, at the last line: `param` in the decay is the parameter before the step.",
            "m and v keep the means without the correction: it is for this step only.",
        ),
        "bounds": ("There are whole blocks of 32 threads, so maybe more threads than parameters: if i < params.shape[0].",),
        "race": ("Thread i = cuda.grid(1) touches parameter i, and no other.",),
        "accesses": ("params, grads, m and v are read once each, and norm_and_scale[1]; written are params, m and v, once each. Keep the new m and v in variables.",),
        "transactions": ("Neighbouring threads have neighbouring parameters.",),
        "error": ("A root of a negative number? v is a mean of squares: g * g.",),
        "barriers": ("No thread needs what another one has: no barrier is needed.",),
        "float64": (
            "Are all numbers that the kernel gets np.float32, and is the 1 inside of it ONE? One float64 makes everything that it touches float64.",
            "In the launcher: numbers = [np.float32(number) for number in numbers].",
        ),
    },
    mistakes=(
        Mistake(as_nan, "The scale is NaN here: not one of params, m and v may change. Ask math.isnan(norm_and_scale[1]) before anything is written."),
        Mistake(without_scale, "The scale is missing: g = norm_and_scale[1] * grads[i]."),
        Mistake(made(lambda params, mh, vh, m, v: step(params, mh, vh, 0)), "The decay is missing."),
        Mistake(
            made(lambda params, mh, vh, m, v: step(params, mh, vh, 0), lambda g, params: g + DECAY * params),
            "The decay is in the gradient, so that it is divided by sqrt(v̂): that is Adam with a penalty. AdamW keeps it out of the means.",
        ),
        Mistake(made(lambda params, mh, vh, m, v: step(params, m, v)), "Neither mean is corrected: divide by correction1 and correction2."),
        Mistake(made(lambda params, mh, vh, m, v: step(params, m, vh)), "m is not corrected: mean / correction1."),
        Mistake(made(lambda params, mh, vh, m, v: step(params, mh, v)), "v is not corrected: square / correction2, under the root."),
        Mistake(made(lambda params, mh, vh, m, v: step(params, mh, vh**2)), "The root of v̂ is missing."),
        Mistake(
            made(lambda params, mh, vh, m, v: params - LEARNING_RATE * (mh / np.sqrt(vh + EPS) + DECAY * params)),
            "eps is added to the root, and not under it.",
        ),
        Mistake(made(lambda params, mh, vh, m, v: 2 * params - step(params, mh, vh)), "That is uphill: params goes against the gradient."),
        Mistake(made(lambda params, mh, vh, m, v: params - LEARNING_RATE * mh / (np.sqrt(vh) + EPS) - DECAY * params),
            "The decay, too, is multiplied by the learning rate."),
    ),
    wrong=(
        Wrong("no scale", {"scale * grads[i]": "grads[i]"}, "value", "scale is missing"),
        Wrong("the norm for the scale", {"norm_and_scale[1]": "norm_and_scale[0]"}, "value"),
        Wrong("no decay", {"update + weight_decay * param": "update"}, "value", "decay is missing"),
        Wrong("decay in the gradient", {"g = params[i], scale * grads[i]": "g = params[i], scale * grads[i] + weight_decay * params[i]",
            "update + weight_decay * param": "update"}, "value", "keeps it out"),
        Wrong("decay without the rate", {LAST: "params[i] = param - learning_rate * update - weight_decay * param"}, "value", "learning rate"),
        Wrong("decay of what has moved", {LAST: "param -= learning_rate * update\n        params[i] = param - learning_rate * weight_decay * param"}, "value"),
        Wrong("no correction", {"mean / correction1": "mean", "square / correction2": "square"}, "value", "Neither"),
        Wrong("m is not corrected", {"mean / correction1": "mean"}, "value", "m is not corrected"),
        Wrong("v is not corrected", {"square / correction2": "square"}, "value", "v is not corrected"),
        Wrong("corrections exchanged", {"mean / correction1": "mean / correction2", "square / correction2": "square / correction1"}, "value"),
        Wrong("corrected means are kept", {SAVED: "m[i], v[i] = mean / correction1, square / correction2"}, "value"),
        Wrong("the old means", {UPDATE: "new, mean, square = (mean, square), m[i], v[i]\n        " + UPDATE, SAVED: "m[i], v[i] = new"}, "value"),
        Wrong("no root", {"math.sqrt(square / correction2)": "square / correction2"}, "value", "root"),
        Wrong("eps under the root", {"math.sqrt(square / correction2) + eps": "math.sqrt(square / correction2 + eps)"}, "value", "not under it"),
        Wrong("no eps", {" + eps)": ")"}, "value"),
        Wrong("uphill", {LAST: LAST.replace("param - ", "param + ")}, "value", "uphill"),
        Wrong("the gradient is not squared", {"* g * g": "* g"}, "error", "mean of squares"),
        Wrong("v with beta1", {"beta2 * v[i] + (ONE - beta2)": "beta1 * v[i] + (ONE - beta1)"}, "value"),
        Wrong("NaN goes everywhere", {" and not math.isnan(scale)": ""}, "value", "not one of"),
        Wrong("NaN as 0", {GUARD: "if i < params.shape[0]:\n        scale = scale if not math.isnan(scale) else ONE - ONE"}, "value"),
        Wrong("NaN stops the parameters only", {GUARD: "if i < params.shape[0]:", LAST: "if not math.isnan(scale):\n            " + LAST}, "value"),
        Wrong("no guard", {"i < params.shape[0] and ": ""}, "bounds", "more threads"),
        Wrong("the last parameter is left out", {"i < params.shape[0] ": "i < params.shape[0] - 1 "}, "not written"),
        Wrong("each block has the first ones", {"cuda.grid(1)": "cuda.threadIdx.x"}, "race", "no other"),
        Wrong("one thread has all", {"i = cuda.grid(1)\n": "first = cuda.grid(1)\n", "    scale = norm_and_scale[1]\n": "    scale = norm_and_scale[1]\n"
            "    for i in range(params.shape[0] if first == 0 else 0):\n     pass\n", GUARD: "for i in range(params.shape[0] if first == 0 and not "
            "math.isnan(scale) else 0):"}, "accesses", "once each"),
        Wrong("the gradients are scaled in place", {"param, g = params[i], scale * grads[i]": "grads[i] *= scale\n        param, g = params[i], grads[i]"},
            "input"),
        Wrong("reads back", {"update = (mean": "m[i], v[i] = mean, square\n        mean, square = m[i], v[i]\n        update = (mean",
            "scale * grads[i]\n": "norm_and_scale[1] * grads[i]\n"}, "accesses", "once each"),
        Wrong("a barrier", {GUARD: "cuda.syncthreads()\n    " + GUARD}, "barriers", "no barrier"),
        Wrong("Python floats", {"    numbers = [np.float32(number) for number in numbers]\n": ""}, "float64", "np.float32"),
        Wrong("one Python float", {"for number in numbers]": "for number in numbers[:-1]] + numbers[-1:]"}, "float64", "np.float32"),
        Wrong("a bare 1", {"(ONE - beta1)": "(1 - beta1)"}, "float64", "ONE"),
    ),
)  # fmt: skip
