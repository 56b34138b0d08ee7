"""04_tile: a matrix product by tiles in shared memory."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

LOAD_A, LOAD_B = "a_tile[y, x] = inp[row0 + y, k0 + x]", "b_tile[y, x] = weight[k0 + y, col0 + x]"
BARRIER = "        cuda.syncthreads()\n"


def arrays(random, N, C, OC):
    return {"out": written(N, OC), "inp": read(random.standard_normal((N, C))), "weight": read(random.standard_normal((C, OC)))}


def product_bound(inp, weight):
    """Bound on the rounding error of a sum of C products in any order."""
    return {"out": inp.shape[1] * UNIT * (np.abs(inp) @ np.abs(weight))}


EXERCISE = Exercise(
    function="multiply",
    arrays=arrays,
    reference=lambda inp, weight: {"out": inp @ weight},
    error=product_bound,
    sizes=({"N": 32, "C": 16, "OC": 16}, {"N": 16, "C": 16, "OC": 32}, {"N": 16, "C": 32, "OC": 16}),
    least=Counts(global_reads=4, global_writes=1, shared_reads=64, shared_writes=4),
    most=Counts(global_reads=4, global_writes=1, shared_reads=64, shared_writes=4),
    least_transactions=160,  # 16 rows of 64 bytes in each of two tiles in two steps, and as many of out
    most_barriers=4,
    threads=(16, 16, 1),
    drawn=("weight",),
    hints={
        "": (
            "for k0 in range(0, inp.shape[1], TILE): in each step load a number of either tile; wait; add TILE products; wait. After all "
            "steps, write.",
            "Load a_tile[y, x] = inp[row0 + y, k0 + x], and b_tile[y, x] from row k0 + y and column col0 + x of weight.",
            "for k in range(TILE): total += a_tile[y, k] * b_tile[k, x]",
        ),
        "shared": ("Put the numbers into a_tile and b_tile first, and multiply what is there: each of them is used by 16 threads.",),
        "race": (
            "Two barriers in each step: one after loading, since others multiply what you load; one after multiplying, since the next step "
            "loads over what others still multiply.",
        ),
        "value": ("Which index counts along C? It is the last of a_tile[y, k], and the first of b_tile[k, x].",),
        "bounds": ("row0 + y is a row of inp, k0 + x a column of it; k0 + y is a row of weight, col0 + x a column of it.",),
        "accesses": (
            "In each step a thread loads one number of inp and one of weight; all else comes from the tiles. Write out once, at the end.",),
        "transactions": ("Neighbouring threads must load neighbouring numbers: x is the last index of inp and of weight.",),
        "barriers": ("Two barriers in each step are enough: neither belongs inside the loop over k.",),
        "float64": ("ZERO is float32, and so is everything that is added to it: no bare 0.0.",),
    },
    mistakes=(
        Mistake(
            lambda inp, weight: {"out": inp @ weight.T if len(weight) == len(weight.T) else np.nan * (inp @ weight)},
            "weight is used as if it were turned over. It is (C, OC) here, not (OC, C) as in the chapter: load its row k0 + y, column "
            "col0 + x; and what counts along C is the first index of b_tile[k, x].",
        ),
        Mistake(
            lambda inp, weight: {"out": inp[:, -16:] @ weight[-16:]},
            "That is the product of the last two tiles alone: total must be carried from step to step.",
        ),
        Mistake(
            lambda inp, weight: {"out": inp[:, 15::16] @ weight[15::16]},
                "Only the last of the 16 products of each step is left: total += ..."
        ),
    ),
    wrong=(
        Wrong("weight as in the chapter", {LOAD_B: "b_tile[x, y] = weight[col0 + y, k0 + x]"}, "value", "as in the chapter"),
        Wrong("no barrier", {BARRIER: ""}, "race", "Two barriers"),
        Wrong("no barrier after loading", {f"{LOAD_B}\n{BARRIER}": f"{LOAD_B}\n"}, "race", "Two barriers"),
        Wrong("no barrier after multiplying", {f"* b_tile[k, x]\n{BARRIER}": "* b_tile[k, x]\n"}, "race", "Two barriers"),
        Wrong("a barrier in the inner loop", {"            total +=": "            cuda.syncthreads()\n            total +="},
            "barriers", "inside"),
        Wrong("straight from global memory", {"a_tile[y, k] * b_tile[k, x]": "inp[row0 + y, k0 + k] * weight[k0 + k, col0 + x]",
            LOAD_A: "pass", LOAD_B: "pass"}, "shared", "first"),
        Wrong("one factor straight from global memory", {"* b_tile[k, x]": "* weight[k0 + k, col0 + x]"}, "accesses", "one number of inp"),
        Wrong("each thread loads the whole row", {LOAD_A: "for k in range(TILE):\n            if x == 0:\n                "
            "a_tile[y, k] = inp[row0 + y, k0 + k]"}, "accesses", "one number"),
        Wrong("loaded by columns", {LOAD_A: "a_tile[x, y] = inp[row0 + x, k0 + y]", LOAD_B: "b_tile[x, y] = weight[k0 + x, col0 + y]"},
            "transactions", "neighbouring numbers"),
        Wrong("weight by columns", {LOAD_B: "b_tile[x, y] = weight[k0 + x, col0 + y]"}, "transactions", "neighbouring"),
        Wrong("a tile turned over", {"b_tile[k, x]": "b_tile[x, k]"}, "value", "along C"),
        Wrong("= for +=", {"total += a": "total = a"}, "value"),
        Wrong("total starts again in each step", {f"        {LOAD_A}": f"        total = ZERO\n        {LOAD_A}"}, "value",
            "from step to step"),
        Wrong("the first tile over and over", {"inp[row0 + y, k0 + x]": "inp[row0 + y, x]"}, "value"),
        Wrong("added to global memory", {"    out[row0 + y, col0 + x] = total": "    pass",
            "        for k in range(TILE):\n            total += a_tile[y, k] * b_tile[k, x]\n":
                "        total = ZERO if k0 == 0 else out[row0 + y, col0 + x]\n"
            "        for k in range(TILE):\n            total += a_tile[y, k] * b_tile[k, x]\n        out[row0 + y, col0 + x] = total\n"}, "accesses"),
    ),
)  # fmt: skip
