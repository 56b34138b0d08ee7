"""The nucleus: the fewest tokens that together have probability p.

logits [r] (V,) are those of the next token; 0 < top_p <= 1. Of the softmax of the logits, keep the likeliest tokens: the fewest whose
probabilities add up to at least top_p. Among equally likely tokens those with the lower numbers come first. With top_p = 1 all remain.
Return the probabilities (V,) with which one then draws: 0 for the tokens that were left out, and those that were kept divided by their sum,
so that they add up to 1. Logits may be as large as 1000, whose exponential is no float64.

    python -m tutorials.check 14_top_p
"""

import numpy as np


def nucleus(logits, top_p):
    """The probabilities (V,) of the tokens, after all but the nucleus was left out."""
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    if top_p == 1:
        return probabilities
    order = np.argsort(-probabilities, kind="stable")  # likeliest first; equal ones stay in the order of their numbers
    # your lines:
    sums = np.cumsum(probabilities[order])
    before = sums - probabilities[order]  # what the likelier ones have together
    kept = order[before < top_p]
    left = np.zeros_like(probabilities)
    left[kept] = probabilities[kept] / probabilities[kept].sum()
    return left
    # end of your lines
