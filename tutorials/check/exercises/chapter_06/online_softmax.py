"""06_online_softmax: a running maximum and a running sum, in each thread and then over the block."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def scores(random, N, C):
    """Rows that rise, fall or jump; some are far below 0; and, if there is room, minus infinity, in the first column too."""
    inp = 3 * random.standard_normal((N, C))
    inp[0] += np.linspace(-3000, -1000, C)  # rises: every element is a new largest one
    if N > 1:
        inp[-1] -= np.linspace(-2000, 1000, C)
    if C > 2 and N > 1:
        inp[N // 2, ::2] = -np.inf
    return inp


def log_sum_exp(inp):
    largest = inp.max(axis=1)
    return largest + np.log(np.exp(inp - largest[:, None]).sum(axis=1))


def bound(inp):
    """A term's exponent is rounded in proportion to its size; the sum by at most C + 32 additions, some multiplied again; the result once."""
    sizes = np.abs(np.where(np.isfinite(inp), inp, 0)).max(axis=1)
    return UNIT * (4 * sizes + 3 * inp.shape[1] + 64)


def pairs(inp):
    """Each thread's largest and total, (N, 32): thread i has the columns i, i + 32, ...; without any, LOWEST and 0."""
    N, C = inp.shape
    columns = np.full((N, -(-C // 32) * 32), -np.inf)
    columns[:, :C] = inp
    columns = columns.reshape(N, -1, 32)
    largest = np.maximum(columns.max(axis=1), -1e38)
    return largest, np.exp(columns - largest[:, None]).sum(axis=1)


def thread_0_takes_its_own_largest(inp):
    largest, total = pairs(inp)
    return {"lse": largest[:, 0] + np.log((total * np.exp(largest - largest.max(axis=1, keepdims=True))).sum(axis=1))}


def pairs_added_as_they_are(inp):
    largest, total = pairs(inp)
    return {"lse": largest.max(axis=1) + np.log(total.sum(axis=1))}


def nan_after_a_hidden_score(inp):
    """A running largest that starts at minus infinity: NaN if a thread's first element is minus infinity."""
    return {"lse": np.where(np.isneginf(inp[:, :32]).any(axis=1), np.nan, log_sum_exp(inp))}


SOLUTION_LINE = "total = total * math.exp(previous - largest) + math.exp(score - largest)"

EXERCISE = Exercise(
    function="log_sum_exp",
    arrays=lambda random, N, C: {"lse": written(N), "inp": read(scores(random, N, C))},
    reference=lambda inp: {"lse": log_sum_exp(inp)},
    error=lambda inp: {"lse": bound(inp)},
    sizes=({"N": 3, "C": 5}, {"N": 1, "C": 1}, {"N": 2, "C": 31}, {"N": 2, "C": 33}, {"N": 3, "C": 97}, {"N": 2, "C": 70}),
    least=Counts(global_reads=3, global_writes=1, shared_reads=8, shared_writes=2),
    taken=Counts(global_reads=3, global_writes=1, shared_reads=22, shared_writes=12),
    drawn=("inp",),
    hints={
        "": (
            "Per element: the new largest is max(largest, score). What must happen to `total`, which was added up with the old one?",
            "total = total * exp(old largest - new largest) + exp(score - new largest): the factor corrects all terms at once.",
            "The block: row_largest = block_max(largest); then each thread brings total * exp(largest - row_largest) to block_sum. "
            "Thread 0 writes row_largest + log of that sum.",
        ),
        "not written": ("After the loop: which thread writes lse[n]? Have all threads called block_max and block_sum before?",),
        "race": ("Many threads write lse[n]: one of them is enough, `if cuda.threadIdx.x == 0:`.",),
        "barrier": ("block_max and block_sum have barriers: every thread must call them, outside of any `if`.",),
        "error": (
            "exp of anything above 88.7 is too large for float32. Neither exponent may be above 0: score - new largest, and old largest - new "
            "largest, in this order.",
        ),
    },
    mistakes=(
        Mistake(lambda inp: {"lse": inp.max(axis=1)}, "That is the largest score. Its log of the sum is missing: + log(total)."),
        Mistake(lambda inp: {"lse": np.exp(inp - inp.max(axis=1)[:, None]).sum(axis=1)},
            "That is the sum after the largest has been subtracted: take its log, and add the largest back."),
        Mistake(lambda inp: {"lse": np.log(np.exp(inp - inp.max(axis=1)[:, None]).sum(axis=1))},
            "The largest was subtracted from every score: it must be added back to the log."),
        Mistake(pairs_added_as_they_are,
            "Each thread's total is relative to its own largest. Before block_sum, bring it to the row's: the same correction as for an element."),
        Mistake(thread_0_takes_its_own_largest, "The sum is relative to the row's largest, of all threads: that one must be added back to the log."),
        Mistake(nan_after_a_hidden_score,
            "NaN where a thread's first score is -inf: -inf - (-inf). The running largest must start with something finite: LOWEST."),
    ),
    wrong=(
        Wrong("the sum is not rescaled", {SOLUTION_LINE: "total = total + math.exp(score - largest)"}, "value", "What must happen to `total`"),
        Wrong("the factor upside down", {"math.exp(previous - largest)": "math.exp(min(largest - previous, np.float32(80)))"}, "value"),
        Wrong("the new term is not relative", {"math.exp(score - largest)": "math.exp(score - previous)"}, "error", "above 88.7"),
        Wrong("the pairs are added as they are", {" * math.exp(largest - row_largest)": ""}, "value", "its own largest"),
        Wrong("the thread's own largest", {"lse[n] = row_largest": "lse[n] = largest"}, "value", "of all threads"),
        Wrong("no log", {"row_largest + math.log(row_total)": "row_largest"}, "value", "log(total)"),
        Wrong("minus infinity less minus infinity", {"LOWEST = np.float32(0), np.float32(-1e38)": "LOWEST = np.float32(0), np.float32(-np.inf)"},
            "value", "start with something finite"),
        Wrong("thread 0 alone sums", {"    row_total = block_sum(total * math.exp(largest - row_largest))\n    if cuda.threadIdx.x == 0:\n":
            "    if cuda.threadIdx.x == 0:\n        row_total = block_sum(total * math.exp(largest - row_largest))\n"}, "barrier", "every thread"),
        Wrong("all threads write", {"    if cuda.threadIdx.x == 0:": "    if True:"}, "race", "one of them"),
        Wrong("a float64", {"total * math.exp": "1.0 * total * math.exp"}, "float64"),
    ),
)  # fmt: skip
