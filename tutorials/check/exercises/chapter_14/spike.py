"""14_spike: the z-scores of a run's losses, with a window of the latest ones, and the steps that are skipped."""

import math

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, case):
    """Losses with a spike, a value that is not finite, or none that differ."""
    if case == "short":
        return {"values": np.array([2.0, 4.0, 3.0]), "threshold": 1.0, "window": 4}
    if case == "equal":
        return {"values": np.array([1.25] * 6 + [2.0]), "threshold": 1.0, "window": 4}
    if case == "first score":
        return {"values": np.array([1.0, 2.0, 3.0, 4.0, 9.0, 2.0, 3.0]), "threshold": 1.5, "window": 4}
    n = {"spike": 200, "not finite": 40}[case]
    values = 3 + 0.4 * random.standard_normal(n)
    if case == "spike":
        values[150:156] = 7  # garbage of six steps: each scores less than the one before
        return {"values": values, "threshold": 4.5, "window": 128}
    values[[3, 20, 21, 30]] = math.nan, math.inf, math.nan, 6.0
    return {"values": values, "threshold": 2.0, "window": 8}


def scored(
    values, threshold, window, *, early=False, before=False, sample=False, skipped_out=False, root=True, take_in_bad=False, size=False
):
    """The answer; with other keywords, a wrong one."""
    latest, z = [], []
    for value in values:
        if not math.isfinite(value) and not take_in_bad:
            z.append(math.inf)
            continue
        full = len(latest) == window
        others = list(latest)
        latest = [*latest, value][-window:]
        measured = np.array(others if before and others else latest)
        variance = measured.var(ddof=1 if sample and len(measured) > 1 else 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (value - measured.mean()) / (np.sqrt(variance) if root else variance)
            score = abs(score) if size else score
        z.append(math.nan if not (full or early and len(latest) == window) else 0.0 if np.ptp(measured) == 0 else float(score))
        if skipped_out and z[-1] > threshold:
            latest = others
    return {"return": {"z": np.array(z), "skipped": [step for step, score in enumerate(z) if score > threshold]}}


def mistake(hint, **changed):
    return Mistake(lambda **given: scored(**given, **changed), hint)


EXERCISE = host_exercise(
    function="spikes",
    arguments=arguments,
    reference=scored,
    sizes=tuple({"case": case} for case in ("short", "equal", "first score", "spike", "not finite")),
    hints={
        "": (
            "In this order for each value: is it finite? was the window full? put it in; then mean, deviation, score.",
            "`full = len(latest) == window` must stand before the append: the value that fills the window has no score yet.",
        ),
        "not written": ("Each value of `values` must append one score to z.",),
        "value": ("The message names the score: result['z'][i] is that of the value with the index i.",),
    },
    mistakes=(
        mistake("The value that fills the window has no score yet: ask whether it was full before you append.", early=True),
        mistake("The window already holds the new value when mean and deviation are taken.", before=True),
        mistake("Divide the squared distances by the number of values, not by one less.", sample=True),
        mistake("The deviation is the root of the mean of the squares.", root=False),
        mistake("A score has a sign: a loss below the mean has a negative one, and is never skipped.", size=True),
        mistake("A skipped step's value stays in the window.", skipped_out=True),
    ),
    wrong=(
        Wrong("a score too early", {"full = len(latest) == window\n        latest.append(value)": "latest.append(value)\n        full = len(latest) == window"}, "value", "before you append"),
        Wrong("one value less", {"for x in latest) / len(latest)": "for x in latest) / max(1, len(latest) - 1)"}, "value", "not by one less"),
        Wrong("no root", {"math.sqrt(": "("}, "value", "root of the mean"),
        Wrong("no score for equal ones", {"z.append(0.0)": "z.append(math.nan)"}, "value"),
        Wrong("0 until it is full", {"z.append(math.nan)": "z.append(0.0)"}, "value"),
        Wrong("a skipped value is taken out", {"            z.append((value - mean) / deviation)": "            z.append((value - mean) / deviation)\n            if z[-1] > threshold: latest.pop()"}, "value"),
        Wrong("what is not finite goes in", {"            continue\n": "            latest.append(value)\n            continue\n"}, "value"),
        Wrong("what is not finite has no score", {"z.append(math.inf)": "z.append(math.nan)"}, "value"),
        Wrong("upside down", {"(value - mean) / deviation)": "(mean - value) / deviation)"}, "value"),
        Wrong("its size", {"(value - mean) / deviation)": "abs(value - mean) / deviation)"}, "value", "has a sign"),
        Wrong("all of the run", {"deque(maxlen=window)": "deque()", "len(latest) == window": "len(latest) >= window"}, "value"),
    ),
)  # fmt: skip
