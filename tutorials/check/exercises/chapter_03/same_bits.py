"""03_same_bits: a sum whose order depends on the launch."""

import numpy as np

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

PIECE = 8


def sums_in_pieces(inp, rows=PIECE):
    """The float32 sums over the rows, piece by piece, each from its first row to its last. inp: float64, exact."""
    total = np.zeros(inp.shape[1], np.float32)
    for first in range(0, len(inp), rows):
        part = np.zeros_like(total)
        for row in inp[first : first + rows].astype(np.float32):
            part += row
        total += part
    return total


def without_the_last_rows(inp):
    """The sums if the kernel takes pieces of 8 rows, but as many pieces as before."""

    def few_pieces(blocks):
        rows = -(-len(inp) // blocks)
        return sums_in_pieces(inp[: PIECE * -(-len(inp) // rows)])

    return {"few": few_pieces(2), "many": few_pieces(5)}


def reference(inp):
    return {"few": sums_in_pieces(inp), "many": sums_in_pieces(inp)}


HERE = "    # your lines:\n    rows = 8\n    # end of your lines\n"
LEFT_OUT = "    # your lines:\n    # end of your lines\n"

EXERCISE = Exercise(
    function="sum_on_two_gpus",
    arrays=lambda random, N, C: {"few": written(C), "many": written(C), "inp": read(random.standard_normal((N, C)))},
    reference=reference,
    sizes=({"N": 67, "C": 5}, {"N": 1, "C": 1}, {"N": 7, "C": 3}, {"N": 16, "C": 33}, {"N": 83, "C": 37}),
    least=Counts(global_reads=43, global_writes=6),
    drawn=("inp",),
    hints={
        "": (
            "float32 rounds each sum, so another order gives other bits. What determines which rows are added up first?",
            "The rows of a piece are added up first. Where is their number computed, and from what?",
            "rows is computed from blocks. Set it to 8 before the number of pieces is computed from it.",
        ),
        "value": ("The number is right up to rounding: compare the last digits. It is the order of the additions that differs from that of pieces of 8 rows.",),
        "bounds": ("The number of pieces no longer fits the array: whatever you change must come before `pieces` is computed.",),
    },
    mistakes=(
        Mistake(
            without_the_last_rows,
            "Rows are missing: a piece has 8 rows now, but there are as many pieces as before. They are counted, from `rows`, before the launch.",
        ),
    ),
    wrong=(
        Wrong("as it was given", {HERE: LEFT_OUT}, "value", "order of the additions"),
        Wrong("in the kernel", {HERE: LEFT_OUT, f"        return\n{LEFT_OUT}": "        return\n    rows = 8\n"}, "value", "Rows are missing"),
        Wrong("one piece", {"rows = 8\n": "rows = N\n"}, "value", "order of the additions"),
        Wrong("another length", {"rows = 8\n": "rows = 16\n"}, "value", "order of the additions"),
        Wrong("the blocks of the larger GPU", {"rows = 8\n": "rows = (N + 4) // 5\n"}, "value", "order of the additions"),
        Wrong("a piece for each block only", {HERE: "    rows = 8\n    N = min(N, 8 * blocks)\n"}, "value"),
    ),
)  # fmt: skip
