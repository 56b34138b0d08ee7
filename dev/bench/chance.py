"""Is a figure one more of a sample, or off? For trainings that differ by nothing but roundings, and a figure of each of them.

Such trainings come apart: a difference in the last place of one weight grows until the losses of a late step differ by far more than any
rounding. No bound on rounding errors says how far. Runs of one program that differ by chance alone do: if another program differs from it
by its roundings alone, its run is one more draw from the same distribution. Let x_1 ... x_k be the figures of k runs, with mean x and
standard deviation s, and y the figure of the other program. y - x then has the variance (1 + 1/k) of a single figure, and

    (y - x) / (s sqrt(1 + 1/k))

follows Student's distribution with k - 1 degrees of freedom (for normally distributed figures). `allowance` is the largest |y - x| that
occurs by chance, but for a given probability. It depends on the k runs only, not on y.
"""

import math

import numpy as np


def student_quantile(outside, freedom):
    """The t that Student's distribution exceeds in absolute value with the probability `outside`.

    With t = sqrt(freedom) tan(angle) the density times dt becomes cos(angle)^(freedom - 1) up to a constant, on a finite interval, where
    the midpoints of 100,000 pieces are exact enough for any purpose here.
    """
    pieces = 100_000
    angles = (np.arange(pieces) + 0.5) / pieces * math.pi / 2
    weights = np.cos(angles) ** (freedom - 1)
    beyond = np.cumsum(weights[::-1])[::-1] / weights.sum()  # the share of the distribution of |t| from each angle on
    return math.sqrt(freedom) * math.tan(np.interp(-outside, -beyond, angles))


def allowance(sample, outside):
    """How far from the mean of `sample` one more draw may lie, exceeded with the probability `outside` only.

    sample  (k, ...) array: the figures of k >= 2 runs. Returns an array (...): student_quantile · s · sqrt(1 + 1/k).
    """
    sample = np.asarray(sample, np.float64)
    count = len(sample)
    return student_quantile(outside, count - 1) * sample.std(axis=0, ddof=1) * math.sqrt(1 + 1 / count)
