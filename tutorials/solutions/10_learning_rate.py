"""Up in a line, down in half a cosine wave.

`learning_rate(step, max_steps, peak, warmup_steps, floor)` is the learning rate of step number `step`, counted from 0, of a run that has
`max_steps` of them:

    warm-up     the first `warmup_steps` steps, in a straight line that would be 0 one step before the first. The last of them is at `peak`,
                the others below it.
    decay       all steps after it. progress is 0 in the first step after the warm-up, and would be 1 in the step after the last one, number
                max_steps. Over it, the rate falls from `peak` to `floor` in half a cosine wave:

                floor + ½ (1 + cos(π progress)) (peak - floor)

So two steps are at the peak, and none is quite at the floor. On paper, with peak = 1, floor = 0, warmup_steps = 2, max_steps = 6: ½, 1, 1,
0.854, ½, 0.146. There may be no warm-up at all (0), or nothing else (warmup_steps = max_steps). `rates` is given: it calls your function for
each step of a run.

    python -m tutorials.check 10_learning_rate
"""

import math

import numpy as np


def learning_rate(step, max_steps, peak, warmup_steps, floor):
    """The learning rate of one step, 0 <= step < max_steps: a number."""
    # your lines:
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)
    # end of your lines


def rates(max_steps, peak, warmup_steps, floor):
    """Those of a whole run, (max_steps,)."""
    return np.array([learning_rate(step, max_steps, peak, warmup_steps, floor) for step in range(max_steps)], dtype=float)
