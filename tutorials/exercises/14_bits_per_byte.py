"""From the losses of tokens to a number that does not depend on the tokenizer.

losses [r] (n,) holds the loss of each token of a text in nats, -ln p. lengths [r] (n,) holds the bytes of text that each token stands for,
and 0 for end-of-text, which is no text. At least one token has bytes. Return a dict:

    "loss"           the mean over all tokens, end-of-text too, in nats
    "perplexity"     e to the power of the loss
    "bits_per_byte"  the losses of those tokens that stand for text, added up, in bits (a bit is ln 2 nats), for each byte of the text

    python -m tutorials.check 14_bits_per_byte
"""

import math

import numpy as np


def bits_per_byte(losses, lengths):
    """{"loss": ..., "perplexity": ..., "bits_per_byte": ...}."""
    loss = np.mean(losses)
    # your lines:
    # end of your lines
