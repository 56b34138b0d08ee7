"""08_row_in_shared_memory: a row is read once, and all passes are made from a copy."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def arrays(random, N, V):
    logits = 3 * random.standard_normal((N, V))
    logits[0] *= 16  # exp would overflow
    targets = random.integers(V, size=N).astype(np.int32)
    targets[-1] = V - 1
    return {"losses": written(N), "dlogits": written(N, V), "logits": read(logits), "targets": read(targets, "i32")}


def loss_and_gradient(logits, targets, onehot=1):
    targets, rows, largest = targets.astype(np.int64), np.arange(len(logits)), logits.max(axis=1)
    exponentials = np.exp(logits - largest[:, None])
    sum_exp = exponentials.sum(axis=1)
    dlogits = exponentials / sum_exp[:, None]
    dlogits[rows, targets] -= onehot
    return {"losses": np.log(sum_exp) + largest - logits[rows, targets], "dlogits": dlogits}


def error(logits, targets):
    """Exponents are rounded in proportion to the logits, the sum by its additions, and p - 1 by p's own error."""
    right, size = loss_and_gradient(logits, targets), np.abs(logits).max(axis=1)
    relative = UNIT * (8 + 2 * size + logits.shape[1])
    at_target = np.arange(logits.shape[1]) == targets.astype(int)[:, None]
    return {"losses": relative + 4 * UNIT * (8 + 2 * size), "dlogits": (np.abs(right["dlogits"]) + at_target) * relative[:, None] + 1e-36}


def overflowing(logits, targets):
    """The losses if the largest logit is not subtracted; NaN if that does no harm."""
    overflows = logits.max(axis=1) > 88.7
    return {"losses": np.where(overflows, np.inf, loss_and_gradient(logits, targets)["losses"] if overflows.any() else np.nan)}


BARRIER = "    cuda.syncthreads()  # thread 0 has read the target's logit before its owner overwrites it\n"
MAX_BARRIER = "    largest = block_max(largest)  # its barriers: after them all of row_copy is written\n"
AT_TARGET = "    if i == 0:\n        at_target = row_copy[target] - largest\n"

EXERCISE = Exercise(
    function="loss_and_gradient",
    arrays=arrays,
    reference=loss_and_gradient,
    error=error,
    sizes=({"N": 3, "V": 5}, {"N": 1, "V": 1}, {"N": 2, "V": 33}, {"N": 1, "V": 256}, {"N": 3, "V": 101}),
    least=Counts(global_reads=5, global_writes=5, shared_reads=22, shared_writes=12),
    taken=Counts(global_reads=5, global_writes=5, shared_reads=31, shared_writes=20),  # the row: written twice, read twice, and the target's logit
    least_transactions=98,
    drawn=("logits", "row_copy"),
    hints={
        "": (
            "A first loop reads logits[row, v] into a variable, from there into row_copy[v], and finds the thread's largest logit.",
            "Then block_max, and after it, from `row_copy`: thread 0 takes the target's logit, all threads add up their exponentials, and block_sum.",
            "You may write the exponentials back to row_copy[v], which saves the second exp; but only after thread 0 has taken the target's logit: "
            "cuda.syncthreads() between the two.",
        ),
        "transactions": ("Count how often `logits` stands in your loops: once, in the first one. All later passes read `row_copy`.",),
        "race": (
            "Which two threads meet in the element of the message? A thread's own columns need no barrier; the target's logit, which thread 0 reads, "
            "belongs to another thread.",
            "If you overwrite row_copy[v]: thread 0 must have read the target's logit before. cuda.syncthreads() between the two.",
        ),
        "value": (
            "Which is wrong, losses or dlogits? Are there logits in `row_copy` where you expect them, or exponentials already?",
            "Is a loss wrong only where it is large? Take the log of the sum, not of a probability, of which float32 keeps few digits below 10⁻³⁸.",
        ),
        "error": ("Subtract the row's largest logit before exp, and take the log of the sum, not of a probability.",),
        "barrier": ("All 32 threads must come to every barrier, equally often: to those inside block_max and block_sum, too, behind the loops over columns, not in them.",),
        "compile": ("In a kernel it is math.exp and math.log, of one number at a time; NumPy's functions of arrays are for the CPU.",),
        "bounds": ("row_copy[v] for v below V; each thread its own columns: range(i, V, stride).",),
        "accesses": ("`row_copy` is shared: each thread fetches its own columns only, the others are there already.",),
    },
    mistakes=(
        Mistake(overflowing, "exp of anything above 88.7 is infinite in float32: subtract the row's largest logit before exp."),
        Mistake(lambda logits, targets: {"dlogits": loss_and_gradient(logits, targets, onehot=0)["dlogits"]}, "The target's gradient lacks the - 1."),
        Mistake(lambda logits, targets: {"losses": loss_and_gradient(logits, targets)["losses"] - logits.max(axis=1)},
            "The largest logit is missing in the loss: it was subtracted before exp."),
    ),
    wrong=(
        Wrong("reads three times", {"math.exp(row_copy[v] - largest)": "math.exp(logits[row, v] - largest)",
            "row_copy[v] / sum_exp": "math.exp(logits[row, v] - largest) / sum_exp"}, "transactions", "Count how often"),
        Wrong("reads twice", {"largest = max(largest, logit)": "largest = max(largest, logits[row, v])",
            "math.exp(row_copy[v] - largest)": "math.exp(logits[row, v] - largest)"}, "transactions", "Count how often"),
        Wrong("all threads fetch the whole row", {"    for v in range(i, V, stride):\n        logit = logits[row, v]\n        row_copy[v] = logit\n":
            "    for v in range(V):\n        logit = logits[row, v]\n        row_copy[v] = logit\n"}, "race"),
        Wrong("no barrier before the exponentials", {BARRIER: ""}, "race", "belongs to another thread"),
        Wrong("the target's logit at once", {MAX_BARRIER + "\n" + AT_TARGET: "    if i == 0:\n        at_target = row_copy[target]\n" + MAX_BARRIER
            + "    if i == 0:\n        at_target -= largest\n"}, "race", "belongs to another thread"),
        Wrong("the barrier under a condition", {AT_TARGET + BARRIER: AT_TARGET + "    " + BARRIER}, "barrier"),
        Wrong("the target's exponential in place of its logit", {BARRIER: "", AT_TARGET: "",
            "    if i == 0:\n        losses[row] = math.log(sum_exp) - at_target": "    if i == 0:\n        losses[row] = math.log(sum_exp) - row_copy[target]"},
            "value", "exponentials already"),
        Wrong("no - 1", {" - (ONE if v == target else ZERO)": ""}, "value", "lacks the - 1"),
        Wrong("the largest is missing in the loss", {"at_target = row_copy[target] - largest": "at_target = row_copy[target]"}, "value", "subtracted before exp"),
        Wrong("a scratch pad in global memory", {"row_copy[v] = exponential": "dlogits[row, v] = exponential", "row_copy[v] / sum_exp": "dlogits[row, v] / sum_exp"},
            "transactions"),
        Wrong("the largest is not subtracted", {MAX_BARRIER: "    largest = ZERO\n    cuda.syncthreads()\n"}, "value", "infinite in float32"),
        Wrong("all threads write the loss", {"    if i == 0:\n        losses": "    at_target = row_copy[target] if i else at_target\n    losses",
            "    if i == 0:\n        at": "    if True:\n        at"}, "race"),
    ),
)  # fmt: skip
