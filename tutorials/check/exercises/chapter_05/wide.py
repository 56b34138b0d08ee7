"""05_wide: the same bytes with an eighth of the accesses."""

import numpy as np

from gpt2_numba.layer_checks.calls import read, written
from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong

SQRT_2_OVER_PI, CUBIC = np.sqrt(2 / np.pi), 0.044715
WIDE = "load8(inp, i, x)"
BODY = """        load8(inp, i, x)
        for k in range(WIDTH):
            x[k] *= logistic_of_2u(x[k])
        store8(out, i, x)
"""
NARROW = """        for k in range(WIDTH):
            x[k] = inp[i + k] * logistic_of_2u(inp[i + k])
            out[i + k] = x[k]
"""
STRIDES = """    for i in range(cuda.grid(1), inp.shape[0], cuda.gridsize(1)):
        x[0] = inp[i]
        out[i] = x[0] * logistic_of_2u(x[0])
"""


def arrays(random, count):
    return {"out": written(count), "inp": read(2 * random.standard_normal(count))}


def logistic(x):
    return 1 / (1 + np.exp(-2 * SQRT_2_OVER_PI * (x + CUBIC * x**3)))


EXERCISE = Exercise(
    function="gelu_wide",
    arrays=arrays,
    reference=lambda inp: {"out": inp * logistic(inp)},
    error=lambda inp: {"out": 8 * UNIT * np.abs(inp)},
    sizes=({"count": 8}, {"count": 16}, {"count": 248}, {"count": 264}, {"count": 536}),
    least=Counts(global_reads=1, global_writes=1),
    most=Counts(global_reads=1, global_writes=1),
    least_transactions=134,  # 536 numbers of four bytes, read and written, in pieces of 32 bytes
    hints={
        "": (
            "Where do the eight numbers of a thread begin? Thread t of all threads, cuda.grid(1), begins at 8 t.",
            "if i < inp.shape[0]: then load8, a loop over k in range(WIDTH) that changes x[k], store8.",
            "In the loop: x[k] *= logistic_of_2u(x[k])",
        ),
        "error": (
            "load8 and store8 refuse an index that is no multiple of 8, and eights that are not there: i = cuda.grid(1) * WIDTH, and ask if i is inside.",
        ),
        "not written": ("Is what you have computed in x stored? store8(out, i, x) writes all eight.",),
        "value": ("All eight numbers need the formula: a loop over k in range(WIDTH).",),
        "race": ("Two threads touch the same numbers: thread t begins at 8 t, not at t, and no one but it has 8 t to 8 t + 7.",),
        "accesses": ("inp[i + k] in a loop is eight accesses. One load8 brings the same numbers with one.",),
        "transactions": ("Neighbouring threads must take neighbouring eights.",),
        "compile": ("A kernel knows no arithmetic of whole arrays: x[k] *= ..., one after the other, in a loop over k in range(WIDTH).",),
        "float64": ("A bare number such as 1.0 is float64.",),
    },
    mistakes=(
        Mistake(lambda inp: {"out": inp}, "The numbers arrive as they were: multiply x[k] by logistic_of_2u(x[k]) between load8 and store8."),
        Mistake(lambda inp: {"out": logistic(inp)}, "That is s alone: out is x s."),
        Mistake(
            lambda inp: {"out": np.where(np.arange(len(inp)) % 8 == 0, inp * logistic(inp), inp)},
            "Only the first of a thread's eight numbers has been changed: x has eight.",
        ),
    ),
    wrong=(
        Wrong("four bytes at a time", {BODY: NARROW}, "accesses", "eight accesses"),
        Wrong("one number at a time, in strides", {"    i = cuda.grid(1) * WIDTH\n    if i < inp.shape[0]:\n" + BODY: STRIDES}, "accesses", "One load8"),
        Wrong("a wide load, narrow stores", {"            x[k] *= logistic_of_2u(x[k])\n        store8(out, i, x)": "            out[i + k] = x[k] * logistic_of_2u(x[k])"},
            "accesses"),
        Wrong("loaded twice", {WIDE: f"{WIDE}\n        {WIDE}"}, "accesses"),
        Wrong("begins at t", {"cuda.grid(1) * WIDTH": "cuda.grid(1)"}, "error", "no multiple of 8"),
        Wrong("no condition", {"if i < inp.shape[0]:": "if True:"}, "error", "no multiple of 8"),
        Wrong("counted within the block", {"cuda.grid(1) * WIDTH": "cuda.threadIdx.x * WIDTH"}, "race", "same numbers"),
        Wrong("the last eight forgotten", {"if i < inp.shape[0]:": "if i + WIDTH < inp.shape[0]:"}, "not written"),
        Wrong("nothing is stored", {"        store8(out, i, x)\n": ""}, "not written", "stored"),
        Wrong("the first of the eight only", {"        for k in range(WIDTH):\n            x[k] *= logistic_of_2u(x[k])": "        x[0] *= logistic_of_2u(x[0])"},
            "value", "has been changed"),
        Wrong("seven of the eight", {"for k in range(WIDTH)": "for k in range(WIDTH - 1)"}, "value", "All eight"),
        Wrong("a copy", {"            x[k] *= logistic_of_2u(x[k])": "            x[k] *= ONE"}, "value", "as they were"),
        Wrong("s alone", {"x[k] *= logistic": "x[k] = logistic"}, "value", "s alone"),
        Wrong("bare numbers", {"x[k] *= logistic_of_2u(x[k])": "x[k] = 0.5 * x[k] * (2.0 * logistic_of_2u(x[k]))"}, "float64", "bare number"),
    ),
)  # fmt: skip
