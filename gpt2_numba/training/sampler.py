"""Sampling a token: a small random number generator, and the inverse of the cumulative softmax.

Both are llm.c's, so that the same logits and seed give the same tokens in both programs (up to rounding: the sums here are float64).
Sampling has its own generator, so that it never changes the random numbers that training uses.
"""

import numpy as np

from gpt2_numba.errors import UserError

GROUPS = 1024  # of a vocabulary, to find the likeliest tokens
_MASK_64 = 2**64 - 1


class Xorshift64Star:
    """The xorshift64* generator (Vigna 2014, arXiv:1402.6246): 64 bits of state, advanced by three shifts and XORs."""

    def __init__(self, seed=1337):
        """seed: the initial state, 1 .. 2**64 - 1. Raises ValueError for anything else; 0 would stay 0 for ever."""
        if not 0 < seed <= _MASK_64:
            raise ValueError(f"Xorshift64Star: the seed must be in 1 .. 2**64 - 1, got {seed}")
        self.state = seed

    def next_u32(self):
        """The next 32 random bits as a Python int: the high half of a 64-bit product, whose bits are the best mixed."""
        x = self.state
        x ^= x >> 12
        x ^= (x << 25) & _MASK_64  # Python's integers grow, the generator's have 64 bits
        x ^= x >> 27
        self.state = x
        return ((x * 0x2545F4914F6CDD1D) & _MASK_64) >> 32

    def next_coin(self):
        """A uniform number in [0, 1) as a Python float, with 24 bits, as many as a float32 holds exactly."""
        return (self.next_u32() >> 8) / 2**24


def choose_token(logits, coin, temperature=1.0, top_k=0, top_p=1.0):
    """Draw one token from softmax(logits / temperature), after leaving out unlikely ones. Returns it as a Python int.

    logits       [r] (V,) float32     coin  [r] uniform in [0, 1)
    temperature  below 1 the likely tokens become likelier still; 0 takes the likeliest, whatever the coin
    top_k        only the k likeliest remain; 0: all do
    top_p        of these, only the likeliest whose probabilities add up to at least top_p: "nucleus sampling" (Holtzman et al. 2020,
                 arXiv:1904.09751). 1: all remain
    Among equally likely tokens, those with the lowest numbers remain. With the defaults it is sample_from_logits, to the bit.
    Raises UserError if a logit is NaN or infinite.
    """
    tokens = None
    _check_finite(logits)
    if temperature == 0:
        return int(np.argmax(logits))
    if 0 < top_k < logits.size:
        tokens = _largest(logits, top_k)
        logits = logits[tokens]
    if temperature != 1:
        logits = logits.astype(np.float64) / temperature
    if top_p < 1:
        nucleus = _nucleus(np.exp(logits.astype(np.float64) - np.float64(logits.max())), top_p)
        tokens = nucleus if tokens is None else tokens[nucleus]
        logits = logits[nucleus]
    place = _draw(logits, coin)
    return place if tokens is None else int(tokens[place])


def _largest(values, k):
    """Indices of the k largest values, ascending; of equal ones the first."""
    candidates = np.flatnonzero(values >= _reached_by(values, k))
    return np.sort(candidates[np.argsort(-values[candidates], kind="stable")[:k]])


def _reached_by(values, k):
    """A number that at least k values reach, and not many more: the k-th largest of the maxima of many groups. Quicker than to sort them all."""
    groups = min(values.size, max(GROUPS, 8 * k))
    maxima = values[: values.size // groups * groups].reshape(-1, groups).max(axis=0)
    return np.partition(maxima, groups - k)[groups - k]


def _nucleus(weights, top_p):
    """Indices, ascending, of the fewest weights (of those, the largest, and of equal ones the first) that make up top_p of their sum."""
    needed = top_p * weights.sum()
    # Weights that are together less than 1 - top_p of the sum are never needed: few remain to be sorted.
    candidates = np.flatnonzero(weights * weights.size >= (1 - top_p) * weights.sum())
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    count = np.searchsorted(np.cumsum(weights[order]), needed) + 1
    return np.sort(order[:count])


def sample_from_logits(logits, coin):
    """Draw one token from softmax(logits).

    logits  [r] (V,) float32, without the padding of the vocabulary
    coin    [r] uniform in [0, 1)

    The probabilities, laid end to end, fill the interval from 0 to 1; the token is the one on whose piece the coin falls. Returns it as a
    Python int. Raises UserError if a logit is NaN or infinite.
    """
    _check_finite(logits)
    return _draw(logits, coin)


def _draw(logits, coin):
    # Softmax depends only on differences of logits; subtracting the largest keeps exp from overflowing.
    weights = np.exp(logits.astype(np.float64) - np.float64(logits.max()))
    cumulative = np.cumsum(weights)
    # side="right": the first token whose piece ends after the coin, so that an empty piece is never chosen.
    return int(np.searchsorted(cumulative, coin * cumulative[-1], side="right"))


def _check_finite(logits):
    finite = np.isfinite(logits)
    if not finite.all():
        raise UserError(
            f"sampling needs finite logits, got {np.count_nonzero(~finite)} of {logits.size} that are not: "
            f"the training has diverged; try a lower learning rate (-l)"
        )
