"""12_mean_of_losses: divide by the rows of all processes, clip by the norm of the sum."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

C = 3


def arguments(random, rows, max_norm):
    """rows: how many each process has, as text such as "1 and 3"."""
    parts = [(random.standard_normal((count, C)), random.standard_normal(count)) for count in map(int, rows.split(" and "))]
    return {"weights": random.standard_normal(C), "parts": parts, "max_norm": max_norm, "learning_rate": 0.5}


def stepped(
    weights, parts, max_norm, learning_rate, mean_of_means=False, local_norm=False, undivided=False, norms_added=False, of_norms=None
):
    """The step, or one with usual mistakes."""
    rows = sum(len(y) for _, y in parts)
    counts = [len(y) * (1 if undivided else len(parts)) if mean_of_means or undivided else rows for _, y in parts]
    gradients = [(x @ weights - y) @ x / count for (x, y), count in zip(parts, counts)]
    total = sum(gradients)
    norms = [np.linalg.norm(gradient) if local_norm else np.linalg.norm(total) for gradient in gradients]
    if norms_added:
        norms = [np.sqrt(sum(gradient @ gradient for gradient in gradients))] * len(parts)
    if of_norms:
        norms = [of_norms([np.linalg.norm(gradient) for gradient in gradients])] * len(parts)
    return {"return": np.array([weights - learning_rate * min(1, max_norm / norm) * total for norm in norms])}


def mistaken(**mistakes):
    return lambda **given: stepped(**given, **mistakes)


MEANS = (
    "With 1 row and 3, the single row counts one half here, and each of the others a sixth. In the mean over all rows, how much must each row "
    "count, whoever has it?"
)
LOCAL = (
    "The rows of the result differ from each other, or the gradient is clipped although its norm is small enough (or the reverse). Whose norm "
    "decides? It must be the same number in all processes."
)
NORMS = (
    "One number for all processes, but made of their norms: the gradients of two processes may point in opposite directions, and then "
    "their sum is small. Add up first, then take the norm."
)
FACTOR = "factor = 1 / all_reduce([len(other_y) for _, other_y in parts])"
NORM = "norm = np.sqrt((total**2).sum())"

EXERCISE = host_exercise(
    function="step",
    arguments=arguments,
    reference=stepped,
    sizes=(
        {"rows": "3 and 3", "max_norm": 100.0},
        {"rows": "1 and 3", "max_norm": 100.0},
        {"rows": "3 and 3", "max_norm": 0.1},
        {"rows": "4", "max_norm": 0.2},
        {"rows": "2 and 5 and 1", "max_norm": 0.3},
        {"rows": "7 and 1 and 3 and 1", "max_norm": 1.0},
    ),
    hints={
        "": (
            "Which of the two lines is it? With max_norm = 100 nothing is clipped, so there it is the factor. With equally many rows the factor "
            "was right as it was, so there it is the norm.",
            "With N rows in all, each row's gradient counts 1 / N. all_reduce adds numbers as well as arrays: each process knows its own len(y).",
            "The second line: the norm of the gradient that will be used, which is total.",
        ),
    },
    mistakes=(
        Mistake(mistaken(mean_of_means=True), MEANS),
        Mistake(mistaken(local_norm=True), LOCAL),
        Mistake(mistaken(mean_of_means=True, local_norm=True), MEANS),
        Mistake(mistaken(undivided=True), "That adds up the means of the processes: with n of them, n times too much."),
        Mistake(mistaken(undivided=True, local_norm=True), "That adds up the means of the processes: with n of them, n times too much."),
        Mistake(
            mistaken(norms_added=True),
            "The squares of the processes' gradients, added up: but those gradients are terms of one sum, and may cancel. The norm is that of "
            "the sum.",
        ),
        Mistake(mistaken(of_norms=sum), NORMS),
        Mistake(mistaken(of_norms=np.mean), NORMS),
        Mistake(mistaken(of_norms=max), NORMS),
    ),
    wrong=(
        Wrong("as it was given", {FACTOR: "", NORM: ""}, "value", "whoever has it"),
        Wrong("a mean of means", {FACTOR: ""}, "value", "whoever has it"),
        Wrong("its own norm", {NORM: ""}, "value", "Whose norm"),
        Wrong("the means added up", {FACTOR: "factor = 1 / len(y)"}, "value", "n times too much"),
        Wrong("not divided", {FACTOR: "factor = 1"}, "value"),
        Wrong("divided by the largest part", {FACTOR: "factor = 1 / max(len(b) for _, b in parts) / len(parts)"}, "value"),
        Wrong("squares of the terms", {NORM: "norm = np.sqrt(sum((g**2).sum() for g in gradients))"}, "value", "may cancel"),
        Wrong("the mean of the norms", {NORM: "norm = np.mean([np.linalg.norm(g) for g in gradients])"}, "value", "Add up first"),
        Wrong("the norm of process 0", {NORM: "norm = np.linalg.norm(gradients[0])"}, "value"),
        Wrong("never clipped", {NORM: "norm = max_norm"}, "value"),
        Wrong("always scaled", {"min(1, max_norm / norm)": "max_norm / norm"}, "value"),
    ),
)
