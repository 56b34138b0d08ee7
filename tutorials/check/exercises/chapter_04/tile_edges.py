"""04_tile_edges: what happens along C where a tile sticks out."""

import numpy as np

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written
from tutorials.check.exercises.chapter_04.tile import product_bound

TILE = 4
STEPS = "    steps = (C + TILE - 1) // TILE\n"
ZERO_A = "        if row0 + y >= N or c >= C:\n            a_tile[y, x] = ZERO\n"
ZERO_B = "        if col0 + y >= OC or c >= C:\n            b_tile[x, y] = ZERO\n"


def arrays(random, N, C, OC):
    return {"out": written(N, OC), "inp": read(random.standard_normal((N, C))), "weight": read(random.standard_normal((OC, C)))}


def only_whole_tiles(inp, weight):
    whole = inp.shape[1] // TILE * TILE
    return {"out": inp[:, :whole] @ weight[:, :whole].T}


def numbers_left_over(inp, weight):
    """What is computed if a place of the last tile that is outside of the matrix still holds the number of the tile before."""
    C = inp.shape[1]
    again = [c - TILE for c in range(C, -(-C // TILE) * TILE)]
    return {"out": inp @ weight.T + (inp[:, again] @ weight[:, again].T if C > TILE else np.nan)}


EXERCISE = Exercise(
    function="multiply",
    arrays=arrays,
    reference=lambda inp, weight: {"out": inp @ weight.T},
    error=lambda inp, weight: product_bound(inp, weight.T),
    sizes=({"N": 8, "C": 16, "OC": 8}, {"N": 8, "C": 18, "OC": 8}, {"N": 4, "C": 2, "OC": 4}, {"N": 1, "C": 1, "OC": 1},
        {"N": 5, "C": 7, "OC": 3},
        {"N": 3, "C": 9, "OC": 6}, {"N": 6, "C": 12, "OC": 5}),
    least=Counts(global_reads=6, global_writes=1, shared_reads=24, shared_writes=6),
    most=Counts(global_reads=6, global_writes=1, shared_reads=24, shared_writes=6),
    most_barriers=6,
    hints={
        "": (
            "Take C = 18 and TILE = 4 on paper: how many steps are there, and which columns does the last one load?",
            "In the first place: steps must be rounded up, as the numbers of blocks are.",
            "In the second place: a thread whose number is outside of its matrix must store ZERO, or its place keeps what was there.",
        ),
        "race": (
            "If it was read before anybody wrote it: on a GPU it is whatever was in that memory, perhaps NaN, and 0 times NaN is NaN. Every "
            "thread must store a number into either tile, in every step. If one thread writes while another one reads: a tile may change "
            "only before the first barrier of a step; after it, others multiply.",
        ),
        "barrier": ("A thread outside of `out` still loads for others: it must not return early, and must reach every barrier.",),
        "accesses": ("With C = 12 three steps are enough, and so is one number of either tile for a thread and step.",),
        "bounds": ("c >= C for some threads of the last step: those must store ZERO, and read nothing.",),
        "barriers": ("Two barriers in each step are there already, and they are enough.",),
    },
    mistakes=(
        Mistake(only_whole_tiles, "The last columns of inp and weight are missing from the sums: how many steps are there?"),
        Mistake(
            numbers_left_over,
            "The last step multiplies numbers that are left over from the step before: a place without a number in the matrix must hold "
            "ZERO.",
        ),
    ),
    wrong=(
        Wrong("as it was given", {STEPS: "", ZERO_A: "", ZERO_B: ""}, "value", "how many steps"),
        Wrong("steps only", {ZERO_A: "", ZERO_B: ""}, "value", "left over"),
        Wrong("zeros only", {STEPS: ""}, "value", "how many steps"),
        Wrong("zeros in one tile only", {ZERO_B: ""}, "race", "0 times NaN"),
        Wrong("zeros along C only", {"row0 + y >= N or c >= C": "c >= C", "col0 + y >= OC or c >= C": "c >= C"}, "race", "Every thread"),
        Wrong("zeros for rows only", {"row0 + y >= N or c >= C": "row0 + y >= N", "col0 + y >= OC or c >= C": "col0 + y >= OC"}, "value",
            "left over"),
        Wrong("one step more, always", {"(C + TILE - 1) // TILE": "C // TILE + 1"}, "accesses", "three steps"),
        Wrong("zeros after the barrier", {ZERO_A + ZERO_B: "        cuda.syncthreads()\n" + ZERO_A + ZERO_B}, "barriers"),
        Wrong("zeros while others multiply", {ZERO_A + ZERO_B: "", "        # your lines:\n        # end of your lines\n        cuda":
            f"        # your lines:\n{ZERO_A}{ZERO_B}        # end of your lines\n        cuda"}, "race", "others multiply"),
        Wrong("returns early", {"    total = ZERO\n": "    if row0 + y >= N or col0 + x >= OC:\n        return\n    total = ZERO\n"},
            "barrier", "return early"),
    ),
)  # fmt: skip
