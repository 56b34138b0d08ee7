"""08_classifier_forward: the loss of a row, from its largest logit and the sum of its exponentials."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.exercises.chapter_08.low_logits import LowLogitsExercise

FEW = Sizes(B=1, T=3, C=1, NH=1, V=11, Vp=13, OC=1)
WIDE = Sizes(B=1, T=3, C=1, NH=1, V=98, Vp=104, OC=1)  # a logit of 115, and a target whose probability float32 cannot hold
LOOP = "range(i, V, stride)"
CHUNK = "range(i * ((V + 31) // 32), min(V, (i + 1) * ((V + 31) // 32)))"
SUM = "sum_exp += math.exp(logits[row, v] - largest)"
LOSS = "math.log(sum_exp) + largest - logits[row, targets[row]]"


def losses_of(logits, targets, columns, add=lambda largest, at_target: largest - at_target):
    """The losses if the sum runs over the first `columns` logits; add: what is added to the log."""
    used = logits[:, :columns]
    largest = used.max(axis=1)
    at_target = logits[np.arange(len(logits)), targets]
    return {"losses": np.log(np.exp(used - largest[:, None]).sum(axis=1)) + add(largest, at_target)}


EXERCISE = LowLogitsExercise(
    function="classifier_forward",
    layers=("classifier",),
    sizes=(FEW, ONES, WIDE),
    least=Counts(global_reads=6, global_writes=1, shared_reads=22, shared_writes=12),
    taken=Counts(global_reads=10, global_writes=1, shared_reads=22, shared_writes=12),  # the row twice: once for its largest logit
    least_transactions=87,  # of these two passes
    most=Counts(global_reads=16, global_writes=4, shared_reads=99, shared_writes=99),
    drawn=("logits",),
    hints={
        "": (
            "Two loops over range(i, V, stride). The first finds this thread's largest logit, then block_max finds the row's.",
            "The second adds up math.exp(logits[row, v] - largest), then block_sum gives every thread the row's sum.",
            "losses[row] = math.log(sum_exp) + largest - logits[row, targets[row]], written by one thread.",
        ),
        "value": (
            "Compute the first wrong row with NumPy. Which is wrong: the largest logit, the sum, or the target's logit?",
            "Each thread's largest must go through block_max before it is subtracted, and its share of the sum, which begins with ZERO, through block_sum.",
        ),
        "error": (
            "math.log of 0? Does the search for the largest begin with MINUS_INFINITY? Is the sum that of all threads, and begins with ZERO in each? Subtract the row's largest logit before exp; and take the log of the sum, which is at least 1 then, not of a probability, which can be 0.",
        ),
        "not written": (
            "Which thread writes losses[row]? Column `target` belongs to thread target % 32, but after block_sum every thread knows the loss: let thread 0 write it.",
        ),
        "race": ("All threads know the loss: one of them may write it, `if i == 0:`.",),
        "barrier": (
            "There are barriers inside block_max and block_sum: all 32 threads must call them, also those without a column, and equally often: behind the loops over columns, not in them.",
        ),
        "compile": ("In a kernel it is math.exp and math.log, of one number at a time; NumPy's functions of arrays are for the CPU.",),
        "transactions": ("Neighbouring threads must read neighbouring logits: thread i takes columns i, i + 32, i + 64, ...",),
        "accesses": ("The row must be shared out among the 32 threads: each starts at its own i.",),
        "shared": ("The threads of a block must share the work: block_max and block_sum exchange their results.",),
        "float64": ("A bare 0.0 is a float64: ZERO is a float32.",),
    },
    mistakes=(
        Mistake(lambda logits, targets, s, **_: losses_of(logits, targets, s.Vp), "The padding has been counted: columns V to Vp - 1 are no tokens."),
        Mistake(lambda logits, targets, s, **_: losses_of(logits, targets, s.V, lambda largest, at_target: -at_target),
            "The largest logit was subtracted from all logits, so it must be added to the log again."),
        Mistake(lambda logits, targets, s, **_: losses_of(logits, targets, s.V, lambda largest, at_target: largest),
            "The logit of the target is missing: log Σ exp - logits[row, targets[row]]."),
        Mistake(lambda logits, targets, s, **_: losses_of(logits, targets, s.V, lambda largest, at_target: 0),
            "The logit of the target is missing, and the largest logit, which you have subtracted, must be added again."),
        Mistake(lambda logits, targets, s, **_: {"losses": -losses_of(logits, targets, s.V)["losses"]}, "The sign: a loss is positive."),
    ),
    wrong=(
        Wrong("the padding counts", {LOOP: "range(i, logits.shape[1], stride)"}, "value", "padding has been counted"),
        Wrong("the padding counts in the sum", {f"for v in {LOOP}:\n        {SUM}": f"for v in range(i, logits.shape[1], stride):\n        {SUM}"},
            "value", "padding has been counted"),
        Wrong("the largest begins with 0", {"largest = MINUS_INFINITY": "largest = ZERO"}, "error", "MINUS_INFINITY"),
        Wrong("the last token is left out", {LOOP: "range(i, V - 1, stride)"}, "value"),
        Wrong("the largest is not subtracted", {"largest = block_max(largest)": "largest = ZERO"}, "error", "largest logit before exp"),
        Wrong("the thread's own largest", {"    largest = block_max(largest)\n": ""}, "value"),
        Wrong("the largest is not added again", {"math.log(sum_exp) + largest - ": "math.log(sum_exp) - "}, "value", "added to the log again"),
        Wrong("no target", {LOSS: "math.log(sum_exp) + largest"}, "value", "logit of the target"),
        Wrong("the sign", {LOSS: f"-({LOSS})"}, "value", "The sign"),
        Wrong("the log of a probability", {LOSS: "-math.log(np.float32(math.exp(logits[row, targets[row]] - largest) / sum_exp))"}, "error", "can be 0"),
        Wrong("the target of row 0", {"targets[row]": "targets[0]"}, "value"),
        Wrong("each thread's own sum", {"    sum_exp = block_sum(sum_exp)\n": ""}, "error", "all threads"),
        Wrong("every thread begins with 1", {"    sum_exp = ZERO\n": "    sum_exp = np.float32(1)\n"}, "value"),
        Wrong("the thread with the target's number writes", {"    if i == 0:": "    if i == targets[row]:"}, "not written", "let thread 0 write"),
        Wrong("all threads write", {"    if i == 0:": "    if True:"}, "race", "one of them"),
        Wrong("threads without a column leave", {"    largest = MINUS_INFINITY": "    if i >= V:\n        return\n    largest = MINUS_INFINITY"}, "barrier"),
        Wrong("block_max in the loop", {"    largest = block_max(largest)\n": "        largest = block_max(largest)\n"}, "barrier", "not in them"),
        Wrong("every thread does the whole row", {LOOP: "range(V)", "    largest = block_max(largest)\n": "", "    sum_exp = block_sum(sum_exp)\n":
            "    block_sum(sum_exp)\n"}, "accesses", "shared out"),
        Wrong("a chunk for each thread", {LOOP: CHUNK}, "transactions", "neighbouring logits"),
        Wrong("a float64", {SUM: "sum_exp += 1.0 * math.exp(logits[row, v] - largest)"}, "float64"),
    ),
)  # fmt: skip
