"""Gradients of many micro-steps, added up in bfloat16: how far is the sum off? By formula, and measured on a small model's gradients.

    python -m dev.bench.accumulation             a CPU, half a minute

In bf16 a gradient lies in a bfloat16 array, to which each micro-step adds its share. The kernels add in float32 and round the sum once, to
nearest; cuBLASLt, which computes the gradients of all matrices, rounds its product first and then the sum (gpu/gemm.py). Here this is done
in NumPy with the float32 gradients of a small GPT-2 on real text, at the start of a training and after a hundred steps of it.

What to expect. A number m 2^e, with m from 1 to 2, is rounded by at most 2^(e-8), and on average of squares by a third of the square of
that. Mantissas of numbers from many binades are spread like m's logarithm; then the mean square of the error is r² times that of the
numbers, with

    r² = 2^-16 / 3 · (the mean of 1) / (the mean of m²) = 2^-16 / 3 · 2 ln 2 / 3,      r = 1.53e-3

Let a micro-step's gradients have the mean square μ² + σ²: μ what all have in common, σ what differs from batch to batch. The sum of n has
n² μ² + n σ². Errors of N sums (but for the first, which is exact) and of N products are independent:

    error² = r² (sum over n = 2 ... N of (n² μ² + n σ²) + N (μ² + σ²)),      relative to N² μ² + N σ²

So the relative error grows from r to r sqrt(N / 3) if μ is much larger than σ, and to r sqrt(N / 2) if micro-steps have nothing in common.

Errors are independent only where shares differ, by half a unit of the sum or more, σ > N μ / 512 or so. If all are equal, each sum in a
binade has the same error, and errors add up linearly; from the 256th on a share may be less than half a unit, and be lost. The second table
is for made-up gradients with a given σ / μ. Real ones scatter more: `batch noise` is what the sum scatters in any case, because its batches
are a sample, sqrt(σ² / (N μ² + σ²)).
"""

import math

import numpy as np

from dev.bench.report import table
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.gpu.backend import bfloat16_bits, bfloat16_values
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options

MODEL, B, T = "L=2,NH=2,C=64,T=32,V=257", 4, 32
RELATIVE_ERROR = 2.0**-8 * math.sqrt(2 * math.log(2)) / 3  # r: of one rounding to bfloat16, root of the mean squares
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # micro-steps
RATIOS, MADE_UP_COUNTS = (0.0, 0.03, 0.1, 0.3, 1.0, math.inf), (8, 32, 128, 512)  # of the second table
MATRICES = ("qkvw", "attprojw", "fcw", "fcprojw")


def to_bfloat16(values):
    """float32 values, each rounded to the nearest bfloat16."""
    return bfloat16_values(bfloat16_bits(values))


def partial_sums(shares, products_first=True):
    """The sums of the first 1, 2, ... N shares in bfloat16. shares (N, ...) float32. Returns an array of the same shape.

    products_first  as cuBLASLt does: a share is rounded before it is added
    """
    total, sums = np.zeros_like(shares[0]), []
    for share in shares:
        total = to_bfloat16(total + (to_bfloat16(share) if products_first else share))
        sums.append(total)
    return np.array(sums)


def relative_error(shares):
    """(the error of the bfloat16 sum relative to the exact one, both as roots of mean squares; its part along the exact sum).

    The second is the bias: -0.01 would be a sum that is a hundredth too small.
    """
    exact = shares.sum(axis=0, dtype=np.float64)
    error = partial_sums(shares)[-1] - exact
    return math.sqrt(np.square(error).sum() / np.square(exact).sum()), float((error * exact).sum() / np.square(exact).sum())


def common_and_different(shares):
    """(μ², σ²) of the shares (N, ...), from the mean squares of a share and of the sum. With one share, all of it is σ²."""
    count = len(shares)
    of_a_share, of_the_sum = np.square(shares, dtype=np.float64).mean(), np.square(shares.sum(axis=0, dtype=np.float64)).mean()
    common = max(0.0, (of_the_sum - count * of_a_share) / (count**2 - count)) if count > 1 else 0.0
    return common, of_a_share - common


def expected_error(count, common, different):
    """The relative error by the formula above, for `count` micro-steps of μ² = common and σ² = different."""
    sums = sum(n**2 * common + n * different for n in range(2, count + 1))
    return RELATIVE_ERROR * math.sqrt((sums + count * (common + different)) / (count**2 * common + count * different))


def gradients_of_micro_steps(count, steps=0, names=MATRICES):
    """The gradients of `count` micro-batches of the built-in corpus in float32, after so many steps of training.

    Returns an array (count, elements): the tensors `names` of all layers, flat.
    """
    config = parse_descriptor(MODEL)
    model = GPT2(config, B, T, Options())
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config)))
    tokens, shares = builtin_corpus()[0].astype(np.int32), []
    for index in range(steps + count):
        batch = tokens[index * B * T : (index + 1) * B * T + 1]
        model.zero_grad()
        model.forward(batch[:-1].reshape(B, T))
        model.backward(batch[1:].reshape(B, T))
        model.measure(1.0)
        if index < steps:
            model.update(index, 1e-3)
        else:
            gradients = model.grads_to_host()
            shares.append(np.concatenate([gradients[name].reshape(-1) for name in names]))
    return np.array(shares)


def made_up_gradients(count, ratio, elements=20_000):
    """`count` shares of normally distributed gradients with σ / μ = ratio in each element; infinity: with no μ. float32 (count, elements).

    Elements are spread over eight binades, so that mantissas are spread like their logarithm.
    """
    generator = np.random.default_rng(count)
    scale = generator.normal(size=elements) * 2.0 ** generator.uniform(0, 8, elements)
    scatter = generator.normal(size=(count, elements))
    return (scale * scatter if math.isinf(ratio) else scale * (1 + ratio * scatter)).astype(np.float32)


def measure(argv):
    """Print the tables."""
    Parser(prog="python -m dev.bench.accumulation", doc=__doc__).parse_args(argv)
    shares = {steps: gradients_of_micro_steps(COUNTS[-1], steps) for steps in (0, 100)}
    rows = []
    for count in COUNTS:
        row = [str(count)]
        for all_shares in shares.values():
            common, different = common_and_different(all_shares)
            error, bias = relative_error(all_shares[:count])
            noise = math.sqrt(different / (count * common + different))
            row += [f"{error:.2e}", f"{expected_error(count, common, different):.2e}", f"{bias:+.0e}", f"{noise:.2f}"]
        rows.append([*row, ""])
    each = ["error", "formula", "bias", "batch noise"]
    print("from the left: gradients at the start, gradients after 100 steps")
    print(table(["micro-steps", *each, *each, ""], rows))
    rows = []
    for ratio in RATIOS:
        made_up = (relative_error(made_up_gradients(count, ratio)) for count in MADE_UP_COUNTS)
        rows.append([f"{ratio:g}", *(f"{error:.4f} ({bias:+.4f})" for error, bias in made_up), ""])
    formula = (f"{expected_error(count, 1, 0):.4f} to {expected_error(count, 0, 1):.4f}" for count in MADE_UP_COUNTS)
    print("\nmade-up gradients: error (bias) of the sum, by σ / μ and the number of micro-steps")
    print(table(["σ / μ", *map(str, MADE_UP_COUNTS), ""], [*rows, ["formula", *formula, ""]]))


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
