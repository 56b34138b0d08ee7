"""Learning-rate schedules against values worked out by hand and the shape that each one promises."""

import math

import pytest

from gpt2_numba.errors import UserError
from gpt2_numba.training.schedules import SCHEDULES, learning_rate

# A run of 55 steps, 5 of them warm-up, from 0.01 down to a tenth of it.
RUN = dict(max_steps=55, peak=0.01, warmup_steps=5, final_fraction=0.1)

# A few float64 operations on values of about 1.
ROUNDING = 1e-14


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_warmup_rises_in_equal_steps_to_the_peak(schedule):
    rates = [learning_rate(schedule, step, **RUN) for step in range(6)]
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01, 0.01], rel=ROUNDING, abs=0)


@pytest.mark.parametrize(
    "schedule, step, expected",
    [
        ("cosine", 30, 0.0055),  # half the decay: half-way between 0.01 and 0.001
        ("cosine", 15, 0.001 + 0.009 * (5 + math.sqrt(5)) / 8),  # a fifth of it: (1 + cos 36 deg) / 2
        ("linear", 30, 0.0055),
        ("linear", 15, 0.0082),
        ("wsd", 30, 0.01),
        ("wsd", 44, 0.01),  # 4/5 of 55 steps: the decay begins here ...
        ("wsd", 45, 0.001 + 0.009 * (1 - math.sqrt(1 / 11))),  # ... over 11 steps
        ("constant", 0, 0.01),  # no warm-up either
        ("constant", 54, 0.01),
    ],
)
def test_values_worked_out_by_hand(schedule, step, expected):
    assert learning_rate(schedule, step, **RUN) == pytest.approx(expected, rel=ROUNDING, abs=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_decay_never_rises_and_ends_at_the_floor(schedule):
    rates = [learning_rate(schedule, step, **RUN) for step in range(5, 56)]
    assert all(later <= earlier for earlier, later in zip(rates, rates[1:]))
    assert rates[-1] == pytest.approx(0.001, rel=ROUNDING, abs=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_runs_without_warmup_start_at_the_peak(schedule):
    assert learning_rate(schedule, 0, max_steps=7, peak=0.3, warmup_steps=0, final_fraction=0.0) == 0.3


def test_a_run_can_be_all_warmup():
    assert learning_rate("cosine", 2, max_steps=3, peak=0.3, warmup_steps=3, final_fraction=0.0) == 0.3


def test_the_error_names_an_unknown_schedule():
    with pytest.raises(UserError, match="cosine, linear, constant, wsd, got 'triangle'"):
        learning_rate("triangle", 0, **RUN)
