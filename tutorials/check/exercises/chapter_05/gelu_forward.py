"""05_gelu_forward: one formula, each number by itself."""

import math

import numpy as np

from gpt2_numba.layer_checks.sizes import ODD, ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

FEW = Sizes(B=1, T=3, C=5, NH=1, V=2, Vp=2, OC=1)
SQRT_2_OVER_PI, CUBIC = np.sqrt(2 / np.pi), 0.044715
LOOP = "range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x)"
ALONE = "range(inp.shape[1] if cuda.threadIdx.x == 0 else 0)"
CHUNK = "range(cuda.threadIdx.x * ((inp.shape[1] + 31) // 32), min(inp.shape[1], (cuda.threadIdx.x + 1) * ((inp.shape[1] + 31) // 32)))"


def normal_below(x):
    """The probability that a normally distributed number is below x, of which the tanh form is an approximation."""
    return 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def made(formula):
    """The result of a usual mistake, from a formula for out."""
    return lambda inp, **_: {"out": formula(inp)}


EXERCISE = layer_exercise(
    function="gelu_forward",
    layers=("gelu",),
    sizes=(FEW, ONES, ODD),
    least=Counts(global_reads=5, global_writes=5),
    most=Counts(global_reads=5, global_writes=5),
    least_transactions=560,  # 14 rows of 156 elements, in pieces of eight; read and written
    most_barriers=0,
    drawn=("inp",),
    hints={
        "": (
            "A loop over the columns of the row, for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x), and the formula inside it.",
            "x = inp[row, c], then tanh_u = math.tanh(SQRT_2_OVER_PI * (x + ...)), then out[row, c] = HALF * x * (ONE + tanh_u)",
        ),
        "not written": ("A row may have more numbers than the block has threads: does your loop reach all of them?",),
        "value": ("Take x = 1 on paper: u is 0.798 · 1.0447 = 0.834, tanh u is 0.682, out is 0.841. Where does yours differ?",),
        "race": ("Each number belongs to one thread: thread i takes columns i, i + 32, i + 64, ...",),
        "bounds": ("A row may have fewer than 32 numbers: let the loop's range decide who has work.",),
        "transactions": ("Neighbouring threads must take neighbouring columns: i, i + 32, i + 64, ... for thread i.",),
        "accesses": (
            "Read each number once, x = inp[row, c], and use x; and let all 32 threads of the block work on the row.",
        ),
        "barriers": ("No thread needs what another one has written: no barrier is needed.",),
        "float64": ("A bare 0.5 is float64, and so is 1 plus a float32: HALF and ONE are there for that.",),
    },
    mistakes=(
        Mistake(made(lambda x: 0.5 * x * (1 + np.tanh(SQRT_2_OVER_PI * x))), "The cubic term is missing: x + CUBIC * x * x * x."),
        Mistake(made(lambda x: 0.5 * x * (1 + np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x)))), "That has x² where the formula has x³."),
        Mistake(made(lambda x: 0.5 * x * (1 + np.tanh(x + CUBIC * x**3))), "SQRT_2_OVER_PI is missing."),
        Mistake(made(lambda x: 0.5 * x * (1 + np.tanh(SQRT_2_OVER_PI * x + CUBIC * x**3))), "SQRT_2_OVER_PI multiplies both terms."),
        Mistake(made(lambda x: x * (1 + np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3)))), "That is twice as much as it should be: HALF is missing."),
        Mistake(made(lambda x: 0.5 * (1 + np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3)))), "The factor x in front is missing."),
        Mistake(made(lambda x: 0.5 * x * np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3))), "The 1 is missing: ONE + tanh_u."),
        Mistake(made(lambda x: x * normal_below(x)), "That is the exact form, x Φ(x) with erf. GPT-2 was trained with the other one, with tanh."),
        Mistake(made(lambda x: x * np.nan), "out holds NaN before the call: it is to be overwritten, not added to."),
    ),
    wrong=(
        Wrong("no cubic term", {" + CUBIC * x * x * x": ""}, "value", "cubic term"),
        Wrong("a square", {"CUBIC * x * x * x": "CUBIC * x * x"}, "value", "x²"),
        Wrong("no root", {"SQRT_2_OVER_PI * (": "("}, "value", "SQRT_2_OVER_PI is missing"),
        Wrong("a bracket too short", {"* (x + CUBIC * x * x * x)": "* x + CUBIC * x * x * x"}, "value", "both terms"),
        Wrong("no half", {"HALF * x": "x"}, "value", "HALF is missing"),
        Wrong("no factor", {"HALF * x": "HALF"}, "value", "factor x"),
        Wrong("no 1", {"ONE + tanh_u": "tanh_u"}, "value", "The 1 is missing"),
        Wrong("the sign of tanh", {"ONE + tanh_u": "ONE - tanh_u"}, "value", "on paper"),
        Wrong("the exact form", {"ONE + tanh_u": "ONE + math.erf(x / np.float32(1.4142135))"}, "value", "the exact form"),
        Wrong("added to", {"out[row, c] =": "out[row, c] +="}, "value", "overwritten"),
        Wrong("the first 32 columns only", {LOOP: "range(cuda.threadIdx.x, min(32, inp.shape[1]), 32)"}, "not written", "more numbers"),
        Wrong("the last column forgotten", {"inp.shape[1], cuda.blockDim.x)": "inp.shape[1] - 1, cuda.blockDim.x)"}, "not written"),
        Wrong("no loop", {f"for c in {LOOP}:": "if True:\n        c = cuda.threadIdx.x"}, "bounds", "fewer than 32"),
        Wrong("every thread takes all columns", {LOOP: "range(inp.shape[1])"}, "race", "one thread"),
        Wrong("one thread takes all columns", {LOOP: ALONE}, "accesses", "all 32"),
        Wrong("reads inp again", {"HALF * x": "HALF * inp[row, c]"}, "accesses", "Read each number once"),
        Wrong("a chunk for each thread", {LOOP: CHUNK}, "transactions", "neighbouring columns"),
        Wrong("the neighbour's row", {"x = inp[row, c]": "x = inp[row - 1, c]"}, "bounds"),
        Wrong("a barrier", {"    for c in": "    cuda.syncthreads()\n    for c in"}, "barriers", "no barrier"),
        Wrong("a bare 0.5", {"HALF * x": "0.5 * x"}, "float64", "bare 0.5"),
        Wrong("a bare 1", {"ONE + tanh_u": "1 + tanh_u"}, "float64", "1 plus"),
    ),
)  # fmt: skip
