"""10_find_the_zero: gradients that are never set to zero."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

RATE = 0.1
BEFORE_THE_LOOP, STEP, MICRO_STEP, AFTER_BACKWARD, BEFORE_UPDATE, AFTER_UPDATE = range(6)


def arguments(random, steps, micro_batches, rows):
    x = np.stack([np.ones((steps, micro_batches, rows)), random.standard_normal((steps, micro_batches, rows))], axis=-1)
    return {"weights": np.zeros(2), "x": x, "y": x @ np.array([4.0, 2.0])}


def zeroed(*places):
    """The result with gradients that are set to zero in these places."""

    def result(weights, x, y):
        weights, losses = weights.copy(), []

        def gradient(step, micro_step):
            error = x[step, micro_step] @ weights - y[step, micro_step]
            return (x[step, micro_step] * error[:, None]).mean(axis=0), (error * error).mean() / 2

        grads = 0 * weights if BEFORE_THE_LOOP in places else gradient(0, 0)[0]
        for step in range(len(x)):
            grads, loss = grads * (STEP not in places), 0.0
            for micro_step in range(x.shape[1]):
                more, micro_loss = gradient(step, micro_step)
                grads = (grads * (MICRO_STEP not in places) + more / x.shape[1]) * (AFTER_BACKWARD not in places)
                loss += micro_loss / x.shape[1]
            grads = grads * (BEFORE_UPDATE not in places)
            weights = weights - RATE * grads
            grads = grads * (AFTER_UPDATE not in places)
            losses.append(loss)
        return {"return": (losses, weights)}

    return result


ZERO = "        grads[:] = 0\n"
NOWHERE = {ZERO: ""}
STOPPED = "The losses differ only because the data do: the weights do not move at all. The gradients are thrown away before they are used. (grads = 0 would be another array: it must be grads[:] = 0.)"
# For `wrong`: the line before each of the other places.
LINES = {
    BEFORE_THE_LOOP: "x.shape[1]\n    # your lines:\n",
    MICRO_STEP: "range(micro_batches):\n            # your lines:\n",
    AFTER_BACKWARD: "1 / micro_batches)\n            # your lines:\n",
    BEFORE_UPDATE: "            # end of your lines\n        # your lines:\n",
    AFTER_UPDATE: "weights -= RATE * grads\n        # your lines:\n",
}


def moved(*places):
    """The changes that set the gradients to zero in these places, and not at the beginning of a step."""
    changes = dict(NOWHERE)
    for place in places:
        line = LINES[place]
        indent = line.splitlines()[-1].partition("#")[0]
        changes[line] = f"{line}{indent}grads[:] = 0\n"
    return changes


EXERCISE = host_exercise(
    function="train",
    arguments=arguments,
    reference=zeroed(STEP),
    sizes=({"steps": 10, "micro_batches": 3, "rows": 4}, {"steps": 4, "micro_batches": 1, "rows": 2}, {"steps": 5, "micro_batches": 2, "rows": 3}),
    hints={
        "": (
            "What must be in grads when a step begins? And what after its first micro-batch, and after its second?",
            "Nothing at the beginning of a step; then a sum that grows. And who has used grads before the first step?",
            "Once a step, before its first micro-batch: grads[:] = 0.",
        ),
        "not written": ("The lines that are there already return what is needed: one line of yours is enough.",),
        "error": ("`grads` is there from the beginning, and so is `weights`; `loss` is not.",),
    },
    mistakes=(
        Mistake(zeroed(), "As it was: each step moves along the sum of all gradients since the run began, and of the rehearsal's."),
        Mistake(zeroed(BEFORE_THE_LOOP), "That takes away the rehearsal's gradients. From the second step on, those of the steps before are still in grads."),
        Mistake(zeroed(AFTER_UPDATE), "From the second step on this is right. But the first step has the rehearsal's gradients in it."),
        Mistake(zeroed(MICRO_STEP), "Each micro-batch throws away those before it: a step moves along 1/n of the last one's gradient only."),
        Mistake(zeroed(MICRO_STEP, BEFORE_THE_LOOP), "Each micro-batch throws away those before it: a step moves along the last one's gradient only."),
        Mistake(zeroed(BEFORE_UPDATE), STOPPED),
        Mistake(zeroed(AFTER_BACKWARD), STOPPED),
    ),
    wrong=(
        Wrong("as it was given", NOWHERE, "value", "As it was"),
        Wrong("once, before the loop", moved(BEFORE_THE_LOOP), "value", "takes away the rehearsal"),
        Wrong("for each micro-batch", moved(MICRO_STEP), "value", "throws away those before"),
        Wrong("after each backward pass", moved(AFTER_BACKWARD), "value", "do not move at all"),
        Wrong("before the update", moved(BEFORE_UPDATE), "value", "do not move at all"),
        Wrong("after the update", moved(AFTER_UPDATE), "value", "first step has the rehearsal"),
        Wrong("a new array outside of the loop", {ZERO: "        if step == 0:\n            grads = 0 * grads\n"}, "value"),
        Wrong("except in the last step", {ZERO: "        if step + 1 < len(x):\n            grads[:] = 0\n"}, "value"),
        Wrong("halved, not zeroed", {ZERO: "        grads *= 0.5\n"}, "value"),
        Wrong("one of the two numbers", {ZERO: "        grads[0] = 0\n"}, "value"),
        Wrong("the weights as well", {ZERO: "        grads[:] = weights[:] = 0\n"}, "value"),
    ),
)  # fmt: skip
