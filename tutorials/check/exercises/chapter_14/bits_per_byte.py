"""14_bits_per_byte: loss, perplexity and bits per byte of a text."""

import math

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, n, ends):
    """A text of n tokens, some of several bytes, of which the first `ends` are end-of-text, which is easy to predict."""
    lengths = random.integers(1, 9, n)
    lengths[:ends] = 0
    losses = random.gamma(2.0, 0.5 + 0.3 * lengths)
    return {"losses": losses, "lengths": lengths}


def judged(losses, lengths, *, bits=None, base=math.e):
    loss = float(np.mean(losses))
    text = float(np.sum(losses[lengths > 0])) / math.log(2) / int(np.sum(lengths))
    return {"return": {"loss": loss, "perplexity": base**loss, "bits_per_byte": text if bits is None else bits}}


def mistake(bits, hint):
    """bits: (losses, lengths) -> what the learner takes for bits per byte."""
    return Mistake(lambda losses, lengths: judged(losses, lengths, bits=float(bits(losses, lengths))), hint)


LN2 = math.log(2)

EXERCISE = host_exercise(
    function="bits_per_byte",
    arguments=arguments,
    reference=judged,
    sizes=({"n": 1, "ends": 0}, {"n": 2, "ends": 0}, {"n": 40, "ends": 3}),
    hints={
        "": (
            "The bits of the whole text, and the bytes of the whole text: two sums, and one division at the end.",
            "losses[lengths > 0] are the losses of the tokens that stand for text.",
        ),
        "not written": ("The function must return a dict with three keys.",),
        "value": ("The message names the key. At the first size there is a single token, at the last one there are three end-of-text.",),
    },
    mistakes=(
        Mistake(lambda **given: judged(**given, base=2), "The loss is in nats: its perplexity is a power of e, not of 2."),
        mistake(lambda losses, lengths: losses.sum() / LN2 / lengths.sum(), "What end-of-text costs is no part of the text: leave it out."),
        mistake(lambda losses, lengths: losses[lengths > 0].sum() / lengths.sum(), "That is nats per byte: divide by ln 2."),
        mistake(lambda losses, lengths: LN2 * losses[lengths > 0].sum() / lengths.sum(), "A bit is ln 2 = 0.69 nats, so there are more bits."),
        mistake(lambda losses, lengths: losses.mean() / LN2, "That is bits per token. A token stands for several bytes."),
        mistake(lambda losses, lengths: losses[lengths > 0].mean() / LN2, "That is bits per token. A token stands for several bytes."),
        mistake(
            lambda losses, lengths: (losses[lengths > 0] / lengths[lengths > 0]).mean() / LN2,
            "A mean of ratios counts a token of one byte as much as one of eight. Add up first, divide once.",
        ),
    ),
    wrong=(
        Wrong("with end-of-text", {"losses[lengths > 0]": "losses"}, "value", "leave it out"),
        Wrong("nats per byte", {" / math.log(2)": ""}, "value", "divide by ln 2"),
        Wrong("times ln 2", {" / math.log(2)": " * math.log(2)"}, "value", "there are more bits"),
        Wrong("decimal digits", {"math.log(2)": "math.log(10)"}, "value"),
        Wrong("bits per token", {"bits / np.sum(lengths)": "loss / math.log(2)"}, "value", "bits per token"),
        Wrong("tokens for bytes", {"bits / np.sum(lengths)": "bits / np.sum(lengths > 0)"}, "value", "bits per token"),
        Wrong("one byte too many", {"np.sum(lengths)": "(np.sum(lengths) + 1)"}, "value"),
        Wrong("a perplexity of bits", {"math.exp(loss)": "2.0**loss"}, "value", "a power of e"),
        Wrong("a mean of ratios", {
            "bits = np.sum(losses[lengths > 0]) / math.log(2)": "bits = np.mean(losses[lengths > 0] / lengths[lengths > 0]) / math.log(2)",
            "bits / np.sum(lengths)": "bits",
        }, "value", "Add up first"),
        Wrong("printed", {"return {": "result = {"}, "not written", "must return"),
    ),
)  # fmt: skip
