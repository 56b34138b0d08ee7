"""12_zero_step: reduce-scatter, the norm of all parts, an update of a part, all-gather."""

from itertools import pairwise

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, bounds, max_norm, t):
    bounds = [int(bound) for bound in bounds.split()]
    ranks, params = len(bounds) - 1, random.standard_normal(bounds[-1])
    lengths = [stop - start for start, stop in pairwise(bounds)]
    return {
        "params": [params.copy() for _ in range(ranks)],
        "grads": [random.standard_normal(bounds[-1]) for _ in range(ranks)],
        "m": [random.standard_normal(length) if t > 1 else np.zeros(length) for length in lengths],
        "v": [random.standard_normal(length) ** 2 if t > 1 else np.zeros(length) for length in lengths],
        "bounds": bounds,
        "learning_rate": 0.1,
        "max_norm": max_norm,
        "t": t,
    }


def updated(params, grads, m, v, learning_rate, t):
    m = m + 0.1 * (grads - m)
    v = v + 0.05 * (grads * grads - v)
    return params - learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8), m, v


def stepped(params, grads, m, v, bounds, learning_rate, max_norm, t, mistake=""):
    """The step, or one with a usual mistake."""
    total = sum(grads) / (len(grads) if mistake == "divided" else 1)
    new, new_m, new_v = [], [], []
    for rank, (start, stop) in enumerate(pairwise(bounds)):
        part, norm = total[start:stop], np.linalg.norm(total)
        if mistake == "own gradients":
            part, norm = grads[rank][start:stop], np.linalg.norm(np.concatenate([g[a:b] for g, (a, b) in zip(grads, pairwise(bounds))]))
        elif mistake == "own norm":
            norm = np.linalg.norm(part)
        elif mistake == "norms added":
            norm = sum(np.linalg.norm(total[a:b]) for a, b in pairwise(bounds))
        elif mistake == "squares before the sum":
            norm = np.linalg.norm(grads)
        scale = max_norm / max(norm, 1e-300)
        scale = {"never scaled": 1, "always scaled": scale}.get(mistake, min(1, scale))
        results = updated(params[rank][start:stop], scale * part, m[rank], v[rank], learning_rate, t)
        for found, result in zip((new, new_m, new_v), results):
            found.append(result)
    everywhere = [np.concatenate(new)] * len(params)
    if mistake == "not gathered":
        everywhere = [np.concatenate([values[: bounds[r]], new[r], values[bounds[r + 1] :]]) for r, values in enumerate(params)]
    return {"params": everywhere, "m": new_m, "v": new_v}


def mistaken(mistake):
    return lambda **given: stepped(**given, mistake=mistake)


SUMS = "sums = reduce_scatter(grads, bounds)"
NORM = "norm = np.sqrt(all_reduce([(part * part).sum() for part in sums]))"
GATHER = "for rank, everything in enumerate(all_gather(updated)):\n        params[rank][:] = everything"
OWN = "own = params[rank][bounds[rank] : bounds[rank + 1]].copy()"
UPDATE = "adamw_update(own, scale * part, m[rank], v[rank], learning_rate, t)"

EXERCISE = host_exercise(
    function="zero_step",
    arguments=arguments,
    reference=stepped,
    sizes=(
        {"bounds": "0 3 6", "max_norm": 100.0, "t": 1},
        {"bounds": "0 3 6", "max_norm": 100.0, "t": 5},
        {"bounds": "0 4 6", "max_norm": 0.5, "t": 3},
        {"bounds": "0 7", "max_norm": 1.0, "t": 2},
        {"bounds": "0 2 5 9", "max_norm": 1.0, "t": 4},
        {"bounds": "0 1 1 8 9", "max_norm": 3.0, "t": 7},
    ),
    hints={
        "": (
            "Four steps, four or five lines: reduce_scatter(grads, bounds) is the first one. What it returns is a list by rank, and so is what "
            "all_gather wants: the updated parts.",
            "params[rank][bounds[rank] : bounds[rank + 1]] is the part of a process; it has the length of m[rank]. As a slice it is a view: what "
            "adamw_update changes in it is changed in params[rank].",
            "The norm: np.sqrt(all_reduce([(part * part).sum() for part in sums])), one number for all processes.",
        ),
        "error": ("Shapes: the sums, m and v have the length of a part; params[rank] and grads[rank] have all P.",),
        "input": ("The gradients are only to be read: scale * part is a new array, part *= scale is not.",),
    },
    mistakes=(
        Mistake(mistaken("not gathered"), "Each process has its own part right, and old numbers elsewhere: the all-gather is missing, or its result is."),
        Mistake(mistaken("own norm"), "A process has scaled by the norm of its own part. The norm is that of all parts: an all_reduce of squares."),
        Mistake(
            mistaken("own gradients"),
            "Each process has used its own gradients, those of its own rows. It needs the sum over all processes: reduce_scatter.",
        ),
        Mistake(mistaken("divided"), "The gradients are divided already: they are added up, and that is all."),
        Mistake(mistaken("never scaled"), "The norm is larger than max_norm here, and the update has used the gradients unscaled: see point 2 of the task."),
        Mistake(mistaken("always scaled"), "The norm is smaller than max_norm here: then the factor is 1, so it is min(1, max_norm / norm)."),
        Mistake(
            mistaken("norms added"),
            "The norms of the parts have been added up. Norms do not add up, their squares do: an all_reduce of the sums of squares, then the root.",
        ),
        Mistake(
            mistaken("squares before the sum"),
            "Those are the squares of the gradients before they were summed over the processes. The norm is that of the sums, whose parts "
            "reduce_scatter has returned.",
        ),
    ),
    wrong=(
        Wrong("nothing is gathered", {GATHER: "for rank in range(len(params)): params[rank][bounds[rank] : bounds[rank + 1]] = updated[rank]"},
            "value", "all-gather is missing"),
        Wrong("its own norm", {NORM: "norms = [np.sqrt((part * part).sum()) for part in sums]", "scale = min(1, max_norm / norm)": "",
            UPDATE: UPDATE.replace("scale", "min(1, max_norm / max(norms[rank], 1e-30))")}, "value", "norm of its own part"),
        Wrong("its own gradients", {SUMS: "sums = [g[a:b] for g, a, b in zip(grads, bounds, bounds[1:])]"}, "value", "its own rows"),
        Wrong("a mean", {SUMS: "sums = [part / len(grads) for part in reduce_scatter(grads, bounds)]"}, "value", "divided already"),
        Wrong("the norms are added", {NORM: "norm = all_reduce([np.sqrt((part * part).sum()) for part in sums])"}, "value", "their squares do"),
        Wrong("squares of what was not summed", {NORM: NORM.replace("in sums", "in grads")}, "value", "before they were summed"),
        Wrong("the root is missing", {NORM: NORM.replace("np.sqrt(", "(")}, "value"),
        Wrong("never clipped", {"min(1, max_norm / norm)": "1"}, "value", "unscaled"),
        Wrong("always scaled", {"min(1, max_norm / norm)": "max_norm / norm"}, "value", "then the factor is 1"),
        Wrong("the scaled gradients twice", {"scale * part": "scale * scale * part"}, "value"),
        Wrong("m and v are thrown away", {"m[rank], v[rank], learning_rate": "m[rank].copy(), v[rank].copy(), learning_rate"}, "value"),
        Wrong("t is forgotten", {"learning_rate, t)\n        updated": "learning_rate, 1)\n        updated"}, "value"),
        Wrong("only process 0 gets the result", {GATHER: "params[0][:] = all_gather(updated)[0]"}, "value"),
        Wrong("gradients change", {SUMS: f"grads[0] += 1\n    {SUMS}"}, "input"),
        Wrong("wrong shapes", {"scale * part": "scale * grads[rank]"}, "error"),
    ),
)  # fmt: skip
