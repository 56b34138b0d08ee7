"""00_row_sum: a loop over a row, then a sum over the block."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

LOOP = "range(i, inp.shape[1], cuda.blockDim.x)"

EXERCISE = Exercise(
    function="row_sum",
    arrays=lambda random, N, C: {"out": written(N), "inp": read(random.standard_normal((N, C)))},
    reference=lambda inp: {"out": inp.sum(axis=1)},
    error=lambda inp: {"out": inp.shape[1] * UNIT * np.abs(inp).sum(axis=1)},  # C - 1 additions in any order
    sizes=({"N": 2, "C": 37}, {"N": 1, "C": 1}, {"N": 2, "C": 31}, {"N": 3, "C": 33}, {"N": 1, "C": 97}, {"N": 3, "C": 128}),
    least=Counts(global_reads=4, global_writes=1, shared_reads=11, shared_writes=6),
    least_transactions=51,  # 3 rows of 512 bytes, and a piece of out for each
    float64_refused=False,
    drawn=("inp",),
    hints={
        "": (
            "part = ZERO, then for c in range(i, inp.shape[1], cuda.blockDim.x): part += inp[row, c]",
            "total = block_sum(part) in every thread; then one thread of the block writes out[row].",
        ),
        "race": ("Which thread writes out[row]? All have the sum, but only one of them must write it: if i == 0.",),
        "barrier": ("There are barriers inside block_sum: every thread of the block must call it, also one without a column.",),
        "transactions": ("Neighbouring threads must read neighbouring columns: thread i starts at column i and goes on by the number of threads.",),
    },
    mistakes=(
        Mistake(lambda inp: {"out": inp[:, :32].sum(axis=1)}, "Those are the first 32 columns: a thread must go on to i + 32, i + 64, …"),
        Mistake(lambda inp: {"out": 32 * inp.sum(axis=1)}, "Every thread has added up the whole row, so the block's sum is 32 times too large."),
        Mistake(lambda inp: {"out": inp[:, ::32].sum(axis=1)}, "Those are the columns of thread 0 alone: block_sum must add up all threads' parts."),
    ),
    wrong=(
        Wrong("the first 32 columns only", {f"for c in {LOOP}": "for c in range(i, min(inp.shape[1], 32), 32)"}, "value", "first 32 columns"),
        Wrong("every thread adds up all", {LOOP: "range(inp.shape[1])"}, "value", "32 times"),
        Wrong("no block_sum", {"block_sum(part)": "part"}, "value", "thread 0 alone"),
        Wrong("all threads write", {"if i == 0:": "if True:"}, "race", "only one of them"),
        Wrong("block_sum under a condition", {"    total = block_sum(part)\n    if i == 0:": "    if i < inp.shape[1]:\n        total = block_sum(part)\n"
            "    if i == 0:"}, "barrier", "every thread of the block"),
        Wrong("a chunk for each thread", {LOOP: "range(i * ((inp.shape[1] + 31) // 32), min(inp.shape[1], (i + 1) * ((inp.shape[1] + 31) // 32)))"},
            "transactions", "neighbouring columns"),
    ),
)  # fmt: skip
