"""06_find_the_rescale: a running sum that is not corrected when a larger score comes."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def weights(score):
    """Causal softmax, (T, T)."""
    score = np.where(np.tri(len(score), dtype=bool), score, -np.inf)
    exponentials = np.exp(score - score.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def bound(score, v):
    """Exponents are rounded in proportion to the scores, sums by each of their additions and corrections."""
    T = len(v)
    return UNIT * (8 * np.abs(score).max() + 4 * T + 16) * (weights(score) @ np.abs(v))


def tile_by_tile(score, v, add, corrections=1):
    """{"out": (T,)} of a kernel whose total becomes add(total, rescale, the tile's terms), for usual mistakes.

    corrections     how often `weighted` is multiplied by rescale
    """
    out = np.empty(len(v))
    for t in range(len(v)):
        largest, total, weighted = -1e38, 0.0, 0.0
        for first in range(0, t + 1, 4):
            tile = score[t, first : min(first + 4, t + 1)]
            previous, largest = largest, max(largest, tile.max())
            rescale, exponentials = np.exp(previous - largest), np.exp(tile - largest)
            total = add(total, rescale, exponentials.sum())
            weighted = weighted * rescale**corrections + exponentials @ v[first : first + len(tile)]
        with np.errstate(divide="ignore"):
            out[t] = weighted / total
    return {"out": out}


MISSING = "            # your lines:\n            total *= rescale\n"
PLACE = "            # your lines:\n"
FIRST_PLACE, LAST_PLACE = (
    "            # end of your lines\n            end = min",
    "            # end of your lines\n        out[t]",
)

EXERCISE = Exercise(
    function="weighted_mean",
    arrays=lambda random, T: {
        "out": written(T),
        "score": read(4 * random.standard_normal((T, T))),
        "v": read(2 + random.standard_normal(T)),
    },
    reference=lambda score, v: {"out": weights(score) @ v},
    error=lambda score, v: {"out": bound(score, v)},
    sizes=({"T": 6}, {"T": 1}, {"T": 4}, {"T": 5}, {"T": 33}, {"T": 40}),
    least=Counts(global_reads=80, global_writes=1),
    taken=Counts(global_reads=120, global_writes=1),
    hints={
        "": (
            "Rows 0 to 3 are right: they see one tile. In a wrong row, which tile has the largest score?",
            "When a tile brings a larger score, everything added before was relative to the old one. `weighted` is corrected. What else was added up?",
            "`total` must be multiplied by `rescale`, too: once per tile, after `rescale` is known, and before this tile's exponentials are added.",
        ),
        "error": ("`rescale` is known only after the tile's largest score has been found: which of the places come after that?",),
    },
    mistakes=(
        Mistake(lambda score, v: tile_by_tile(score, v, lambda total, rescale, terms: (total + terms) * rescale),
            "Now this tile's terms are corrected, too, though they are relative to the new largest already. Which place comes before them?"),
        Mistake(lambda score, v: tile_by_tile(score, v, lambda total, rescale, terms: terms),
            "The earlier tiles' terms are lost. They were right but for a factor: which?"),
        Mistake(lambda score, v: tile_by_tile(score, v, lambda total, rescale, terms: total + terms, corrections=2),
            "`weighted` is corrected already, and now twice. What else has been added up since the first tile?"),
    ),
    wrong=(
        Wrong("as it was given", {MISSING: PLACE}, "value", "Rows 0 to 3"),
        Wrong("after the tile's own terms", {MISSING: PLACE, LAST_PLACE: "            total *= rescale\n" + LAST_PLACE}, "value", "comes before them"),
        Wrong("before it is known", {MISSING: PLACE, FIRST_PLACE: "            total *= rescale\n" + FIRST_PLACE}, "error", "known only after"),
        Wrong("weighted once more", {"total *= rescale": "weighted *= rescale"}, "value", "now twice"),
        Wrong("upside down", {"total *= rescale": "total /= rescale"}, "value"),
        Wrong("begun again", {"total *= rescale": "total = ZERO"}, "value", "are lost"),
        Wrong("the mask off by one", {"total *= rescale": "total *= rescale\n            end = min(first + TILE, t)"}, "value"),
    ),
)  # fmt: skip
