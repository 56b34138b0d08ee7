"""Which steps would the trainer skip?

values [r] (n,) are the losses of the steps of a run. Like the trainer (gpt2_numba/training/outliers.py), keep the latest `window` values.
At each step first the new value goes in (the oldest one goes out if there are more than `window`), and then, if the window was full before,
the value's z-score is taken: (value - mean) / deviation, both of the window with the new value in it; the deviation is the root of the mean
of the squared distances from the mean. Four rules more:

    until the window has been filled once there is no score: NaN. So the first score is that of value number window + 1
    if all values in the window are equal, the score is 0
    a value that is infinite or NaN has the score infinity, and does not enter the window
    a step is skipped if its score is larger than `threshold`; its value stays in the window all the same

Return {"z": array (n,) of scores, "skipped": list of the indices of the skipped steps}.

    python -m tutorials.check 14_spike
"""

import math
from collections import deque

import numpy as np


def spikes(values, threshold, window):
    """{"z": (n,), "skipped": [...]}."""
    latest, z = deque(maxlen=window), []  # a deque with a maxlen drops its oldest value by itself
    for value in values:
        finite = math.isfinite(value)  # neither infinite nor NaN
        # your lines:
        # end of your lines
    return {"z": np.array(z), "skipped": [step for step, score in enumerate(z) if score > threshold]}
