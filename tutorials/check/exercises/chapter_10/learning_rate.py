"""10_learning_rate: a linear warm-up and half a cosine wave, with the right ends."""

import math

import numpy as np

from gpt2_numba.training import schedules
from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, max_steps, warmup_steps, floor=0.1):
    peak = random.uniform(1, 2)
    return {"max_steps": max_steps, "peak": peak, "warmup_steps": warmup_steps, "floor": floor * peak}


def reference(max_steps, peak, warmup_steps, floor):
    sizes = dict(peak=peak, warmup_steps=warmup_steps, final_fraction=floor / peak)
    return {"return": np.array([schedules.learning_rate("cosine", step, max_steps, **sizes) for step in range(max_steps)])}


def made(first=1, shape=lambda progress: 0.5 * (1 + math.cos(math.pi * progress)), begins=0, ends=0, lowest=True):
    """The rates with other ends. The warm-up counts from `first`; progress begins and ends so many steps later."""

    def result(max_steps, peak, warmup_steps, floor):
        rates, bottom = [], floor if lowest else 0.0
        for step in range(max_steps):
            length = max_steps + ends - warmup_steps - begins
            progress = (step - warmup_steps - begins) / length if length else 0.0
            rates.append(peak * (step + first) / warmup_steps if step < warmup_steps else bottom + shape(progress) * (peak - bottom))
        return {"return": np.array(rates)}

    return result


def only_the_wave(max_steps, peak, warmup_steps, floor):
    wave = [floor + 0.5 * (1 + math.cos(math.pi * step / max_steps)) * (peak - floor) for step in range(max_steps)]
    up = [min(1, (step + 1) / warmup_steps) if warmup_steps else 1 for step in range(max_steps)]
    return {"return": np.array(wave) * np.array(up)}


def from_the_start(max_steps, peak, warmup_steps, floor):
    """progress is the share of the whole run."""
    rates = reference(max_steps, peak, warmup_steps, floor)["return"]
    for step in range(warmup_steps, max_steps):
        rates[step] = floor + 0.5 * (1 + math.cos(math.pi * step / max_steps)) * (peak - floor)
    return {"return": rates}


PROGRESS = "(step - warmup_steps) / (max_steps - warmup_steps)"

EXERCISE = host_exercise(
    function="rates",
    arguments=arguments,
    reference=reference,
    sizes=(
        {"max_steps": 6, "warmup_steps": 2, "floor": 0.0}, {"max_steps": 20, "warmup_steps": 5}, {"max_steps": 7, "warmup_steps": 0},
        {"max_steps": 4, "warmup_steps": 4}, {"max_steps": 9, "warmup_steps": 1}, {"max_steps": 1, "warmup_steps": 0},
        {"max_steps": 3, "warmup_steps": 2, "floor": 0.5},
    ),
    hints={
        "": (
            "Write the six numbers of the example beside the steps 0 to 5. Which are warm-up, and which fraction of the peak is each?",
            "Warm-up: peak (step + 1) / warmup_steps. Progress: how many steps after the warm-up is this one, of how many?",
            "progress = (step - warmup_steps) / (max_steps - warmup_steps)",
        ),
        "error": (
            "A division by 0: without a warm-up no step may divide by warmup_steps, and if all steps are warm-up, none needs progress.",
        ),
        "not written": ("The function must return a number in both parts, warm-up and decay.",),
    },
    mistakes=(
        Mistake(made(first=0), "The first step has the rate 0: it would compute a gradient, and change nothing. The line is 0 one step before the first."),
        Mistake(made(begins=-1), "In the first step after the warm-up the rate has fallen already: progress must be 0 there."),
        Mistake(made(ends=-1), "The last step is at the floor. The wave would reach it one step later, in step number max_steps."),
        Mistake(made(begins=-1, ends=-1), "The wave is one step early: progress must be 0 in the first step after the warm-up."),
        Mistake(made(lowest=False), "It falls to 0; it should fall to the floor."),
        Mistake(made(shape=lambda progress: 1 - progress), "That is a straight line down: half a cosine wave is flat at both ends."),
        Mistake(made(shape=lambda progress: math.cos(math.pi / 2 * progress)), "That is a quarter of a wave: it is flat at the top only. ½ (1 + cos(π progress)) is half a wave."),
        Mistake(made(shape=lambda progress: 0.5 * (1 + math.cos(progress))), "The cosine's argument is an angle: half a wave is π."),
        Mistake(only_the_wave, "The wave begins in step 0, and the warm-up is multiplied into it. It should begin when the warm-up is over."),
        Mistake(from_the_start, "Progress counts from the beginning of the run: so the rate jumps down after the warm-up. Count from its end."),
    ),
    wrong=(
        Wrong("from 0", {"(step + 1)": "step"}, "value", "has the rate 0"),
        Wrong("warm-up one step longer", {"step < warmup_steps": "step <= warmup_steps"}, "value"),
        Wrong("warm-up one step shorter", {"step < warmup_steps": "step + 1 < warmup_steps", "if step": "if warmup_steps and step"}, "value"),
        Wrong("the last at the floor", {PROGRESS: "(step - warmup_steps) / max(1, max_steps - 1 - warmup_steps)"}, "value", "The last step is at the floor"),
        Wrong("one step early", {PROGRESS: "(step + 1 - warmup_steps) / (max_steps - warmup_steps)"}, "value", "one step early"),
        Wrong("from the start", {PROGRESS: "step / max_steps"}, "value", "Progress counts"),
        Wrong("to 0", {"return floor + ": "return ", "* (peak - floor)": "* peak"}, "value"),
        Wrong("the floor is added", {"* (peak - floor)": "* peak"}, "value"),
        Wrong("never below the floor", {"return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)":
            "return max(floor, 0.5 * (1 + math.cos(math.pi * progress)) * peak)"}, "value"),
        Wrong("a line", {"0.5 * (1 + math.cos(math.pi * progress))": "(1 - progress)"}, "value", "straight line"),
        Wrong("a quarter of a wave", {"0.5 * (1 + math.cos(math.pi * progress))": "math.cos(math.pi / 2 * progress)"}, "value", "a quarter"),
        Wrong("divides by 0", {"if step < warmup_steps:\n        return peak * (step + 1) / warmup_steps\n":
            "up = peak * (step + 1) / warmup_steps\n    if step < warmup_steps:\n        return up\n"}, "error", "by 0"),
        Wrong("the warm-up from the floor", {"return peak * (step + 1) / warmup_steps": "return floor + (peak - floor) * (step + 1) / warmup_steps"}, "value"),
    ),
)  # fmt: skip
