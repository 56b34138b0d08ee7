"""Chapter 14: its exercises against the package that they explain, the sampler and the outlier detector."""

import numpy as np
import pytest

from gpt2_numba.training.outliers import OutlierDetector
from gpt2_numba.training.sampler import Xorshift64Star, choose_token
from gpt2_numba.training.speed import flops_per_token
from tutorials.check.exercises.chapter_14 import plan, spike, top_p

SEED = 14


@pytest.mark.parametrize("case", top_p.CASES)
def test_the_package_draws_from_the_nucleus_of_the_exercise(case):
    given = top_p.arguments(np.random.default_rng(SEED), case)
    expected = top_p.drawn_with(**given)["return"]
    coins, draws = Xorshift64Star(SEED), 2000
    drawn = [choose_token(given["logits"], coins.next_coin(), top_p=given["top_p"]) for _ in range(draws)]
    counts = np.bincount(drawn, minlength=len(expected))
    assert not counts[expected == 0].any()
    assert (np.abs(counts / draws - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 5 / draws).all()


@pytest.mark.parametrize("case", [size["case"] for size in spike.EXERCISE.sizes])
def test_the_scores_of_the_exercise_are_those_of_the_trainer(case):
    given = spike.arguments(np.random.default_rng(SEED), case)
    detector = OutlierDetector(given["window"])
    scores = [detector.update(value) for value in given["values"]]
    np.testing.assert_allclose(spike.scored(**given)["return"]["z"], scores, rtol=1e-12)


def test_equal_outliers_score_what_the_chapter_derives():
    """sqrt((w - k) / k) for the k-th of them, so 12 in a row are above a threshold of 3, and the thirteenth is not."""
    detector, w = OutlierDetector(128), 128
    for _ in range(w):
        detector.update(2.0)
    scores = [detector.update(5.0) for _ in range(13)]
    np.testing.assert_allclose(scores, [np.sqrt((w - k) / k) for k in range(1, 14)], rtol=1e-12)
    assert scores[11] > 3 > scores[12]


def test_a_run_of_the_exercise_costs_what_the_trainer_counts():
    size = plan.arguments(None, **plan.EXERCISE.sizes[-1])
    run = plan.planned(**size)["return"]
    for_a_token = flops_per_token(size["parameters"], size["L"], size["C"], size["T"])
    assert run["flop"] == pytest.approx(run["steps"] * size["batch_tokens"] * for_a_token)
