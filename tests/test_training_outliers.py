"""The outlier detector against the definition of the z-score, and on inputs that break a naive one."""

import math

import numpy as np
import pytest

from gpt2_numba.training.outliers import OutlierDetector


def test_no_score_until_the_window_is_full():
    detector = OutlierDetector()
    scores = [detector.update(step % 3) for step in range(129)]
    assert all(math.isnan(score) for score in scores[:128])
    assert math.isfinite(scores[128])


def test_the_window_includes_the_value_that_is_scored():
    detector = OutlierDetector(window=5)
    values = np.random.RandomState(7).normal(3.0, 0.5, size=17)
    scores = [detector.update(value) for value in values]
    for end in range(6, 18):
        window = values[end - 5 : end]
        # Two float64 sums of 5 values each, in different orders.
        assert scores[end - 1] == pytest.approx((window[-1] - window.mean()) / window.std(), abs=1e-12)


def test_a_single_outlier_in_a_window_of_w_scores_sqrt_w_minus_1():
    detector = OutlierDetector(window=10)
    for _ in range(10):
        detector.update(2.0)
    assert detector.update(50.0) == pytest.approx(3.0, rel=1e-14)  # sqrt(10 - 1), a few roundings off


def test_equal_values_score_zero():
    detector = OutlierDetector()
    scores = [detector.update(0.1) for _ in range(130)]  # 0.1 is no binary fraction: a sum with many roundings would be off
    assert scores[128:] == [0.0, 0.0]


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_value_that_is_not_finite_scores_infinity_and_does_not_enter_the_window(broken):
    detector = OutlierDetector(window=3)
    scores = [detector.update(value) for value in (broken, 1.0, 2.0, broken, 3.0, broken, 3.0)]
    assert scores[0] == scores[3] == scores[5] == math.inf
    assert math.isnan(scores[4])  # the window has only just been filled
    assert scores[6] == pytest.approx(math.sqrt(0.5), rel=1e-14)  # the window is 2, 3, 3: (3 - 8/3) / (sqrt(2) / 3)
