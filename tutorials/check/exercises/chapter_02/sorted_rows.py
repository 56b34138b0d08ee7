"""02_sorted_rows: each block reads the rows of its own token, found by sorting."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, accumulated, read


def arrays(random, N, C, V):
    tokens = V // 4 * random.integers(4, size=N) + V // 8  # most do not occur
    return {
        "dwte": accumulated(V, C),
        "dout": read(random.standard_normal((N, C))),
        "places": read(np.argsort(tokens, kind="stable").astype(np.int32), "i32"),
        "starts": read(np.concatenate([[0], np.cumsum(np.bincount(tokens, minlength=V))]).astype(np.int32), "i32"),
    }


def sums(dout, places, starts):
    starts, places = starts.astype(np.int64), places.astype(np.int64)
    return np.stack([dout[places[first:stop]].sum(axis=0) for first, stop in zip(starts[:-1], starts[1:])])


def unsorted(dout, places, starts):
    return {"dwte": 1 + sums(dout, np.arange(len(places)), starts)}  # dwte holds ones before the call


EXERCISE = Exercise(
    function="add_sorted_rows",
    arrays=arrays,
    reference=lambda dout, places, starts: {"dwte": sums(dout, places, starts)},
    error=lambda dout, places, starts: {"dwte": (len(places) + 1) * UNIT * (1 + sums(np.abs(dout), places, starts))},  # at most N additions
    sizes=({"N": 9, "C": 3, "V": 4}, {"N": 1, "C": 1, "V": 1}, {"N": 2, "C": 5, "V": 33}, {"N": 23, "C": 40, "V": 40}),
    least=Counts(global_reads=25, global_writes=2),  # seven places of the most frequent token: each once, for two channels
    taken=Counts(global_reads=32, global_writes=2),
    least_transactions=281,
    drawn=("dout",),
    hints={
        "": (
            "The block's places are places[i] for i from starts[v] up to, but not including, starts[v + 1].",
            "Each thread takes channels c, as in 02_encoder_backward, and for each adds up dout[places[i], c] in a register.",
        ),
        "race": ("Block v writes row v of dwte only, and in the block each thread has channels of its own.",),
        "float64": ("A bare 0.0 is float64, and makes the sum float64: begin with ZERO.",),
        "bounds": (
            "starts holds indices into places, and places holds rows of dout: i runs from starts[v] to starts[v + 1] - 1, and the row is places[i]. "
            "The last token's places end at starts[V], which is N, where places has no element.",
        ),
        "not written": ("Does the loop over the channels go on by cuda.blockDim.x until the last one?",),
        "value": (
            "Which rows are added? dout[places[i], c] for starts[v] <= i < starts[v + 1]; and += keeps what is in dwte.",
            "Does the sum begin at ZERO for each channel, inside the loop over the channels? A thread may have more than one.",
        ),
        "host": (
            "If your kernel adds with cuda.atomic.add: that would be right, with different bits in each run. Here block v makes all additions to "
            "row v, in the order of a loop.",
        ),
        "transactions": (
            "Three things cost pieces: threads whose channels are not next to each other; dwte read and written for each place, where once, at "
            "the end, would do; and a row of dwte that is touched though its token does not occur.",
            "for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x); in it a sum in a register; all of it only if starts[v] < starts[v + 1].",
        ),
    },
    mistakes=(
        Mistake(unsorted, "Those are rows starts[v] to starts[v + 1] - 1 of dout: the rows of token v are dout[places[i]]."),
        Mistake(lambda dout, places, starts: {"dwte": sums(dout, places, starts)}, "What was in dwte before is lost: +=, not =."),
    ),
    wrong=(
        Wrong("not through places", {"dout[places[i], c]": "dout[i, c]"}, "value", "dout[places[i]]"),
        Wrong("the last place is forgotten", {"range(first, stop)": "range(first, stop - 1)"}, "value", "Which rows"),
        Wrong("a float64 sum", {"total = ZERO": "total = 0.0"}, "float64", "ZERO"),
        Wrong(
            "one sum for all channels of a thread",
            {"total = ZERO": "total = total if c >= cuda.blockDim.x else ZERO"},
            "value",
        ),
        Wrong("overwrites", {"dwte[v, c] +=": "dwte[v, c] ="}, "value", "is lost"),
        Wrong(
            "adds to dwte in the loop",
            {
                "                total += dout[places[i], c]\n            dwte[v, c] += total": "                dwte[v, c] += dout[places[i], c]"
            },
            "transactions",
            "at the end",
        ),
        Wrong("one place too many", {"range(first, stop)": "range(first, stop + 1)"}, "bounds"),
        Wrong(
            "a thread's first channel only",
            {"for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x):": "c = cuda.threadIdx.x\n        if c < dout.shape[1]:"},
            "not written",
            "until the last",
        ),
        Wrong(
            "a thread for each place",
            {
                "for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x)": "for c in range(dout.shape[1])",
                "range(first, stop)": "range(first + cuda.threadIdx.x, stop, cuda.blockDim.x)",
            },
            "race",
        ),
        Wrong(
            "neighbouring channels to one thread",
            {
                "range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x)": "range(2 * cuda.threadIdx.x, "
                "min(dout.shape[1], 2 * cuda.threadIdx.x + 2))"
            },
            "transactions",
        ),
        Wrong(
            "one thread does all",
            {
                "for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x)": "for c in range(dout.shape[1] if "
                "cuda.threadIdx.x == 0 else 0)"
            },
            "transactions",
        ),
        Wrong("atomic additions", {"dwte[v, c] += total": "cuda.atomic.add(dwte, (v, c), total)"}, "host", "atomic"),
        Wrong("reads tokens that do not occur", {"if first < stop:": "if True:"}, "transactions"),
    ),
)
