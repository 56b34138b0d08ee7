"""Outlier detector: how unusual is a step's loss or gradient norm, in standard deviations?

A batch of garbage text shows as a jump of the loss or of the gradient norm; a trainer that sees it can skip the update. The measure is the
z-score against a sliding window of the latest values: (value - mean) / standard deviation.
"""

import math
from collections import deque


class OutlierDetector:
    """A sliding window over the latest values, in float64."""

    def __init__(self, window=128):
        """window: length of the window, in values (one per step)."""
        self._values = deque(maxlen=window)

    def values(self):
        """The values in the window, oldest first; checkpoints store them."""
        return list(self._values)

    def load(self, values):
        """Replace the window by the values of another detector's."""
        self._values.clear()
        self._values.extend(values)

    def update(self, value):
        """Add one value to the window and return its z-score, a Python float.

        Infinity for a value that is infinite or NaN, which does not enter the window: there would be no scores until it has left it again.
        NaN while the window fills, 0 if all its values are equal. As in llm.c, the window already holds the value when the score is taken,
        so a single outlier among w values scores at most sqrt(w - 1), which is 11.3 for a window of 128.
        """
        if not math.isfinite(value):
            return math.inf
        window_was_full = len(self._values) == self._values.maxlen
        self._values.append(float(value))
        if not window_was_full:
            return math.nan

        # Two passes rather than E[x^2] - E[x]^2, which cancels when the deviation is small compared to the mean. fsum rounds only once: if
        # all values are equal, the mean is that value and the deviation exactly 0.
        mean = math.fsum(self._values) / len(self._values)
        squares = [(x - mean) * (x - mean) for x in self._values]
        deviation = math.sqrt(math.fsum(squares) / len(squares))
        if deviation == 0.0:
            return 0.0
        return (value - mean) / deviation
