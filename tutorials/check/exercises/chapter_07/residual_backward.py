"""07_residual_backward: a gradient goes two ways, unchanged."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ODD, ONES
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.exercises.chapter_07.residual_forward import FEW, WIDER
from tutorials.check.layer_exercises import layer_exercise

LOOP = "range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x)"


def halves(dinp, dbranch, dout=None, **_):
    d = dinp if dout is None else dout
    return {"dinp": d / 2, "dbranch": d / 2}


EXERCISE = layer_exercise(
    function="residual_backward",
    layers=("residual",),
    sizes=(FEW, ONES, ODD, WIDER),
    least=Counts(global_reads=4, global_writes=8),
    most=Counts(global_reads=4, global_writes=8),
    least_transactions=210,  # 5 rows of 97 elements, in pieces of eight; one array is read, two are written
    most_barriers=0,
    drawn=("dout",),
    hints={
        "": (
            "The loop of forward, over the columns of dout: for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x).",
            "Read d = dout[row, c] into a variable, then write it to both.",
        ),
        "not written": ("Are both outputs written, and does the loop reach all columns, also where a row has more than 32?",),
        "value": ("Both gradients are dout, unchanged, at the same row and column.",),
        "race": ("Each number belongs to one thread: thread i takes columns i, i + 32, i + 64, ...",),
        "bounds": ("A row may have fewer than 32 numbers: let the loop's range decide who has work.",),
        "transactions": ("Neighbouring threads must take neighbouring columns: i, i + 32, i + 64, ... for thread i.",),
        "accesses": ("Read each number once, into a variable, and write that twice; and let all 32 threads of the block work on the row.",),
        "barriers": ("No thread needs what another one has written: no barrier is needed.",),
    },
    mistakes=(
        Mistake(halves, "The gradient is not shared out: each input moves out by a full ε, so each gets all of dout."),
        Mistake(lambda dinp, dout=None, **_: {"dinp": 0 * (dinp if dout is None else dout)}, "dinp holds zeros: the stream gets dout as well."),
        Mistake(lambda dinp, **_: {"dinp": np.nan * dinp}, "dinp holds NaN before the call: it is to be overwritten, not added to."),
        Mistake(lambda dbranch, **_: {"dbranch": np.nan * dbranch}, "dbranch holds NaN before the call: it is to be overwritten, not added to."),
    ),
    wrong=(
        Wrong("shared out", {"d = dout[row, c]": "d = dout[row, c] / 2"}, "value", "not shared out"),
        Wrong("the stream gets nothing", {"dinp[row, c] = d": "dinp[row, c] = d - d"}, "value", "zeros"),
        Wrong("added to the stream", {"dinp[row, c] = d": "dinp[row, c] += d"}, "value", "overwritten"),
        Wrong("added to the branch's", {"dbranch[row, c] = d": "dbranch[row, c] += d"}, "value", "dbranch holds NaN"),
        Wrong("the neighbour's gradient", {"d = dout[row, c]": "d = dout[row, (c + 1) % dout.shape[1]]"}, "value"),
        Wrong("one row for all", {"d = dout[row, c]": "d = dout[0, c]"}, "value", "unchanged"),
        Wrong("only the branch", {"        dinp[row, c] = d\n": ""}, "not written", "both outputs"),
        Wrong("only the stream", {"        dbranch[row, c] = d\n": ""}, "not written", "both outputs"),
        Wrong("zeroed before it is read", {"        d = dout[row, c]\n        dinp[row, c] = d\n": "        dinp[row, c] = 0\n        d = dout[row, c]\n"
            "        dinp[row, c] += d\n"}, "value", "zeros"),
        Wrong("reads twice", {"dbranch[row, c] = d": "dbranch[row, c] = dout[row, c]"}, "accesses", "once"),
        Wrong("reads back", {"dbranch[row, c] = d": "dbranch[row, c] = dinp[row, c]"}, "accesses", "once"),
        Wrong("the first 32 columns only", {LOOP: "range(cuda.threadIdx.x, min(32, dout.shape[1]), 32)"}, "not written", "all columns"),
        Wrong("no loop", {f"for c in {LOOP}:": "if True:\n        c = cuda.threadIdx.x"}, "bounds", "fewer than 32"),
        Wrong("every thread takes all columns", {LOOP: "range(dout.shape[1])"}, "race", "one thread"),
        Wrong("one thread takes all columns", {LOOP: "range(dout.shape[1] if cuda.threadIdx.x == 0 else 0)"}, "accesses", "all 32"),
        Wrong("a chunk for each thread", {LOOP: "range(cuda.threadIdx.x * ((dout.shape[1] + 31) // 32), min(dout.shape[1], "
            "(cuda.threadIdx.x + 1) * ((dout.shape[1] + 31) // 32)))"}, "transactions", "neighbouring columns"),
    ),
)  # fmt: skip
