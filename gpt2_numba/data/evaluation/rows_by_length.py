"""Losses of many texts of different lengths, with few padded tokens: texts of about the same length share a batch.

A row is a text of some tokens, whose losses are wanted. In batches of T tokens a row of 80 tokens would cost as much as one of 1,024. Here
rows are sorted by length, the longest first, and each batch (b, t) is only as long as its longest row, rounded up to a multiple of 32. So
there are few different shapes, of which each needs plans for its matrix products and a recorded graph, and a batch has about the same
number of tokens whatever its t:

    lengths   97 96 96 95 ... 65 64 64 ... 33 31 30 ...
    batches   |-- (b, 128) --|-- (b, 96) --|-- (2b, 64) --| ...

What is right of a row in its batch, and below the last row of all, is token 0; attention is causal, so it has no effect on the rows.
"""

from typing import NamedTuple

import numpy as np

from gpt2_numba.integers import round_up

LENGTH_STEP = 32  # tokens: of 10,042 HellaSwag questions, whose rows have up to 170, there are six shapes, and a seventh of it is padding


class Batch(NamedTuple):
    """rows: numbers of the rows, integers (k,); the first k of the b. inputs, targets: int32 (b, t), targets one token later."""

    rows: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray


def batches_by_length(lengths, read, tokens, longest):
    """Yield Batches that hold each row once.

    lengths    (n,) integers: inputs of each row, that is, its tokens without the last
    read       function of a row's number: its tokens, (length + 1,) integers
    tokens     of a batch, about
    longest    tokens of a row, at most: no batch is longer
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        t = min(longest, round_up(int(lengths[order[start]]), LENGTH_STEP))
        b = max(1, tokens // t)
        rows = order[start : start + b]
        start += b
        yield _batch(rows, min(b, _power_of_two(len(rows))), t, read)


def padded_share(lengths, tokens, longest):
    """The share of the tokens in batches_by_length's batches that is padding, in [0, 1)."""
    nothing = np.zeros(1, np.int32)
    sizes = [batch.inputs.size for batch in batches_by_length(lengths, lambda row: nothing, tokens, longest)]
    return 1 - np.sum(lengths) / max(1, sum(sizes))


def losses_of_batches(model, batches):
    """Yield (Batch, losses (b, t) float32, nats) for each of the batches. The next one is prepared while the device computes."""
    waiting = None
    for batch in batches:
        losses = None if waiting is None else model.losses_to_host()
        model.evaluate(batch.inputs, batch.targets)
        if waiting is not None:
            yield waiting, losses
        waiting = batch
    if waiting is not None:
        yield waiting, model.losses_to_host()


def _batch(rows, b, t, read):
    inputs, targets = np.zeros((2, b, t), np.int32)
    for place, row in enumerate(rows.tolist()):
        tokens = read(row)
        inputs[place, : len(tokens) - 1] = tokens[:-1]
        targets[place, : len(tokens) - 1] = tokens[1:]
    return Batch(rows, inputs, targets)


def _power_of_two(n):
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
