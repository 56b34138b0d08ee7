"""04_matmul_forward: a thread for each number, and a bias that may be missing."""

import numpy as np

from gpt2_numba.layer_checks.sizes import MANY_ROWS, ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

FEW = Sizes(B=1, T=3, C=5, NH=1, V=4, Vp=6, OC=7)
ALL_DIFFERENT = Sizes(B=2, T=5, C=21, NH=3, V=17, Vp=19, OC=13)
LIMITLESS = 10_000  # accesses of shared memory: who wants to use tiles may

GUARD = "if n < out.shape[0] and o < out.shape[1]:"
LOOP = "for c in range(inp.shape[1]):"


# After these one thread computes everything.
ALONE = {
    f"    {GUARD}\n        total = ZERO\n": "    for place in range(0 if n or o else out.size):\n"
    "        n, o = place // out.shape[1], place % out.shape[1]\n        total = ZERO\n"
}


def bias_of_nothing(inp, weight, bias=None, **_):
    """What is computed without a bias if the array that the kernel is given in its place is added."""
    return {"out": inp @ weight.T + (weight.reshape(-1)[: len(weight)] if bias is None else np.nan)}


EXERCISE = layer_exercise(
    function="matmul_forward",
    layers=("matmul", "matmul without bias"),
    sizes=(FEW, ONES, MANY_ROWS, ALL_DIFFERENT),
    least=Counts(global_reads=5, global_writes=1),  # by tiles of 16 × 16, two steps along C = 21
    taken=Counts(global_reads=43, global_writes=1),
    most=Counts(global_reads=43, global_writes=1, shared_reads=LIMITLESS, shared_writes=LIMITLESS),
    drawn=("weight",),
    hints={
        "": (
            "First ask whether the thread has a number: if n < out.shape[0] and o < out.shape[1]. Then the sum, in a variable.",
            "total = ZERO, then for c in range(inp.shape[1]): total += inp[n, c] * weight[o, c]",
            "After the loop: if has_bias: total += bias[o]. Then out[n, o] = total.",
        ),
        "value": ("Both factors are read along a row: inp[n, c] and weight[o, c], with the same c.",),
        "bounds": (
            "Blocks stick out of `out`: a thread with n >= out.shape[0] or o >= out.shape[1] must do nothing. If you ask for that already, compare "
            "the indices: weight is (OC, C), so weight[o, c].",
            "o is a column of `out` and a row of `weight`; n is a row of `out` and of `inp`; c is a column of both factors.",
        ),
        "not written": ("Every thread that has a number writes it once: out[n, o] = total.",),
        "race": ("Each number of `out` belongs to one thread: the one with this n and this o.",),
        "accesses": (
            "Add up in a variable, total, and write out[n, o] once, after the loop.",
            "Each thread has one number of `out` to compute, and no thread has the work of others.",
        ),
        "float64": ("A bare 0.0 is float64, and makes the sum float64: begin with ZERO.",),
    },
    mistakes=(
        Mistake(lambda inp, weight, bias=0, **_: {"out": inp[:, :-1] @ weight[:, :-1].T + bias},
            "The last channel is missing from the sums."),
        Mistake(lambda inp, weight, **_: {"out": inp @ weight.T}, "The bias is missing."),
        Mistake(bias_of_nothing, "Something is added although there is no bias: ask `if has_bias`."),
        Mistake(
            lambda inp, weight, bias=0, **_: {"out": inp @ weight.T + inp.shape[1] * np.asarray(bias)},
            "The bias is added once for each channel: it belongs behind the loop.",
        ),
        Mistake(lambda inp, weight, bias=0, **_: {"out": inp[:, -1:] @ weight[:, -1:].T + bias},
            "Only the last product is left: add up, total += ..."),
    ),
    wrong=(
        Wrong("no guard", {GUARD: "if True:"}, "bounds", "stick out"),
        Wrong("the rows only", {GUARD: "if n < out.shape[0]:"}, "bounds", "stick out"),
        Wrong("the columns only", {GUARD: "if o < out.shape[1]:"}, "bounds", "stick out"),
        Wrong("the bias always", {"if has_bias:": "if True:"}, "value", "no bias"),
        Wrong("no bias", {"total += bias[o]": "total += ZERO"}, "value", "bias is missing"),
        Wrong("the bias within the loop", {"        if has_bias:\n            total += bias[o]":
            "            if has_bias:\n                total += bias[o]"},
            "value", "behind the loop"),
        Wrong("weight turned over", {"weight[o, c]": "weight[c, o]"}, "bounds", "compare the indices"),
        Wrong("the last channel is forgotten", {LOOP: "for c in range(inp.shape[1] - 1):"}, "value", "last channel"),
        Wrong("= for +=", {"total += inp": "total = inp"}, "value", "last product"),
        Wrong("the bias of a neighbour", {"bias[o]": "bias[(o + 1) % out.shape[1]]"}, "value"),
        Wrong("the sum in global memory", {"total = ZERO": "out[n, o] = ZERO", "total += ": "out[n, o] += ", "out[n, o] = total": "pass"},
            "accesses", "in a variable"),
        Wrong("rows and columns exchanged", {"o, n = cuda.grid(2)": "n, o = cuda.grid(2)"}, "not written"),
        Wrong("one thread does everything", ALONE, "accesses"),
        Wrong("a bare 0.0", {"total = ZERO": "total = 0.0"}, "float64", "bare 0.0"),
    ),
)  # fmt: skip
