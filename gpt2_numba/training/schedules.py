"""Learning-rate schedules: the size of AdamW's steps as a function of the progress of the run.

Every schedule but `constant` starts with a linear warm-up: in the first steps AdamW's averages are too noisy for full steps, which would
spoil the fresh weights. Then, with floor = final_fraction * peak:

    cosine    half a cosine wave from peak down to floor          (Loshchilov & Hutter 2016, arXiv:1608.03983)
    linear    a straight line from peak down to floor
    wsd       "warm-up, stable, decay": peak until 4/5 of the run, then 1 - sqrt(progress) down to floor
              (Hägele et al. 2024, arXiv:2405.18392); a run can be extended from any step before the decay
    constant  peak from the first step to the last, without a warm-up (as in llm.c)
"""

import math

from gpt2_numba.errors import UserError

SCHEDULES = ("cosine", "linear", "constant", "wsd")


def learning_rate(schedule, step, max_steps, peak, warmup_steps, final_fraction):
    """The learning rate of one training step.

    schedule        one of SCHEDULES
    step            the step about to be taken, counted from 0: 0 <= step < max_steps
    max_steps       steps in the whole run
    peak            the largest learning rate
    warmup_steps    steps of the linear warm-up; the last one is at the peak
    final_fraction  rate at the end of the decay, as a fraction of the peak

    Returns a Python float. Raises UserError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"the learning-rate schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}: if in doubt, take cosine")
    if schedule == "constant":
        return peak
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps  # step + 1, so that the first step is not wasted at a rate of 0
    floor = final_fraction * peak
    return floor + _remaining(schedule, step, max_steps, warmup_steps) * (peak - floor)


def _remaining(schedule, step, max_steps, warmup_steps):
    """The fraction of the way from peak to floor still to go: 1 at the start of the decay, 0 at max_steps."""
    decay_start = warmup_steps
    if schedule == "wsd":
        decay_start = max_steps * 4 // 5  # in integers: 0.8 * max_steps could round to just below the intended step
        if step < decay_start:
            return 1.0
    progress = (step - decay_start) / (max_steps - decay_start)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1.0 - progress
    return 1.0 - math.sqrt(progress)
