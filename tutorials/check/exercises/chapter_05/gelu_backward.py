"""05_gelu_backward: the slope, computed again from inp; also in place."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ODD, ONES
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.exercises.chapter_05.gelu_forward import ALONE, CHUNK, CUBIC, FEW, LOOP, SQRT_2_OVER_PI, normal_below
from tutorials.check.layer_exercises import layer_exercise


def parts(x):
    """tanh u and u'."""
    return np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3)), SQRT_2_OVER_PI * (1 + 3 * CUBIC * x**2)


def slope(x):
    tanh_u, du = parts(x)
    return 0.5 * (1 + tanh_u) + 0.5 * x * (1 - tanh_u**2) * du


def made(formula):
    """The result of a usual mistake, from a formula of (x, tanh u, u') in place of the slope. In place there is no dout: dinp holds it."""
    return lambda inp, dinp, dout=None, **_: {"dinp": (dinp if dout is None else dout) * formula(inp, *parts(inp))}


def slope_alone(inp, **_):
    return {"dinp": slope(inp)}


def bracket_missing(inp, dinp, dout=None, **_):
    tanh_u, du = parts(inp)
    return {"dinp": (dinp if dout is None else dout) * 0.5 * (1 + tanh_u) + 0.5 * inp * (1 - tanh_u**2) * du}


def squared_slope(inp, **_):
    return {"dinp": slope(inp) ** 2}


EXERCISE = layer_exercise(
    function="gelu_backward",
    layers=("gelu",),
    sizes=(FEW, ONES, ODD),
    least=Counts(global_reads=10, global_writes=5),
    most=Counts(global_reads=10, global_writes=5),
    least_transactions=840,  # 14 rows of 156 elements, in pieces of eight; two arrays are read, one is written
    most_barriers=0,
    drawn=("dout",),
    hints={
        "": (
            "The loop of forward. Inside it: x, tanh_u, du, slope, each in a variable, then dinp[row, c] = dout[row, c] * slope.",
            "slope = HALF * (ONE + tanh_u) + HALF * x * (ONE - tanh_u * tanh_u) * du",
            "du = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * x * x)",
        ),
        "not written": ("A row may have more numbers than the block has threads: does your loop reach all of them?",),
        "value": ("Take x = 0 on paper: tanh u is 0, the second term is 0, the slope is 1/2. And far above 0 it is 1. What does yours say?",),
        "race": ("Each number belongs to one thread, which reads and writes that one alone.",),
        "bounds": ("A row may have fewer than 32 numbers: let the loop's range decide who has work.",),
        "transactions": ("Neighbouring threads must take neighbouring columns: i, i + 32, i + 64, ... for thread i.",),
        "accesses": ("Read x = inp[row, c] once, dout[row, c] once, and write dinp[row, c] once; and let all 32 threads work.",),
        "barriers": ("No thread needs what another one has written: no barrier is needed.",),
        "float64": ("A bare 0.5 or 1 makes it float64, and so does 3 * CUBIC with a bare 3: HALF, ONE and THREE_CUBIC are there for that.",),
    },
    mistakes=(
        Mistake(made(lambda x, t, du: 0.5 * (1 + t)), "The second term of the slope is missing: x moves tanh u, too."),
        Mistake(made(lambda x, t, du: 0.5 * x * (1 - t**2) * du), "The first term of the slope is missing: x is also the factor in front."),
        Mistake(made(lambda x, t, du: 0.5 * (1 + t) + 0.5 * x * (1 - t**2)), "u' is missing: tanh u moves as far as u does, times 1 - tanh² u."),
        Mistake(made(lambda x, t, du: 0.5 * (1 + t) + 0.5 * (1 - t**2) * du), "In the second term the factor x is missing."),
        Mistake(made(lambda x, t, du: 0.5 * (1 + t) + 0.5 * x * (1 - t) * du), "tanh' is 1 - tanh², and not 1 - tanh."),
        Mistake(
            made(lambda x, t, du: 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * SQRT_2_OVER_PI * (1 + CUBIC * x**2)),
            "The cube has a 3 in front of it in u': THREE_CUBIC.",
        ),
        Mistake(bracket_missing, "dout multiplies both terms of the slope: a bracket is missing, or a variable `slope`."),
        Mistake(
            made(lambda x, t, du: normal_below(x) + x * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)),
            "That is the slope of the exact form, x Φ(x) with erf. GPT-2 was trained with the other one, with tanh.",
        ),
        Mistake(made(lambda x, t, du: x * np.nan), "dinp holds NaN before the call: it is to be overwritten, not added to."),
        Mistake(slope_alone, "That is the slope: multiply it by dout."),
        Mistake(squared_slope, "Here dinp and dout are the same array. Your kernel writes to it before it has read dout from it."),
    ),
    wrong=(
        Wrong("no second term", {" + HALF * x * (ONE - tanh_u * tanh_u) * du": ""}, "value", "second term"),
        Wrong("no first term", {"HALF * (ONE + tanh_u) + ": ""}, "value", "first term"),
        Wrong("no u'", {"tanh_u * tanh_u) * du": "tanh_u * tanh_u)"}, "value", "u' is missing"),
        Wrong("no factor x", {"HALF * x * (ONE -": "HALF * (ONE -"}, "value", "the factor x"),
        Wrong("1 - tanh", {"ONE - tanh_u * tanh_u": "ONE - tanh_u"}, "value", "1 - tanh²"),
        Wrong("no 3", {"ONE + THREE_CUBIC": "ONE + CUBIC"}, "value", "THREE_CUBIC"),
        Wrong("without dout", {"dout[row, c] * slope": "slope"}, "value", "multiply it by dout"),
        Wrong("writes before it reads", {"dinp[row, c] = dout[row, c] * slope": "dinp[row, c] = slope\n        dinp[row, c] *= dout[row, c]"},
            "value", "the same array"),
        Wrong("the exact form", {"slope = HALF * (ONE + tanh_u) + HALF * x * (ONE - tanh_u * tanh_u) * du": "slope = HALF * (ONE + math.erf(x / "
            "np.float32(1.4142135))) + x * math.exp(-HALF * x * x) * np.float32(0.39894228)"}, "value", "the exact form"),
        Wrong("added to", {"dinp[row, c] = dout": "dinp[row, c] += dout"}, "value", "overwritten"),
        Wrong("dout times the first term", {"dout[row, c] * slope": "slope + (dout[row, c] - ONE) * HALF * (ONE + tanh_u)"}, "value", "a bracket"),
        Wrong("the gradient of a neighbour", {"dout[row, c] * slope": "dout[row, c - 1] * slope"}, "bounds"),
        Wrong("the next column's gradient", {"dout[row, c] * slope": "dout[row, (c + 1) % inp.shape[1]] * slope"}, "value"),
        Wrong("one row for all", {"x = inp[row, c]": "x = inp[0, c]"}, "value"),
        Wrong("the first 32 columns only", {LOOP: "range(cuda.threadIdx.x, min(32, inp.shape[1]), 32)"}, "not written", "more numbers"),
        Wrong("every thread takes all columns", {LOOP: "range(inp.shape[1])"}, "race", "one thread"),
        Wrong("one thread takes all columns", {LOOP: ALONE}, "accesses", "all 32"),
        Wrong("a chunk for each thread", {LOOP: CHUNK}, "transactions", "neighbouring columns"),
        Wrong("a barrier", {"    for c in": "    cuda.syncthreads()\n    for c in"}, "barriers", "no barrier"),
        Wrong("a bare 3", {"THREE_CUBIC * x * x": "3 * CUBIC * x * x"}, "float64", "bare 3"),
        Wrong("a bare 1", {"ONE - tanh_u": "1 - tanh_u"}, "float64", "bare 0.5"),
    ),
)  # fmt: skip
