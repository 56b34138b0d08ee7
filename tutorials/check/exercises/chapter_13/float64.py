"""13_float64: an integer as the first number of a sum, an integer as divisor, a power, a bare number."""

import numpy as np

from gpt2_numba.layer_checks.calls import read, written
from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong


def root_mean(squares):
    return np.sqrt(squares.mean(axis=0))


def arrays(random, P, N):
    return {
        "scale": written(N),
        "squares": read(random.uniform(0.1, 3, size=(P, N))),
        "limit": read(random.uniform(0.3, 2, size=N)),
    }


EXERCISE = Exercise(
    function="clip_scale",
    arrays=arrays,
    reference=lambda squares, limit: {"scale": np.minimum(1, limit / root_mean(squares))},
    error=lambda squares, limit: {"scale": (len(squares) + 6) * UNIT * np.minimum(1, limit / root_mean(squares))},
    sizes=({"P": 1, "N": 5}, {"P": 3, "N": 1}, {"P": 5, "N": 97}),
    least=Counts(global_reads=6, global_writes=1),
    most=Counts(global_reads=6, global_writes=1),
    hints={
        "": (
            "The lines are right; only the types are not. Which type has 0? And 1.0? And a float32 divided by an integer?",
            "total = ZERO, with ZERO = np.float32(0) outside of the kernel; / float32(P); math.sqrt(...); min(ONE, ...).",
        ),
        "float64": (
            "Four doors: the first number of a sum gives the sum its type; an integer as divisor; ** with a bare 0.5; a bare number in min.",
            "An integer plus a float32 is a float64 for Numba, and so is a float32 divided by an integer.",
            "The compiler moves instructions: a line that is named may be innocent, and the door be one line above or below.",
        ),
        "error": ("A name that the kernel uses must be defined outside of it, in the first place that is marked.",),
        "value": ("P = 1 is the first size: then rms is the root of the one number, and scale[n] is never above 1.",),
        "not written": ("The kernel must also write its result: scale[n] = ...",),
        "accesses": ("Each of the P numbers once, limit[n] once, scale[n] once: keep the sum in a variable.",),
    },
    mistakes=(
        Mistake(lambda squares, limit: {"scale": limit / root_mean(squares)}, "The factor is never above 1: min(ONE, ...)."),
        Mistake(lambda squares, limit: {"scale": np.minimum(1, limit / squares.mean(axis=0))}, "The root is missing."),
        Mistake(lambda squares, limit: {"scale": np.minimum(1, limit / np.sqrt(squares.sum(axis=0)))}, "That is the root of the sum: divide by P."),
        Mistake(lambda squares, limit: {"scale": np.maximum(1, limit / root_mean(squares))}, "The factor brings down, never up: the smaller of both."),
    ),
    wrong=(
        Wrong("as it was found", {"total = ZERO": "total = 0", "float32(P)": "P", "min(ONE": "min(1.0"}, "float64", "Four doors"),
        Wrong("an integer as the first number", {"total = ZERO": "total = 0"}, "float64", "Four doors"),
        Wrong("an integer as divisor", {"float32(P)": "P"}, "float64"),
        Wrong("a power", {"math.sqrt(total / float32(P))": "(total / float32(P)) ** 0.5"}, "float64"),
        Wrong("a bare number", {"min(ONE": "min(1.0"}, "float64"),
        Wrong("a constant that is none", {"np.float32(0), np.float32(1)": "0.0, np.float32(1)"}, "float64"),
        Wrong("no limit", {"min(ONE, limit[n] / rms)": "limit[n] / rms"}, "value", "never above 1"),
        Wrong("no root", {"math.sqrt(total / float32(P))": "total / float32(P)"}, "value", "root is missing"),
        Wrong("no mean", {"total / float32(P)": "total"}, "value", "divide by P"),
        Wrong("the larger", {"min(ONE": "max(ONE"}, "value", "never up"),
        Wrong("the first number is forgotten", {"range(P)": "range(1, P)"}, "value"),
        Wrong("the last row is forgotten", {"range(P)": "range(max(P - 1, 1))"}, "value"),
        Wrong("the sum is in memory", {"total = ZERO": "scale[n] = ZERO", "total += ": "scale[n] += ", "math.sqrt(total": "math.sqrt(scale[n]"}, "accesses"),
        Wrong("no result", {"        scale[n] = min(ONE, limit[n] / rms)\n": ""}, "not written"),
        Wrong("no condition", {"if n < scale.shape[0]:": "if True:"}, "bounds"),
    ),
)  # fmt: skip
