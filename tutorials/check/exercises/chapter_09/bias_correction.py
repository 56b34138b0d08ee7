"""09_bias_correction: the number of a step is that of the run, and not of the process."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

RATE, BETA1, BETA2, EPS = 0.01, 0.9, 0.95, 1e-8
LINE = "        t = steps_done + number + 1\n"


def arguments(random, count, steps, done):
    """A run of `done` steps, and the gradients of the `steps` that follow."""
    grads = 1 + 0.5 * random.standard_normal((done + steps, count))
    params = random.standard_normal(count)
    params, m, v = stepped(params, np.zeros(count), np.zeros(count), grads[:done], lambda number: number + 1)
    return {"params": params, "m": m, "v": v, "grads": grads[done:], "steps_done": done}


def stepped(params, m, v, grads, t_of, correct1=True, correct2=True):
    """Adam's steps. t_of: from the number of a step, from 0, to its t."""
    for number, g in enumerate(grads):
        t = t_of(number)
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        with np.errstate(all="ignore"):
            m_hat = m / (1 - BETA1**t) if correct1 else m
            v_hat = v / (1 - BETA2**t) if correct2 else v
            params = params - RATE * m_hat / (np.sqrt(v_hat) + EPS)
    return params, m, v


def made(t_of, **corrections):
    """The result with another t. t_of takes steps_done and the number of the step in this call."""

    def result(params, m, v, grads, steps_done):
        return {"return": stepped(params, m, v, grads, lambda number: t_of(steps_done, number), **corrections)}

    return result


right = made(lambda done, number: done + number + 1)

EXERCISE = host_exercise(
    function="train",
    arguments=arguments,
    reference=right,
    sizes=({"count": 5, "steps": 6, "done": 10}, {"count": 3, "steps": 4, "done": 0}, {"count": 3, "steps": 1, "done": 1},
        {"count": 2, "steps": 3, "done": 1000}),
    hints={
        "": (
            "A run that is not stopped is right. Which line knows nothing of the steps before this call?",
            "The mean m of a resumed run is old: its weights add up to 1 already, or nearly. By what is it divided in the first step?",
            "t is the number of this step in the whole run, from 1.",
        ),
        "not written": ("The lines that are there already return what is needed: one line of yours is enough.",),
        "error": ("The division: is t ever 0? It counts from 1.",),
    },
    mistakes=(
        Mistake(made(lambda done, number: number + 1), "As it was: right for a run from its beginning, wrong where m and v come from a checkpoint."),
        Mistake(made(lambda done, number: done + number), "One too few: the first step of a run has t = 1, and t = 0 would divide by 0."),
        Mistake(made(lambda done, number: done + 1), "That is the same t for all steps of this call: each step has its own."),
        Mistake(
            made(lambda done, number: done + number + 1, correct1=False, correct2=False),
            "Without the corrections the first steps of a run are wrong: divide, by the right t.",
        ),
    ),
    wrong=(
        Wrong("as it was given", {LINE: ""}, "value", "As it was"),
        Wrong("one too few", {LINE: "        t = steps_done + number\n"}, "value", "One too few"),
        Wrong("one too many", {LINE: "        t = steps_done + number + 2\n"}, "value"),
        Wrong("one t for all", {LINE: "        t = steps_done + 1\n"}, "value", "same t"),
        Wrong("never corrected", {LINE: "        t = 10**9\n"}, "value", "Without the corrections"),
        Wrong("not corrected after a stop", {LINE: "        t = number + 1 if steps_done == 0 else 10**9\n"}, "value"),
        Wrong("forgets the means", {LINE: "        if number == 0:\n            m, v = (1 - BETA1) * g, (1 - BETA2) * g * g\n"}, "value"),
        Wrong("in place", {LINE: "        t = steps_done + number + 1\n        grads += 1\n"}, "input"),
    ),
)  # fmt: skip
