"""The sampler's generator against the C definition of xorshift64*, and sampling against the softmax."""

import math

import numpy as np
import pytest

from gpt2_numba.errors import UserError
from gpt2_numba.training.sampler import Xorshift64Star, sample_from_logits


@pytest.mark.parametrize(
    "seed, expected",
    [  # printed by a C program with uint64_t arithmetic
        (1337, [989205090, 818269915, 1335155955, 3876892996, 2941700015, 1322121497]),
        (2**64 - 1, [4180462053, 2415166680, 879531507]),
    ],
)
def test_bits_match_the_c_generator(seed, expected):
    generator = Xorshift64Star(seed)
    assert [generator.next_u32() for _ in expected] == expected


def test_coins_are_the_upper_24_bits():
    generator = Xorshift64Star(1337)
    assert [generator.next_coin(), generator.next_coin()] == [0.23031723499298096, 0.19051826000213623]  # C again


@pytest.mark.parametrize("seed", [0, -1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        Xorshift64Star(seed)


# Probabilities 1/8, 1/2, 0, 1/4, 1/8: exact in binary up to the rounding of the logarithms.
LOGITS = np.array([math.log(1), math.log(4), -200.0, math.log(2), math.log(1)], dtype=np.float32)


@pytest.mark.parametrize("coin, token", [(0.0, 0), (0.124, 0), (0.126, 1), (0.624, 1), (0.626, 3), (0.874, 3), (0.876, 4), (1 - 2**-24, 4)])
def test_the_coin_selects_the_token_whose_piece_it_falls_on(coin, token):
    assert sample_from_logits(LOGITS, coin) == token


def test_only_differences_of_logits_matter():
    shifted = LOGITS + np.float32(1000)  # exp(1000) is inf, in float64 as well
    for coin in (0.1, 0.5, 0.7, 0.9):
        assert sample_from_logits(shifted, coin) == sample_from_logits(LOGITS, coin)


def test_a_token_of_probability_zero_is_never_drawn():
    logits = np.array([-1e4, 0.0, -1e4], dtype=np.float32)  # exp(-1e4) is 0 in float64 as well
    assert sample_from_logits(logits, 0.0) == 1
    assert sample_from_logits(logits, 1 - 2**-24) == 1


def test_token_frequencies_match_the_softmax():
    generator = Xorshift64Star(1337)
    draws = 4000
    counts = np.bincount([sample_from_logits(LOGITS, generator.next_coin()) for _ in range(draws)], minlength=5)
    # Five standard deviations of a binomial proportion, at p = 1/2, where it is widest: 5 * sqrt(p * (1 - p) / draws).
    np.testing.assert_allclose(counts / draws, [0.125, 0.5, 0, 0.25, 0.125], atol=5 * 0.5 / math.sqrt(draws))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_are_reported_in_one_line(broken):
    logits = LOGITS.copy()
    logits[3] = broken
    with pytest.raises(UserError, match="got 1 of 5 that are not"):
        sample_from_logits(logits, 0.5)
