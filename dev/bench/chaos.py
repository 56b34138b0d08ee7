"""How a tiny difference in one weight grows from step to step, at several learning rates. A CPU, ten seconds.

    python -m dev.bench.chaos

Trains a small GPT-2 twice in float32, from the same weights but for one, which is larger by 1e-6, and prints how far all weights together
are apart (the root of the sum of squares) and the losses.

After one step the distance is a matter of the rate: AdamW divides each gradient by its size, so a weight whose gradient is nearly zero
takes a step of the full rate in either direction, and the nudge turns a few of these signs. From then on a difference d along a direction of
curvature h becomes (1 - rate h) d. At a small rate nothing grows; where the rate times the curvature exceeds two, steps overshoot, and each
makes the difference larger. Nothing but the rate has changed: the arithmetic is the same in all runs, and so are its roundings.
"""

from dataclasses import dataclass

import numpy as np

from dev.bench.drift import growth
from dev.bench.report import table
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options

MODEL, B, T, STEPS = "L=4,NH=4,C=128,T=32,V=257", 2, 32, 24
RATES = "1e-4,1e-3,1e-2,3e-2"
MAX_NORM, DECAY = 1.0, 0.1
NUDGE = 1e-6  # of a weight of the first channel of a space's embedding
SHOWN = (1, 6, 12, 18, 24)  # steps of the table


@dataclass
class Apart:
    """Two runs, step by step: `distances` of all weights after the step; `losses` and `norms` of the first; `difference` of the losses."""

    distances: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    difference: np.ndarray


def batches():
    """STEPS batches of the built-in corpus: (inputs, targets), int32 (B, T)."""
    tokens = builtin_corpus()[0][: STEPS * B * T + 1].astype(np.int32)
    return [
        (tokens[start : start + B * T].reshape(B, T), tokens[start + 1 : start + B * T + 1].reshape(B, T))
        for start in range(0, STEPS * B * T, B * T)
    ]


def train(rate, nudge):
    """Yield (loss, norm, all weights) after each step."""
    config = parse_descriptor(MODEL)
    model = GPT2(config, B, T, Options())
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config)))
    model.params.wte[ord(" "), 0] += np.float32(nudge)
    for step, (inputs, targets) in enumerate(batches()):
        model.zero_grad()
        model.forward(inputs)
        model.backward(targets)
        measurement = model.measure(MAX_NORM)
        model.update(step, rate, DECAY)
        yield (*measurement.wait()[:2], model.raw("params"))


def come_apart(rate, nudge=NUDGE):
    """Train twice, side by side. Returns an Apart."""
    rows = [
        (np.linalg.norm(weights.astype(np.float64) - others), loss, norm, other_loss - loss)
        for (loss, norm, weights), (other_loss, _, others) in zip(train(rate, 0), train(rate, nudge))
    ]
    return Apart(*map(np.array, zip(*rows)))


def measure(argv):
    """Print the table."""
    parser = Parser(prog="python -m dev.bench.chaos", doc=__doc__)
    parser.add_argument("--rates", default=RATES, help="learning rates, with commas between them (default: %(default)s)")
    rows = []
    for rate in map(float, parser.parse_args(argv).rates.split(",")):
        apart = come_apart(rate)
        rows.append([
            f"{rate:g}", f"{apart.losses[-1]:.2f}", f"{apart.norms.max():.0f}", *(f"{apart.distances[step - 1]:.0e}" for step in SHOWN),
            f"{growth(apart.distances):.2f}", f"{abs(apart.difference).max():.0e}",
        ])  # fmt: skip
    header = ["rate", "last loss", "largest norm", *(f"apart at {step}" for step in SHOWN), "growth a step", "largest loss difference"]
    print(table(header, rows))


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
