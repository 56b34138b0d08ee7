"""08_padding: columns without a token that take part in the softmax, and have a gradient."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

V = 37


def arrays(random, N, Vp):
    """Logits well below 0, as a model may have them, and beside them padding, in which anything may be: here it is larger than all logits, and ends in NaN."""
    logits = 3 * random.standard_normal((N, Vp)) - 120
    logits[:, V:] = random.standard_normal((N, Vp - V))
    logits[-1, V:][-1:] = np.nan
    targets = random.integers(V, size=N).astype(np.int32)
    targets[0] = V - 1
    return {"losses": written(N), "dlogits": written(N, Vp), "logits": read(logits), "targets": read(targets, "i32")}


def loss_and_gradient(logits, targets, columns=V):
    """The results if the first `columns` columns take part."""
    targets, used = targets.astype(np.int64), logits[:, :columns]
    rows, largest = np.arange(len(logits)), used.max(axis=1)
    exponentials = np.exp(used - largest[:, None])
    sum_exp = exponentials.sum(axis=1)
    dlogits = np.zeros(logits.shape)
    dlogits[:, :columns] = exponentials / sum_exp[:, None]
    dlogits[rows, targets] -= 1
    return {"losses": np.log(sum_exp) + largest - logits[rows, targets], "dlogits": dlogits}


def error(logits, targets):
    """Exponents are rounded in proportion to the logits, the sum by its additions, and p - 1 by p's own error. Zeros are exact."""
    right, size = loss_and_gradient(logits, targets), np.abs(logits[:, :V]).max(axis=1)
    relative = UNIT * (8 + 2 * size + V)
    dlogits = (np.abs(right["dlogits"]) + (np.arange(logits.shape[1]) == targets.astype(int)[:, None])) * relative[:, None]
    dlogits[:, V:] = 0
    return {"losses": relative + 4 * UNIT * (4 + 2 * size), "dlogits": dlogits}


SOLVED, ZEROED = "    columns = V\n", "    for v in range(V + i, logits.shape[1], stride):\n        dlogits[row, v] = ZERO\n"
SECOND = "    # your lines:\n    # end of your lines\n    sum_exp = ZERO\n"

EXERCISE = Exercise(
    function="loss_and_gradient",
    arrays=arrays,
    reference=loss_and_gradient,
    error=error,
    sizes=({"N": 3, "Vp": 37}, {"N": 2, "Vp": 40}, {"N": 1, "Vp": 128}, {"N": 2, "Vp": 104}),
    least=Counts(global_reads=4, global_writes=5, shared_reads=22, shared_writes=12),
    taken=Counts(global_reads=10, global_writes=6, shared_reads=22, shared_writes=12),
    least_transactions=72,
    drawn=("dlogits",),
    hints={
        "": (
            "Which loops run over columns that are no tokens? How many columns should they run over?",
            "`columns = V` in the first place. Then: what is in dlogits beyond column V?",
            "In the last place, a loop over the padding: for v in range(V + i, logits.shape[1], stride): dlogits[row, v] = ZERO",
        ),
        "value": ("Write down the softmax of a row whose tokens all have -120 and whose padding has 0. Where does the probability go?",),
        "not written": (
            "The losses are right. But dlogits has Vp columns, and the padding was not written: whatever is there, the products that follow read it.",
        ),
        "error": ("math.log of 0: each exponential has become 0. From which columns is the largest logit, and is it a token's?",),
        "race": (
            "Which two lines write, or read, the same column? The loops over tokens must end at V, and the one over the padding begins there: "
            "v = V + i, then in steps of stride, so that each thread has columns of its own. `logits` is not written at all.",
        ),
        "bounds": ("dlogits has logits.shape[1] columns.",),
    },
    mistakes=(
        Mistake(lambda logits, targets: loss_and_gradient(logits, targets, logits.shape[1]),
            "The padding has taken part: its columns are no tokens. Which variable says how many columns the loops run over?"),
    ),
    wrong=(
        Wrong("as it was given", {SOLVED: "", ZEROED: ""}, "value", "taken part"),
        Wrong("only the gradient of the padding", {SOLVED: ""}, "race"),
        Wrong("only the sum", {ZEROED: ""}, "not written", "The losses are right"),
        Wrong("after the largest logit", {SOLVED: "", SECOND: "    # your lines:\n    columns = V\n    # end of your lines\n    sum_exp = ZERO\n"}, "error"),
        Wrong("the padding's own gradient of p", {"dlogits[row, v] = ZERO": "dlogits[row, v] = math.exp(logits[row, v] - largest) / sum_exp"}, "value"),
        Wrong("the padding times 0", {"dlogits[row, v] = ZERO": "dlogits[row, v] = logits[row, v] * ZERO"}, "value"),
        Wrong("one column too few", {"range(V + i, logits.shape[1], stride)": "range(V + i, logits.shape[1] - 1, stride)"}, "not written"),
        Wrong("the last token as well", {"range(V + i,": "range(V - 1 + i,"}, "race"),
        Wrong("32 columns of padding", {"range(V + i, logits.shape[1], stride)": "range(V + i, min(logits.shape[1], V + 32), stride)"}, "not written"),
        Wrong("the padding without a barrier by other threads", {"range(V + i, logits.shape[1], stride)": "range(i, logits.shape[1], stride)"}, "value"),
    ),
)  # fmt: skip
