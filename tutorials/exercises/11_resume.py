"""A run that forgets something when it is stopped.

A Trainer fits a line, y = weights[0] + weights[1] x, to examples that come one at a time, shuffled anew in each epoch (one pass over all of
them), with Adam. `train_with_a_stop` does `stop` steps, saves, throws the trainer away, loads what was saved into a new one, and goes on up
to `steps`. It returns the loss of each step and the weights at the end. They must have the same bits, whatever `stop` is. They do not: with
10 examples, 8 steps, and a stop after 4, the losses of steps 0 to 4 are right, and then:

    result['losses'][5] is 0.33976, and must be 0.34105

Something that the next steps depend on is neither saved nor loaded, and it is not one thing: look at each line of __init__, and ask whether
a new Trainer could know this. Complete `save` and `load`. JSON, in which the state is stored, has numbers, texts, lists and dicts, and no
arrays: `array.tolist()` there, `np.array(list)` back. (A list of floats comes back with the same bits.) The state of a generator of random
numbers is `generator.bit_generator.state`, a dict, which can be read and set.

    python -m tutorials.check 11_resume
"""

import json

import numpy as np

LEARNING_RATE, BETA1, BETA2, EPS = 0.05, 0.9, 0.95, 1e-8


class Trainer:
    """A run. x, y: float64 (examples,); seed: of the shuffling."""

    def __init__(self, x, y, seed):
        self.x, self.y = x, y
        self.weights, self.m, self.v = np.zeros(2), np.zeros(2), np.zeros(2)
        self.t = 0  # steps done, for Adam's correction
        self.generator = np.random.default_rng(seed)
        self.order = self.generator.permutation(len(x))  # of the examples in this epoch
        self.place = 0  # in this order, of the next example

    def step(self):
        """One step of Adam on the next example. Returns the loss before it."""
        if self.place == len(self.order):
            self.order, self.place = self.generator.permutation(len(self.x)), 0
        n = self.order[self.place]
        self.place += 1
        error = self.weights[0] + self.weights[1] * self.x[n] - self.y[n]
        gradient = error * np.array([1, self.x[n]])
        self.t += 1
        self.m = BETA1 * self.m + (1 - BETA1) * gradient
        self.v = BETA2 * self.v + (1 - BETA2) * gradient * gradient
        m_hat, v_hat = self.m / (1 - BETA1**self.t), self.v / (1 - BETA2**self.t)
        self.weights = self.weights - LEARNING_RATE * m_hat / (np.sqrt(v_hat) + EPS)
        return 0.5 * error * error

    def save(self):
        """The state as a dict that JSON can hold."""
        state = {"weights": self.weights.tolist(), "m": self.m.tolist(), "v": self.v.tolist(), "place": self.place}
        # your lines:
        # end of your lines
        return state

    def load(self, state):
        """Go on from what `save` returned."""
        self.weights, self.m, self.v = (np.array(state[name]) for name in ("weights", "m", "v"))
        self.place = state["place"]
        # your lines:
        # end of your lines


def train_with_a_stop(x, y, seed, steps, stop):
    """`steps` steps, with a stop after the first `stop` of them -> {"losses": (steps,), "weights": (2,)}."""
    trainer = Trainer(x, y, seed)
    losses = [trainer.step() for _ in range(stop)]
    file = json.dumps(trainer.save())
    trainer = Trainer(x, y, seed)  # another process, perhaps on another day
    trainer.load(json.loads(file))
    losses += [trainer.step() for _ in range(steps - stop)]
    return {"losses": np.array(losses), "weights": trainer.weights}
