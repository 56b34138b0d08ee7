"""00_float32: arithmetic in float64 that nothing announces."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Wrong, read, written


def celsius(fahrenheit):
    return (fahrenheit - 32) * 5 / 9


EXERCISE = Exercise(
    function="to_celsius",
    arrays=lambda random, N: {"celsius": written(N), "fahrenheit": read(60 + 20 * random.standard_normal(N))},
    reference=lambda fahrenheit: {"celsius": celsius(fahrenheit)},
    error=lambda fahrenheit: {"celsius": 4 * UNIT * np.abs(celsius(fahrenheit))},  # the constant, a difference and a product are rounded
    sizes=({"N": 5}, {"N": 1}, {"N": 31}, {"N": 33}),
    least=Counts(global_reads=1, global_writes=1),
    hints={
        "": ("The kernel is right as it is; only the types of its two constants are not.",),
        "float64": (
            "np.float32(x) is x as a float32. Convert the constants, once, outside of the kernel.",
            "Both need it: an integer minus a float32 is float64 for Numba, as a float64 times a float32 is.",
        ),
    },
    wrong=(
        Wrong("as it was given", {"FREEZING = np.float32(FREEZING)\nRATIO = np.float32(RATIO)\n": ""}, "float64", "np.float32(x)"),
        Wrong("one of the two", {"FREEZING = np.float32(FREEZING)\n": ""}, "float64"),
        Wrong("integers", {"np.float32(RATIO)": "5 // 9"}, "value"),
    ),
)
