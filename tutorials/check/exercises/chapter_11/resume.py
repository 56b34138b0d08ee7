"""11_resume: a checkpoint that lacks Adam's step, the order of the epoch, and the generator's state."""

import copy

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

LEARNING_RATE, BETA1, BETA2, EPS = 0.05, 0.9, 0.95, 1e-8
AFTER_THE_STOP = (
    "The first loss after the stop is right, since the weights are there; the second is not, so the step between them was another one. "
    "Which line of step() uses something that a new Trainer does not know?"
)


def arguments(random, examples, steps, stop):
    x = random.standard_normal(examples)
    return {"x": x, "y": 1 + 2 * x + 0.1 * random.standard_normal(examples), "seed": 7, "steps": steps, "stop": stop}


def trained(x, y, seed, steps, stop, forgotten=(), late=0):
    """What a run returns that forgets, when it stops, things that a new one then has as at its start. late: added to t, then."""
    generator = np.random.default_rng(seed)
    kept = {"weights": np.zeros(2), "m": np.zeros(2), "v": np.zeros(2), "t": 0, "order": generator.permutation(len(x)), "place": 0}
    kept["generator"] = generator
    fresh, losses = copy.deepcopy(kept), []
    for step in range(steps):
        if step == stop:
            kept |= {name: copy.deepcopy(fresh[name]) for name in forgotten}
            kept["t"] += late
        if kept["place"] == len(x):
            kept |= {"order": kept["generator"].permutation(len(x)), "place": 0}
        n = kept["order"][kept["place"]]
        error = kept["weights"][0] + kept["weights"][1] * x[n] - y[n]
        gradient = error * np.array([1, x[n]])
        kept["place"] += 1
        kept["t"] += 1
        kept["m"] = BETA1 * kept["m"] + (1 - BETA1) * gradient
        kept["v"] = BETA2 * kept["v"] + (1 - BETA2) * gradient * gradient
        m_hat, v_hat = kept["m"] / (1 - BETA1 ** kept["t"]), kept["v"] / (1 - BETA2 ** kept["t"])
        kept["weights"] = kept["weights"] - LEARNING_RATE * m_hat / (np.sqrt(v_hat) + EPS)
        losses.append(0.5 * error * error)
    return {"return": {"losses": np.array(losses), "weights": kept["weights"]}}


def forgetting(*names):
    return lambda **given: trained(**given, forgotten=names)


ORDER = (
    "This stop is in the second epoch, and so far all stops were in the first, whose order a new Trainer draws from the same seed. Now the "
    "examples come in an order that is over."
)
GENERATOR = "All is well up to the end of the epoch. Then a new order is drawn: from which state of the generator?"
SAVE_T, LOAD_T = '        state["t"] = self.t\n', '        self.t = state["t"]\n'
SAVE_ORDER, LOAD_ORDER = '        state["order"] = self.order.tolist()\n', '        self.order = np.array(state["order"])\n'
SAVE_GENERATOR = '        state["generator"] = self.generator.bit_generator.state\n'
LOAD_GENERATOR = '        self.generator.bit_generator.state = state["generator"]\n'

EXERCISE = host_exercise(
    function="train_with_a_stop",
    arguments=arguments,
    reference=trained,
    sizes=(
        {"examples": 10, "steps": 8, "stop": 4},
        {"examples": 10, "steps": 8, "stop": 0},
        {"examples": 7, "steps": 13, "stop": 9},  # in the second epoch, which it does not finish
        {"examples": 7, "steps": 30, "stop": 9},
        {"examples": 5, "steps": 30, "stop": 10},  # at the end of an epoch
        {"examples": 5, "steps": 12, "stop": 12},
    ),
    tolerance=0,
    hints={
        "": (
            "Of the seven attributes of a Trainer that change in step(), save and load handle four. Which are the others?",
            "t, order and generator: three lines in save, three in load.",
        ),
        "error": (
            "JSON cannot hold arrays: self.order.tolist() in save, and np.array(...) in load.",
            "The generator itself cannot be saved; self.generator.bit_generator.state can be, and can be set.",
        ),
    },
    mistakes=(
        Mistake(forgetting("t", "order", "generator"), AFTER_THE_STOP),
        Mistake(forgetting("t"), AFTER_THE_STOP),
        Mistake(forgetting("order", "generator"), ORDER),
        Mistake(forgetting("order"), ORDER),
        Mistake(forgetting("generator"), GENERATOR),
        Mistake(lambda **given: trained(**given, late=1), "Adam's t is one too many after the stop: what has been saved is what has been done."),
    ),
    wrong=(
        Wrong(
            "as it was given",
            {text: "" for text in (SAVE_T, LOAD_T, SAVE_ORDER, LOAD_ORDER, SAVE_GENERATOR, LOAD_GENERATOR)},
            "value",
            "a new Trainer does not know",
        ),
        Wrong("t is not saved", {SAVE_T: "", LOAD_T: ""}, "value", "a new Trainer does not know"),
        Wrong("the order is not saved", {SAVE_ORDER: "", LOAD_ORDER: ""}, "value", "an order that is over"),
        Wrong("only t", {text: "" for text in (SAVE_ORDER, LOAD_ORDER, SAVE_GENERATOR, LOAD_GENERATOR)}, "value", "an order that is over"),
        Wrong("the generator is not saved", {SAVE_GENERATOR: "", LOAD_GENERATOR: ""}, "value", "from which state"),
        Wrong("saved, not loaded", {LOAD_GENERATOR: ""}, "value", "from which state"),
        Wrong("one step too many", {LOAD_T: '        self.t = state["t"] + 1\n'}, "value", "one too many"),
        Wrong("t from the place", {SAVE_T: "", LOAD_T: '        self.t = state["place"]\n'}, "value"),
        Wrong("a rounded order of Adam's m", {LOAD_T: LOAD_T + "        self.m = np.float64(np.float32(self.m))\n"}, "value"),
        Wrong("an array", {"self.order.tolist()": "self.order"}, "error", "JSON cannot hold arrays"),
        Wrong("the order drawn again", {LOAD_ORDER: "", LOAD_GENERATOR: LOAD_GENERATOR + "        self.order = self.generator.permutation("
            "len(self.x))\n"}, "value"),
    ),
)  # fmt: skip
