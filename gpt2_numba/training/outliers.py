"""Outlier detector: how unusual is this step's loss or gradient norm, measured in standard deviations?

A batch of garbage text shows as a sudden jump of the loss or of the gradient norm; a trainer that sees it can leave
the update out. The measure is the z-score against a sliding window of the latest values: (value - mean) / deviation.
"""

import math
from collections import deque


class OutlierDetector:
    """A sliding window over the latest values, in float64."""

    def __init__(self, window=128):
        """window: how many of the latest values (steps) a new one is judged by."""
        self._values = deque(maxlen=window)

    def values(self):
        """The values in the window, oldest first: what a checkpoint keeps."""
        return list(self._values)

    def load(self, values):
        """Go on from the values of another detector's window."""
        self._values.clear()
        self._values.extend(values)

    def update(self, value):
        """Take in one value and return its z-score, a Python float.

        NaN while the window fills (too little to judge by), 0 if all its values are equal. The window is updated first
        and the value judged against a window that holds it, as in llm.c: one outlier among w values can thus score
        at most sqrt(w - 1), which is 11.3 for a window of 128.
        """
        window_was_full = len(self._values) == self._values.maxlen
        self._values.append(float(value))
        if not window_was_full:
            return math.nan

        # Two passes rather than E[x^2] - E[x]^2, which cancels when the deviation is small beside the mean, and afresh
        # rather than by running sums, so that an infinite loss is forgotten when it leaves the window.
        # fsum rounds once: over equal values the mean is that value and the deviation exactly 0.
        mean = math.fsum(self._values) / len(self._values)
        squares = [(x - mean) * (x - mean) for x in self._values]
        deviation = math.sqrt(math.fsum(squares) / len(squares))
        if deviation == 0.0:
            return 0.0
        return (value - mean) / deviation
