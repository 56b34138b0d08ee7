"""Text cut into windows for a model that sees T tokens, so that each token is predicted once; and what its losses amount to.

A window's inputs are at most T tokens, and each is predicted from those before it in the window. With a stride S every window but the first
predicts S new tokens, the last of its T; what stands before them is context that an earlier window has predicted. With T = 4:

    tokens           e a b c d f g h i j        e, the first, is predicted by none
    S = T (default)  e|a b c d                  d, which the next window begins with, is all that f is predicted from
                             d|f g h i
                                 g h i|j        the last window is moved back: its context costs nothing
    S = 2            e|a b c d
                         b c d|f g
                             f g . .            each token but the first four has at least T - S + 1 before it

Without overlap these are the rows on which the trainer validates. With a smaller stride few tokens have little context, which costs T / S
times as much.

The tokens of a shard are one text, as in training: windows run across documents. Bits per byte are of the text alone: what the model pays
for end-of-text, of no bytes, is not in them, whereas the loss per token counts all tokens.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gpt2_numba.data.evaluation.multiple_choice import NORMAL_95

ENOUGH_WINDOWS = 10  # for a confidence interval: their mean losses are then about normally distributed


class Window(NamedTuple):
    """Tokens begin ... end - 1 of a text, of which the first `context` are given, at least one, and the others predicted."""

    begin: int
    end: int
    context: int


def windows_of_text(count, T, stride=None):
    """Yield the Windows of a text of `count` tokens. T: longest input of the model. stride: 1 to T, None: T, without overlap."""
    end = min(count, T + 1)
    if count > 1:
        yield Window(0, end, 1)
    while end < count:
        predicted, end = end, min(count, end + (stride or T))
        begin = max(0, end - (T + 1))
        yield Window(begin, end, predicted - begin)


def token_bytes(encoding, vocab_size):
    """Bytes of text that each of a model's `vocab_size` tokens stands for, int64: 0 for end-of-text, and for what the tokenizer lacks."""
    sizes = np.zeros(max(vocab_size, encoding.n_vocab), np.int64)
    for token in range(encoding.n_vocab):
        if token != encoding.eot_token:
            sizes[token] = len(encoding.decode_single_token_bytes(token))
    return sizes


@dataclass
class TextLosses:
    """The losses of windows, added one window at a time.

    sizes   bytes of each token (see token_bytes); None: bits per byte are not computed
    """

    sizes: np.ndarray | None = None
    _windows: list = field(default_factory=list)  # (tokens, nats, bytes, nats of tokens that have bytes) of each window

    def add(self, losses, targets):
        """losses: (n,) nats of the predicted tokens of a window. targets: those tokens, (n,)."""
        nats = losses.sum(dtype=np.float64)
        if self.sizes is None:
            self._windows.append((len(targets), nats, 0, 0.0))
            return
        sizes = self.sizes[targets]
        self._windows.append((len(targets), nats, sizes.sum(), losses[sizes > 0].sum(dtype=np.float64)))

    @property
    def tokens(self):
        """The number of tokens that were predicted."""
        return int(sum(window[0] for window in self._windows))

    @property
    def bytes(self):
        """Their bytes of text; 0 if unknown."""
        return int(sum(window[2] for window in self._windows))

    def loss(self):
        """An Estimate of the mean loss, nats per token."""
        return estimate([window[1] for window in self._windows], [window[0] for window in self._windows])

    def bits_per_byte(self):
        """An Estimate of the bits that the model needs for a byte of text; None if the bytes are unknown."""
        if not self.bytes:
            return None
        return estimate([window[3] / math.log(2) for window in self._windows], [window[2] for window in self._windows])


class Estimate(NamedTuple):
    """A mean, and (low, high), its 95 % confidence interval, or None."""

    value: float
    interval: tuple | None

    def map(self, function):
        """The Estimate of function(value), for an increasing function."""
        return Estimate(function(self.value), self.interval and tuple(map(function, self.interval)))


def estimate(amounts, sizes):
    """The Estimate of Σ amounts / Σ sizes, where amounts and sizes of different windows are independent, and within one are not.

    Tokens that stand side by side are easy or hard together, so an interval computed from single tokens would be too narrow; windows are
    nearly independent. The standard error is that of a ratio (Cochran 1977, Sampling Techniques, section 6.4). Fewer than ENOUGH_WINDOWS
    have no interval. It covers the choice of the text only, not that of the training run's seed.
    """
    amounts, sizes = np.asarray(amounts, np.float64), np.asarray(sizes, np.float64)
    value, n = amounts.sum() / sizes.sum(), len(sizes)
    if n < ENOUGH_WINDOWS:
        return Estimate(float(value), None)
    half = NORMAL_95 * math.sqrt(n / (n - 1) * np.sum((amounts - value * sizes) ** 2)) / sizes.sum()
    return Estimate(float(value), (float(value - half), float(value + half)))
