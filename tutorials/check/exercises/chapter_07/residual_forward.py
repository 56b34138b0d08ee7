"""07_residual_forward: a sum, and all that can be wrong with one."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ODD, ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

FEW = Sizes(B=1, T=3, C=5, NH=1, V=2, Vp=2, OC=1)
WIDER = Sizes(B=1, T=5, C=97, NH=1, V=2, Vp=2, OC=1)
LOOP = "range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x)"

EXERCISE = layer_exercise(
    function="residual_forward",
    layers=("residual",),
    sizes=(FEW, ONES, ODD, WIDER),
    least=Counts(global_reads=8, global_writes=4),
    most=Counts(global_reads=8, global_writes=4),
    least_transactions=210,  # 5 rows of 97 elements, in pieces of eight; two arrays are read, one is written
    most_barriers=0,
    drawn=("inp",),
    hints={
        "": (
            "A loop over the columns of the row, for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x).",
            "In the loop: out[row, c] = inp[row, c] + branch[row, c]",
        ),
        "not written": ("A row may have more numbers than the block has threads: does your loop reach all of them?",),
        "value": ("Both summands are at the same row and column as the sum.",),
        "race": ("Each number belongs to one thread: thread i takes columns i, i + 32, i + 64, ...",),
        "bounds": ("A row may have fewer than 32 numbers: let the loop's range decide who has work.",),
        "transactions": ("Neighbouring threads must take neighbouring columns: i, i + 32, i + 64, ... for thread i.",),
        "accesses": ("Two reads and one write for each number, and let all 32 threads of the block work on the row.",),
        "barriers": ("No thread needs what another one has written: no barrier is needed.",),
    },
    mistakes=(
        Mistake(lambda inp, **_: {"out": inp}, "The branch has been forgotten."),
        Mistake(lambda branch, **_: {"out": branch}, "The stream, inp, has been forgotten: the branch is added to it."),
        Mistake(lambda inp, branch, **_: {"out": inp - branch}, "The branch is added, not subtracted."),
        Mistake(lambda inp, **_: {"out": np.nan * inp}, "out holds NaN before the call: it is to be overwritten, not added to."),
    ),
    wrong=(
        Wrong("no branch", {" + branch[row, c]": ""}, "value", "branch has been forgotten"),
        Wrong("no stream", {"inp[row, c] + ": ""}, "value", "inp, has been forgotten"),
        Wrong("a difference", {"] + branch": "] - branch"}, "value", "not subtracted"),
        Wrong("added to what out holds", {"out[row, c] =": "out[row, c] +="}, "value", "overwritten"),
        Wrong("one row of the branch for all", {"branch[row, c]": "branch[0, c]"}, "value", "same row"),
        Wrong("one column of the branch for all", {"branch[row, c]": "branch[row, 0]"}, "value", "same row"),
        Wrong("into the branch", {"out[row, c] = inp[row, c] + branch[row, c]": "branch[row, c] += inp[row, c]\n        out[row, c] = branch[row, c]"}, "input"),
        Wrong("no loop", {f"for c in {LOOP}:": "if True:\n        c = cuda.threadIdx.x"}, "bounds", "fewer than 32"),
        Wrong("the first 32 columns only", {LOOP: "range(cuda.threadIdx.x, min(32, inp.shape[1]), 32)"}, "not written", "more numbers"),
        Wrong("every thread takes all columns", {LOOP: "range(inp.shape[1])"}, "race", "one thread"),
        Wrong("one thread takes all columns", {LOOP: "range(inp.shape[1] if cuda.threadIdx.x == 0 else 0)"}, "accesses", "all 32"),
        Wrong("in two steps", {"out[row, c] = inp[row, c] + branch[row, c]": "out[row, c] = inp[row, c]\n        out[row, c] += branch[row, c]"}, "accesses", "one write"),
        Wrong("a chunk for each thread", {LOOP: "range(cuda.threadIdx.x * ((inp.shape[1] + 31) // 32), min(inp.shape[1], "
            "(cuda.threadIdx.x + 1) * ((inp.shape[1] + 31) // 32)))"}, "transactions", "neighbouring columns"),
        Wrong("a barrier", {"    for c in": "    cuda.syncthreads()\n    for c in"}, "barriers", "no barrier"),
    ),
)  # fmt: skip
