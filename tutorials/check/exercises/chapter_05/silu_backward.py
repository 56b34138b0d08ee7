"""05_silu_backward: another bend, another slope."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, N, D):
    return {"dinp": np.full((N, D), np.nan), "dout": random.standard_normal((N, D)), "inp": 2 * random.standard_normal((N, D))}


def logistic(inp):
    return 1 / (1 + np.exp(-inp))


def with_slope(slope):
    """The result for this function of inp and s, in place of the slope."""
    return lambda dinp, dout, inp: {"dinp": dout * slope(inp, logistic(inp))}


EXERCISE = host_exercise(
    function="silu_backward",
    arguments=arguments,
    reference=with_slope(lambda x, s: s + x * s * (1 - s)),
    sizes=({"N": 1, "D": 3}, {"N": 4, "D": 5}),
    hints={
        "": (
            "Two terms: one for the factor inp, as if s did not move, and one for s, as if the factor did not move.",
            "The factor inp gives s. The inner one gives inp times what s does, inp s (1 - s). Their sum is the slope.",
        ),
        "not written": (
            "Fill the array that you are given: dinp[:] = ..., not dinp = ..., which is a new array of that name. And overwrite it: dinp += ... adds to "
            "what it holds, NaN here.",
        ),
        "value": ("Take inp = 0 on paper: s is 1/2, and the slope must be 1/2. For a large inp the slope must be 1. What does yours say?",),
        "error": ("np.exp takes an array; all three arrays have one shape.",),
    },
    mistakes=(
        Mistake(with_slope(lambda x, s: s), "That is the first term alone: inp moves s, too."),
        Mistake(with_slope(lambda x, s: x * s * (1 - s)), "That is the second term alone: inp is also the factor in front."),
        Mistake(with_slope(lambda x, s: s * (1 - s)), "That is how far s rises. out is inp s: two factors, two terms."),
        Mistake(with_slope(lambda x, s: s + s * (1 - s)), "In the second term, what s does is multiplied by the factor in front of it, inp."),
        Mistake(with_slope(lambda x, s: x * s), "That is forward."),
        Mistake(with_slope(lambda x, s: 1 - s + x * s * (1 - s)), "Your s falls where it should rise: write exp(-inp), not exp(inp)."),
        Mistake(with_slope(lambda x, s: s + x * (1 - s * s)), "1 - s² is what tanh's slope looks like. That of s is s (1 - s)."),
        Mistake(lambda dinp, dout, inp: {"dinp": logistic(inp) * (1 + inp * (1 - logistic(inp)))}, "That is the slope: multiply it by dout."),
    ),
    wrong=(
        Wrong("the first term alone", {"s + inp * s * (1 - s)": "s"}, "value", "first term alone"),
        Wrong("the second term alone", {"s + inp * s * (1 - s)": "inp * s * (1 - s)"}, "value", "second term alone"),
        Wrong("the factor forgotten", {"inp * s * (1 - s)": "s * (1 - s)"}, "value", "multiplied by the factor"),
        Wrong("tanh's slope", {"s * (1 - s)": "(1 - s * s)"}, "value", "tanh's slope"),
        Wrong("another sign", {"np.exp(-inp)": "np.exp(inp)"}, "value", "falls where it should rise"),
        Wrong("without dout", {"dout * (": "("}, "value", "multiply it by dout"),
        Wrong("a new array", {"dinp[:] =": "dinp ="}, "not written", "new array"),
        Wrong("added to", {"dinp[:] =": "dinp[:] +="}, "not written"),
        Wrong("writes over dout", {"dinp[:] = dout *": "dinp[:] = dout; dinp[:] = dout; dout *= 2; dinp *="}, "input"),
    ),
)  # fmt: skip
