"""06_softmax_backward_numpy: from the gradient of the weights to that of the scores."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, B, NH, T):
    """Weights of random scores, causal; and random gradients, also where a weight is 0."""
    exponentials = np.exp(random.standard_normal((B, NH, T, T))) * np.tri(T)
    return {"att": exponentials / exponentials.sum(axis=3, keepdims=True), "datt": random.standard_normal((B, NH, T, T))}


def reference(att, datt):
    return {"return": att * datt - att * np.einsum("bhtr,bhtr->bht", att, datt)[..., None]}


LINE = "att * (datt - (att * datt).sum(axis=3, keepdims=True))"

EXERCISE = host_exercise(
    function="softmax_backward",
    arguments=arguments,
    reference=reference,
    sizes=({"B": 1, "NH": 1, "T": 1}, {"B": 1, "NH": 1, "T": 2}, {"B": 2, "NH": 3, "T": 5}, {"B": 1, "NH": 2, "T": 17}),
    hints={
        "": (
            "Raise score[t, s] by ε. Which weights of row t move, and by how much? Multiply each by its datt, add up, divide by ε.",
            "att[t, s] rises by ε att[t, s] through its own exponential, and every att[t, r] falls by ε att[t, s] att[t, r] through the sum.",
            "dscore[t, s] = att[t, s] (datt[t, s] - Σ_r att[t, r] datt[t, r]). The sum is one number for each row: axis=3, keepdims=True.",
        ),
        "input": ("Make a new array: `datt -= …` and `att *= …` change what you were given.",),
        "not written": ("Does the function end with `return`, and an array behind it?",),
    },
    mistakes=(
        Mistake(lambda att, datt: {"return": att * datt}, "That is the movement of the weight itself. What happens to all other weights of the row?"),
        Mistake(lambda att, datt: {"return": att * (1 - att) * datt},
            "That is what att[t, s] does when its own score rises. The other weights of the row move, too, and have a datt."),
        Mistake(lambda att, datt: {"return": att * (datt - (att * datt).sum(axis=2, keepdims=True))},
            "Your sum runs over queries. A softmax normalises a row: the sum runs over its keys, the last axis."),
        Mistake(lambda att, datt: {"return": datt - (att * datt).sum(axis=3, keepdims=True)},
            "One factor is missing: a weight that is small moves little, and one that is 0 does not move at all."),
        Mistake(lambda att, datt: {"return": att * (datt - datt.mean(axis=3, keepdims=True))},
            "Not the mean of datt: the weights decide how much each of the row counts."),
        Mistake(lambda att, datt: {"return": att * (datt - datt.sum(axis=3, keepdims=True))},
            "A sum without weights: in it each datt[t, r] counts att[t, r] times, as out is a weighted mean of values."),
        Mistake(lambda att, datt: {"return": att * datt - (att * datt).sum(axis=3, keepdims=True)},
            "The brackets: score[t, s] takes from every weight in proportion to att[t, s], so the sum is multiplied by att, too."),
        Mistake(lambda att, datt: {"return": att * (datt + (att * datt).sum(axis=3, keepdims=True))},
            "A sign: when one exponential grows, the sum grows, and every weight of the row falls."),
        Mistake(lambda att, datt: {"return": att * (datt - (att * datt).sum())},
            "Your sum runs over everything. Each row has a sum of its own: axis=3, keepdims=True."),
        Mistake(lambda att, datt: {"return": att * (datt - (att * datt).sum(axis=3))},
            "Without keepdims=True the sum of row t is subtracted from column t: NumPy lines up last axes with last axes."),
    ),
    wrong=(
        Wrong("no sum", {LINE: "att * datt"}, "value", "other weights"),
        Wrong("its own weight only", {LINE: "att * (1 - att) * datt"}, "value", "own score"),
        Wrong("over queries: the same shape", {"axis=3": "axis=2"}, "value", "over queries"),
        Wrong("a factor is missing", {LINE: LINE.replace("att * (datt -", "1 * (datt -")}, "value", "factor is missing"),
        Wrong("over everything", {"axis=3, keepdims=True": ""}, "value", "everything"),
        Wrong("a sum instead of a weighted sum", {"(att * datt).sum": "datt.sum"}, "value", "without weights"),
        Wrong("brackets", {LINE: "att * datt - (att * datt).sum(axis=3, keepdims=True)"}, "value", "brackets"),
        Wrong("a sign", {"datt - (": "datt + ("}, "value", "A sign"),
        Wrong("in place", {"    return ": "    datt -= (att * datt).sum(axis=3, keepdims=True)\n    return ", LINE: "att * datt"}, "input", "new array"),
        Wrong("no shape that fits", {", keepdims=True": ""}, "value", "keepdims"),
    ),
)  # fmt: skip
