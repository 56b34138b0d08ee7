"""08_classifier_forward_backward: loss and gradient, which overwrites the logits."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.exercises.chapter_08.low_logits import LowLogitsExercise

FEW = Sizes(B=1, T=3, C=1, NH=1, V=11, Vp=13, OC=1)
OVERFLOWING = Sizes(B=1, T=3, C=1, NH=1, V=77, Vp=83, OC=1)  # a logit of 115, and a target whose probability float32 cannot hold
WIDE = Sizes(B=1, T=3, C=1, NH=1, V=101, Vp=139, OC=1)
LOOP, LOOP_ALL = "range(i, V, stride)", "range(i, Vp, stride)"
SUM = "sum_exp += math.exp(logits[row, v] - largest)"
LOSS = "losses[row] = math.log(sum_exp) + largest - logits[row, target]"
GRADIENT = "logits[row, v] = (p - (ONE if v == target else ZERO)) * dloss"
WRITE_LOSS = f"    if i == 0:\n        {LOSS}\n    cuda.syncthreads()\n"


def results(logits, targets, s, onehot=1, columns=None, padded=False):
    """The losses, and the gradients with dloss = 1, if the softmax runs over the first `columns` logits: for usual mistakes.

    padded: the padding keeps its gradients
    """
    used, rows = logits[:, : columns or s.V], np.arange(len(logits))
    largest = used.max(axis=1)
    exponentials = np.exp(used - largest[:, None])
    sum_exp = exponentials.sum(axis=1)
    gradients = np.zeros(logits.shape)
    gradients[:, : used.shape[1]] = exponentials / sum_exp[:, None]
    gradients[rows, targets] -= onehot
    if not padded:
        gradients[:, s.V :] = 0
    return {"losses": np.log(sum_exp) + largest - logits[rows, targets], "logits": gradients}


EXERCISE = LowLogitsExercise(
    function="classifier_forward_backward",
    layers=("classifier",),
    sizes=(FEW, ONES, OVERFLOWING, WIDE),
    least=Counts(global_reads=5, global_writes=6, shared_reads=22, shared_writes=12),
    taken=Counts(global_reads=14, global_writes=6, shared_reads=22, shared_writes=12),  # the row three times; once would do
    least_transactions=212,  # of these three passes, and of the gradients
    most=Counts(global_reads=22, global_writes=8, shared_reads=99, shared_writes=99),
    drawn=("logits",),
    hints={
        "": (
            "First all of 08_classifier_forward. Then a loop over range(i, Vp, stride), in which each thread overwrites its own columns.",
            "p = math.exp(logits[row, v] - largest) / sum_exp, for v < V. The target has p - ONE, all of it times dloss. And in the padding?",
            "Before the loop a barrier, cuda.syncthreads(): thread 0 must have read the target's logit before its owner overwrites it.",
        ),
        "race": (
            "Thread 0 reads the target's logit for the loss; another thread overwrites it with its gradient. What makes the second wait for the "
            "first? (If the message is about losses: one thread may write it. If two threads write one column of the padding: each thread has its own, "
            "i, i + 32, ..., as everywhere else.)",
            "cuda.syncthreads() between the loss and the loop of the gradients, for all threads, not under `if i == 0`.",
        ),
        "value": (
            "Which is wrong, losses or logits? If it is the loss: are the logits still there when it reads them?",
            "The gradient of the target is (p - 1) dloss, that of another token p dloss, that of the padding 0.",
        ),
        "not written": (
            "Columns V to Vp - 1 still hold what was there. The products that follow read all Vp columns: the padding must become 0.",
            "The loop of the gradients runs over range(i, Vp, stride), with a condition for v < V.",
        ),
        "error": ("math.log of 0? The search for the largest begins with MINUS_INFINITY. Subtract the row's largest logit before exp, and take the log of the sum, not of a probability.",),
        "barrier": ("All 32 threads must come to every barrier, equally often: to those inside block_max and block_sum, too, behind the loops over columns, not in them.",),
        "compile": ("In a kernel it is math.exp and math.log, of one number at a time; NumPy's functions of arrays are for the CPU.",),
        "accesses": ("The row must be shared out among the 32 threads: each starts at its own i.",),
        "transactions": ("Neighbouring threads must touch neighbouring logits: thread i takes columns i, i + 32, i + 64, ...",),
        "shared": ("The threads of a block must share the work: block_max and block_sum exchange their results.",),
        "float64": ("A bare 1.0 or 0.0 is a float64: ONE and ZERO are float32.",),
    },
    mistakes=(
        Mistake(lambda logits, targets, s, **_: results(logits, targets, s, onehot=0), "The target's gradient lacks the - 1 (times dloss)."),
        Mistake(lambda logits, targets, s, **_: results(logits, targets, s),
            "dloss is missing: the gradient is that of the training loss, of which each row's loss is a small part."),
        *(Mistake(lambda logits, targets, s, padded=padded, **_: results(logits, targets, s, columns=s.Vp, padded=padded),
            "The padding has taken part in the softmax: columns V to Vp - 1 are no tokens.") for padded in (False, True)),
        Mistake(lambda logits, targets, s, **_: {"logits": -results(logits, targets, s)["logits"]}, "The sign: p minus the one, not the other way round."),
    ),
    wrong=(
        Wrong("no barrier", {"    cuda.syncthreads()\n": ""}, "race", "overwrites it with its gradient"),
        Wrong("the barrier under a condition", {f"        {LOSS}\n    cuda.syncthreads()": f"        {LOSS}\n        cuda.syncthreads()"}, "barrier"),
        Wrong("the loss after the gradients", {WRITE_LOSS: "", "            logits[row, v] = ZERO\n": "            logits[row, v] = ZERO\n"
            "    cuda.syncthreads()\n" + WRITE_LOSS.replace("    cuda.syncthreads()\n", "")}, "value", "are the logits still there"),
        Wrong("no - 1", {GRADIENT: "logits[row, v] = p * dloss"}, "value", "lacks the - 1"),
        Wrong("the largest begins with 0", {"largest = MINUS_INFINITY": "largest = ZERO"}, "error", "MINUS_INFINITY"),
        Wrong("the padding times 0", {"logits[row, v] = ZERO": "logits[row, v] = logits[row, v] * ZERO"}, "value"),
        Wrong("no dloss", {" * dloss": ""}, "value", "dloss is missing"),
        Wrong("dloss for p only", {"(p - (ONE if v == target else ZERO)) * dloss": "p * dloss - (ONE if v == target else ZERO)"}, "value"),
        Wrong("added instead of overwritten", {"logits[row, v] = (p": "logits[row, v] += (p"}, "value"),
        Wrong("the sign", {"(p - (ONE if v == target else ZERO))": "((ONE if v == target else ZERO) - p)"}, "value", "The sign"),
        Wrong("the padding is left as it was", {LOOP_ALL: LOOP}, "not written", "products that follow"),
        Wrong("the padding counts", {LOOP: LOOP_ALL}, "value", "taken part"),
        Wrong("the padding gets a gradient", {"if v < V:": "if True:"}, "value"),
        Wrong("one column of the padding is forgotten", {LOOP_ALL: "range(i, Vp - 1, stride)"}, "not written", "products that follow"),
        Wrong("the largest is not subtracted", {"largest = block_max(largest)": "largest = ZERO"}, "error", "largest logit before exp"),
        Wrong("the neighbour of the target", {"v == target": "v == target + 1"}, "value"),
        Wrong("the target of row 0", {"logits[row, target]": "logits[row, targets[0]]"}, "value"),
        Wrong("all threads write the loss", {"    if i == 0:": "    if True:"}, "race"),
        Wrong("all threads write the padding", {GRADIENT: GRADIENT + "\n    for v in range(V, Vp):\n        logits[row, v] = ZERO", LOOP_ALL: LOOP,
            "\n        else:\n            logits[row, v] = ZERO": ""}, "race", "column of the padding"),
        Wrong("every thread adds up the whole row", {LOOP: "range(V)", "    largest = block_max(largest)\n": "", "    sum_exp = block_sum(sum_exp)\n":
            "    block_sum(sum_exp)\n"}, "accesses", "shared out"),
        Wrong("a chunk for each thread", {LOOP_ALL: "range(i * ((Vp + 31) // 32), min(Vp, (i + 1) * ((Vp + 31) // 32)))",
            LOOP: "range(i * ((V + 31) // 32), min(V, (i + 1) * ((V + 31) // 32)))"}, "transactions", "neighbouring logits"),
        Wrong("a float64", {"ONE if v == target else ZERO": "1.0 if v == target else 0.0"}, "float64"),
    ),
)  # fmt: skip
