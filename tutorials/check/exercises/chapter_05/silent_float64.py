"""05_silent_float64: integers do it, too."""

import numpy as np

from gpt2_numba.layer_checks.calls import read, written
from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong
from tutorials.check.exercises.chapter_05.gelu_forward import CUBIC, SQRT_2_OVER_PI

LINE = "s = ONE / (ONE + math.exp(MINUS_TWO * u))"


def made(power):
    """The result with 1 / (1 + exp(power · u)) in place of s."""
    return lambda inp: {"out": inp / (1 + np.exp(power * SQRT_2_OVER_PI * (inp + CUBIC * inp**3)))}


EXERCISE = Exercise(
    function="gelu_logistic",
    arrays=lambda random, count: {"out": written(count), "inp": read(2 * random.standard_normal(count))},
    reference=made(-2),
    error=lambda inp: {"out": 16 * UNIT * np.abs(inp)},
    sizes=({"count": 5}, {"count": 1}, {"count": 31}, {"count": 97}),
    least=Counts(global_reads=1, global_writes=1),
    most=Counts(global_reads=1, global_writes=1),
    hints={
        "": (
            "Two lines in the kernel: s, then out[i] = x * s. And above it the constants, such as ONE = np.float32(1).",
            "s = ONE / (ONE + math.exp(MINUS_TWO * u))",
        ),
        "not written": ("The kernel must also write its result: out[i] = x * s.",),
        "error": ("A name that the kernel uses must be defined outside of it, in the first place that is marked.",),
        "value": ("For x far above 0, exp(-2 u) is nearly 0, s is 1, and out is x. What does yours say?",),
        "accesses": ("x holds inp[i] already.",),
        "float64": (
            "Numba gives every number that stands in the kernel a type of its own: 1 and 2 are integers of 64 bits. Define each as np.float32(...).",
            "Every number in the lines that are quoted counts, whether it is added, multiplied or divided.",
        ),
    },
    mistakes=(
        Mistake(made(2), "That is x (1 - s): the power is -2 u."),
        Mistake(made(-1), "The factor 2 is missing: exp(-2 u)."),
        Mistake(lambda inp: {"out": 1 / (1 + np.exp(-2 * SQRT_2_OVER_PI * (inp + CUBIC * inp**3)))}, "That is s alone: out is x s."),
    ),
    wrong=(
        Wrong("as it was found", {LINE: "s = 1 / (1 + math.exp(-2 * u))"}, "float64", "a type of its own"),
        Wrong("only the power", {LINE: "s = 1 / (1 + math.exp(MINUS_TWO * u))"}, "float64"),
        Wrong("only the sum", {LINE: "s = 1 / (ONE + math.exp(MINUS_TWO * u))"}, "float64"),
        Wrong("all but the power", {LINE: "s = ONE / (ONE + math.exp(-2 * u))"}, "float64"),
        Wrong("a constant that is none", {"np.float32(-2)": "-2.0"}, "float64", "np.float32(...)"),
        Wrong("a power of another sign", {"np.float32(-2)": "np.float32(2)"}, "value", "-2 u"),
        Wrong("no factor", {"MINUS_TWO * u": "-u"}, "value", "factor 2"),
        Wrong("s alone", {"out[i] = x * s": "out[i] = s"}, "value", "s alone"),
        Wrong("1 - s", {"x * s": "x * (ONE - s)"}, "value", "x (1 - s)"),
        Wrong("no result", {"        out[i] = x * s\n": ""}, "not written", "must also write"),
        Wrong("reads inp again", {"out[i] = x * s": "out[i] = inp[i] * s"}, "accesses", "already"),
    ),
)  # fmt: skip
