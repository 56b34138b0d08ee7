"""The rows of a step's batch: which have an unusual loss, where they come from, and what they say."""

from typing import NamedTuple

import numpy as np

UNUSUAL = 5.0  # deviations of a loss above the median, estimated from the median deviation, which the unusual ones do not move
DEVIATION = 1.4826  # standard deviations per median deviation, of normally distributed values
UNUSUAL_NORM = 3.0  # times the median: norms spread more widely
TEXT_TOKENS = 24  # shown of a row


class BatchRow(NamedTuple):
    """A row of a step's batch. number: through all micro-batches, from 0; label: as it is printed; loss: nats per token.

    norm  of the gradient of its own mean loss
    """

    number: int
    label: str
    loss: float
    norm: float
    place: str
    inputs: np.ndarray
    targets: np.ndarray


def rows_of(step, norms):
    """All BatchRows of a Step that was watched, in order. With several micro-batches a label is MICRO-BATCH/ROW, from 0."""
    found = []
    for number, batch in enumerate(step.micro_batches):
        for row, place in enumerate(batch.places):
            at, label = len(found), f"{number}/{row}" if len(step.micro_batches) > 1 else f"{row}"
            loss, norm = float(step.row_losses[at]), float(norms[at])
            found.append(BatchRow(at, label, loss, norm, place, batch.inputs[row], batch.targets[row]))
    return found


def by_norm(rows):
    """The rows, largest norm first; one that is not a number is larger than any."""
    return sorted(rows, key=lambda row: -np.nan_to_num(row.norm, nan=np.inf, posinf=np.inf))


def unusual(rows, usual_losses):
    """The rows that differ from the others: by a norm of UNUSUAL_NORM times the median, or by their loss.

    usual_losses  with which losses are compared: those of the step before, say
    """
    median, median_norm = np.median(usual_losses), np.median([row.norm for row in rows if np.isfinite(row.norm)] or [0.0])
    most = median + UNUSUAL * max(DEVIATION * np.median(np.abs(usual_losses - median)), 0.01 * abs(median))
    return [row for row in rows if not (row.loss <= most and row.norm <= UNUSUAL_NORM * median_norm)]


def shown_text(row, encoding):
    """The beginning of a row: as text, or as token numbers without an encoding."""
    tokens = row.inputs[:TEXT_TOKENS].tolist()
    if encoding is None:
        return " ".join(map(str, tokens))
    known = [token for token in tokens if token < encoding.n_vocab]
    return repr(encoding.decode(known))
