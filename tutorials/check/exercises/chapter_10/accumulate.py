"""10_accumulate: the gradient of a batch from micro-batches, of which the last one may be shorter."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

ROWS = 4


def arguments(random, rows, C):
    x = random.standard_normal((rows, C))
    return {"grads": np.full(C, np.nan), "weights": random.standard_normal(C), "x": x, "y": 3 + random.standard_normal(rows)}


def pieces(weights, x, y):
    """(gradient of the mean loss, mean loss, share of all rows) of each micro-batch."""
    for start in range(0, len(y), ROWS):
        rows = slice(start, start + ROWS)
        error = x[rows] @ weights - y[rows]
        yield (x[rows] * error[:, None]).mean(axis=0), (error * error).mean() / 2, len(error) / len(y)


def made(scale=lambda share, count: share, loss_scale=None, last_loss=False, pieces_kept=slice(None)):
    """The result with another scale. Both scales take the share of a micro-batch in all rows, and the number of micro-batches."""

    def result(grads, weights, x, y):
        found = list(pieces(weights, x, y))
        count, found = len(found), found[pieces_kept]
        losses = [(loss_scale or scale)(share, count) * loss for _, loss, share in found]
        total = sum(scale(share, count) * gradient for gradient, _, share in found)
        return {"grads": total, "return": found[-1][1] if last_loss else sum(losses)}

    return result


def one_over_n(share, count):
    return 1 / count


def one(share, count):
    return 1.0


ZERO_LINE = "    grads[:] = 0\n"
LOSS_LINE = "        loss += share * add_gradient(grads, weights, x[rows], y[rows], share)\n"

EXERCISE = host_exercise(
    function="accumulate",
    arguments=arguments,
    reference=made(),
    sizes=({"rows": 8, "C": 3}, {"rows": 4, "C": 2}, {"rows": 6, "C": 3}, {"rows": 1, "C": 2}, {"rows": 21, "C": 5}),
    hints={
        "": (
            "A sum is a sum, however it is cut. Which factor makes the mean of a piece a part of the mean of all rows?",
            "The mean of all rows is the sum over the pieces of (rows of the piece / all rows) times the piece's mean: for losses and for gradients.",
            "share = len(y[rows]) / len(y) is both: the scale of the gradient, and the weight of the loss.",
        ),
        "not written": (
            "add_gradient adds. What does it add to, in the first micro-batch?",
            "NaN plus anything is NaN: set grads to zero first, in place, grads[:] = 0; and return the loss.",
        ),
        "error": ("A name that is not defined must be imported. A slice that goes beyond the end is cut off there: y[start : start + ROWS] may have fewer rows.",),
        "input": ("Only grads may change; an expression such as weights -= ... changes the caller's array.",),
    },
    mistakes=(
        Mistake(made(one_over_n), "Right where all micro-batches have the same size. The last one is shorter: does each of its rows count as much as the others?"),
        Mistake(made(one), "The gradients and losses of all micro-batches are added up, but they are means: the sum is too large by a factor."),
        Mistake(made(loss_scale=one), "The gradients are right. The loss is the sum of the micro-batches' means: it needs the same weights."),
        Mistake(made(scale=one, loss_scale=lambda share, count: share), "The loss is right. The gradients are sums of means: scale them, too."),
        Mistake(made(loss_scale=one_over_n), "The gradients are right. The loss is not: the last micro-batch has fewer rows, and counts less."),
        Mistake(made(scale=one_over_n, loss_scale=lambda share, count: share), "The loss is right. For the gradients, too, the last micro-batch counts less."),
        Mistake(made(last_loss=True), "That is the loss of the last micro-batch; wanted is the mean over all rows."),
        Mistake(made(pieces_kept=slice(-1, None)), "Only the last micro-batch is in it: what happens to grads at the beginning of each?"),
    ),
    wrong=(
        Wrong("not scaled", {"share = len(y[rows]) / len(y)": "share = 1"}, "value", "too large by a factor"),
        Wrong("1 / n", {"share = len(y[rows]) / len(y)": "share = 1 / -(-len(y) // ROWS)"}, "value", "does each of its rows"),
        Wrong("1 / n, rounded down", {"share = len(y[rows]) / len(y)": "share = 1 / max(1, len(y) // ROWS)"}, "value"),
        Wrong("ROWS / rows", {"share = len(y[rows]) / len(y)": "share = min(1, ROWS / len(y))"}, "value"),
        Wrong("the loss is not weighted", {"loss += share * add": "loss += add"}, "value", "gradients are right"),
        Wrong("the gradients are not scaled", {"y[rows], share)": "y[rows], 1)"}, "value", "The loss is right"),
        Wrong("the last loss", {"return loss": "return loss / share", "loss += share": "loss = share"}, "value", "the last micro-batch"),
        Wrong("never zeroed", {ZERO_LINE: ""}, "not written", "in the first micro-batch"),
        Wrong("zeroed each time", {ZERO_LINE: "", LOSS_LINE: "        grads[:] = 0\n" + LOSS_LINE}, "value"),
        Wrong("a new array", {ZERO_LINE: "    grads = 0 * weights\n"}, "not written"),
        Wrong("the rest is dropped", {"range(0, len(y), ROWS)": "range(0, len(y) - ROWS + 1, ROWS)"}, "value"),
        Wrong("all at once", {"start + ROWS)": "start + len(y))"}, "error"),
        Wrong("no loss", {"    return loss\n": ""}, "not written"),
    ),
)  # fmt: skip
