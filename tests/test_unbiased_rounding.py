"""Stochastic rounding by its statistics: it is right on average, and its errors know nothing of each other.

test_gpu_primitives.py compares single values with the definition, bit by bit; a definition that is biased would pass there. Here many
values are rounded by the function that the kernels call (in the simulator, or on a GPU). Each test has a size: it is a number of standard
deviations that chance exceeds in one of 10,000 sequences of noise, or less, counting all of the test's comparisons. The noise is fixed, so
a test that passes once passes always; and each statistic is shown wrong roundings, which it must reject.
"""

import math

import numpy as np
import pytest
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, gpu_available, synchronize, to_device
from gpt2_numba.gpu.memory_access import float_of_bits
from gpt2_numba.gpu.stochastic_rounding import round_to_bfloat16_stochastically, squirrel_noise
from gpt2_numba.integers import ceil_div
from gpt2_numba.training.resume import RunState

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 turns off the simulator")

COUNT = 1024 if SIMULATING else 1 << 20  # roundings of one value
CUT_OFF = 1 << 16  # a float32 has 16 bits more than a bfloat16
PER_THREAD = 8
ROWS_APART = (1, 2, 8, 32, 64, 257, 768, 1600, 3072, 4800, 6400, 50304)  # elements: neighbours, widths of warps and rows

# The upper 16 bits of values that are rounded: the bfloat16 below them (towards zero). Powers of two, where the distance to the next one
# changes; the largest numbers before them; ordinary weights; the smallest normal number, and denormals.
BELOW = {
    "1": 0x3F80, "before 1": 0x3F7F, "before 2": 0x3FFF, "0.02": 0x3CA3, "65280": 0x477F, "smallest normal": 0x0080,
    "largest denormal": 0x007F, "denormal": 0x0013, "zero": 0x0000,
}  # fmt: skip
PARTS = (1, 0.1, 0.5, 0.9, -1)  # of the distance to the next one, as a fraction; 1 and -1: the least, in units of 2^-16, and the most


@cuda.jit
def round_all_kernel(out, patterns, seeds):
    """out[s, i] = the float32 with the bits patterns[i], rounded with the noise of index i and seeds[s]."""
    start = cuda.grid(1) * PER_THREAD
    for k in range(start, min(start + PER_THREAD, out.size)):
        s, i = k // out.shape[1], k % out.shape[1]
        out[s, i] = round_to_bfloat16_stochastically(float_of_bits(patterns[i]), i, seeds[s])


def rounded(patterns, seeds=(0,)):
    """The bits of float32 `patterns`, rounded with each of the seeds: (seeds, values) uint32."""
    out = to_device(np.full((len(seeds), len(patterns)), np.nan, np.float32))
    inputs = to_device(np.asarray(patterns, np.uint32)), to_device(np.asarray(seeds, np.uint64))
    round_all_kernel[ceil_div(out.size, 32 * PER_THREAD), 32, compute_stream()](out, *inputs)
    host = out.copy_to_host(stream=compute_stream())
    synchronize()
    return host.view(np.uint32)


def ups(patterns, results):
    """Where values were rounded away from zero: 0 or 1. Fails if one has become anything but one of its two neighbours."""
    steps = (results >> 16).astype(np.int64) - (np.asarray(patterns, np.uint32) >> 16).astype(np.int64)
    assert not (results & 0xFFFF).any() and set(np.unique(steps)) <= {0, 1}
    return steps


def normal_deviations(outside):
    """The number of standard deviations that a normal figure exceeds, up or down, with the probability `outside`."""
    low, high = 0.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) > outside else (low, middle)
    return high


# ------------------------------------------------------------------------------------------------------------------- bias


def low_bits(part):
    """The sixteen bits that are cut off a value this far between its neighbours."""
    return part % CUT_OFF if isinstance(part, int) else round(part * CUT_OFF)


def bias(steps, part):
    """How many standard deviations the count of `steps` up is from its mean, where each has the probability part / 2^16.

    n tosses of a coin of probability p have the mean np and the variance np(1 - p). Where fewer than ten are expected up (or down), the
    count is Poisson's, whose tail is longer: it is compared with its own standard deviation after the square root that makes it normal.
    """
    n, p = len(steps), part / CUT_OFF
    count = steps.sum()
    if n * min(p, 1 - p) < 10:
        rare, expected = (count, n * p) if p < 0.5 else (n - count, n * (1 - p))
        return 2 * (math.sqrt(rare + 3 / 8) - math.sqrt(expected + 3 / 8))
    return (count - n * p) / math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("name", BELOW)
@pytest.mark.parametrize("sign", [0, 0x8000], ids=["positive", "negative"])
def test_rounding_is_unbiased_wherever_a_value_lies(name, sign):
    limit = normal_deviations(1e-4 / len(PARTS))
    for part in map(low_bits, PARTS):
        pattern = (BELOW[name] | sign) << 16 | part
        patterns = np.full(COUNT, pattern, np.uint32)
        deviations = bias(ups(patterns, rounded(patterns, seeds=[13])[0]), part)
        assert abs(deviations) < limit, f"{pattern:#010x}: {deviations:.1f} standard deviations"


def test_small_parts_count():
    """255 of 65,536 parts: noise without its lower byte would never round them up."""
    patterns = np.full(4 * COUNT, 0x3CA300FF, np.uint32)
    deviations = bias(ups(patterns, rounded(patterns, seeds=[13])[0]), 0xFF)
    assert abs(deviations) < normal_deviations(1e-4) < abs(bias(np.zeros(len(patterns), int), 0xFF))


def test_the_mean_of_a_binade_s_values_is_kept():
    """Values at all places between neighbours, and of both signs: the sum of their errors, in units in the last place."""
    generator = np.random.default_rng(0)
    patterns = (generator.choice([0x3C80, 0xBC80], COUNT).astype(np.uint32) << 16) + generator.integers(0, 1 << 23, COUNT, np.uint32) % (
        1 << 22
    )
    up = ups(patterns, rounded(patterns, seeds=[4])[0])
    parts = (patterns & 0xFFFF) / CUT_OFF
    signs = np.where(patterns >> 31, -1, 1)
    for errors in (up - parts, signs * (up - parts)):  # away from zero, and upwards
        assert abs(errors.sum()) < normal_deviations(1e-4 / 2) * math.sqrt((parts * (1 - parts)).sum())


WRONG = {
    "to nearest": lambda low, noise: low >= CUT_OFF // 2,
    "towards zero": lambda low, noise: np.zeros_like(low, bool),
    "with fifteen bits of noise": lambda low, noise: low + noise % (CUT_OFF // 2) >= CUT_OFF,
    "with the noise's upper byte only": lambda low, noise: low + (noise & 0xFF00) >= CUT_OFF,
    "with noise that is one bit too even": lambda low, noise: low + (noise | 0x8000) >= CUT_OFF,
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_roundings_are_found_to_be_biased(how):
    """The upper byte's noise makes an error of 2^-9 of a unit on average, which takes a million values to be seen."""
    count = 1 << 20 if "byte" in how else 2048
    noise = (squirrel_noise(np.arange(count, dtype=np.uint64), np.uint64(13)) & np.uint64(0xFFFF)).astype(np.int64)
    parts = [low_bits(part) for part in (0.1, 0.5, 0.9)] + [low_bits(255)]
    found = [abs(bias(WRONG[how](np.full(count, part), noise).astype(int), part)) for part in parts]
    right = [abs(bias((part + noise >= CUT_OFF).astype(int), part)) for part in parts]
    limit = normal_deviations(1e-4 / len(parts))
    assert max(found) > limit > max(right)


# ---------------------------------------------------------------------------------------------------------- noise and independence


def noise_of(count, seed):
    """The sixteen bits that rounding adds to elements 0 to count - 1."""
    return (squirrel_noise(np.arange(count, dtype=np.uint64), np.uint64(seed)) & np.uint64(0xFFFF)).astype(np.int64)


def chi_square_deviations(values, cells):
    """How far the counts of `values` (0 to 2^16 - 1) in equal cells are from even: chi-square minus its mean, in standard deviations."""
    counts = np.bincount(values * cells // CUT_OFF, minlength=cells)
    expected = len(values) / cells
    chi_square = np.square(counts - expected).sum() / expected
    return (chi_square - (cells - 1)) / math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("seed", [0, 1, 13371337, 2**32 - 1])
def test_noise_is_even(seed):
    """With 256 cells chi-square is nearly normal. Neither too uneven nor, as a mere counter would be, too even."""
    noise = noise_of(1 << 18, seed)
    for values in (noise, (noise % 256) * 256):  # all sixteen bits by their upper byte; and the lower byte
        assert abs(chi_square_deviations(values, 256)) < 5
    assert chi_square_deviations(np.arange(1 << 18) % CUT_OFF, 256) < -5
    assert chi_square_deviations(noise | 0x0100, 256) > 5


def correlation(a, b):
    """Pearson's, in standard deviations of that of unrelated values, 1/sqrt(n)."""
    return np.corrcoef(a, b)[0, 1] * math.sqrt(len(a))


def test_neighbours_are_rounded_independently():
    """In a row, a column or a warp: for elements at fixed distances, in every combination of their lower and upper bytes."""
    noise = noise_of(1 << 18, 7)
    pairs = [(noise[:-apart], noise[apart:]) for apart in ROWS_APART]
    figures = [correlation(f(a), g(b)) for a, b in pairs for f in (upper, lower) for g in (upper, lower)]
    assert max(map(abs, figures)) < normal_deviations(1e-4 / len(figures))
    counter = noise_of(1 << 18, 0) // 2 + np.arange(1 << 18) % CUT_OFF // 2
    assert correlation(counter[:-1], counter[1:]) > 100


def upper(noise):
    return noise // 256


def lower(noise):
    return noise % 256


def seeds_of_a_run(count):
    """The seeds of its first steps."""
    state = RunState()
    return [state.next_rounding_seed() for _ in range(count)]


def test_steps_are_rounded_independently():
    """The same elements in 32 steps of a run: every pair of steps."""
    noise = [noise_of(1 << 14, seed) for seed in seeds_of_a_run(32)]
    figures = [correlation(a, b) for i, a in enumerate(noise) for b in noise[:i]]
    assert max(map(abs, figures)) < normal_deviations(1e-4 / len(figures))
    assert correlation(noise[0], noise[0]) > 100


def test_a_weight_s_errors_do_not_add_up():
    """Forty steps of a run, 256 weights: the sum of a weight's errors has the variance of independent ones, and so has a step's sum."""
    generator = np.random.default_rng(3)
    weights, steps = (256, 40) if SIMULATING else (1 << 16, 40)
    patterns = (0x3CA30000 + generator.integers(0, 1 << 20, weights)).astype(np.uint32)
    parts = (patterns & 0xFFFF) / CUT_OFF
    errors = ups(patterns, rounded(patterns, seeds=seeds_of_a_run(steps))) - parts
    for sums, variances in ((errors.sum(axis=0), steps * parts * (1 - parts)), (errors.sum(axis=1), (parts * (1 - parts)).sum())):
        squares = np.square(sums) / np.maximum(variances, 1e-3)  # each with the mean 1 and the variance 2
        assert abs(squares.sum() - len(squares)) < 5 * math.sqrt(2 * len(squares))
        assert abs((sums / np.sqrt(np.maximum(variances, 1e-3))).sum()) < 4 * math.sqrt(len(sums))


def test_updates_below_a_unit_arrive_and_the_walk_is_as_long_as_predicted():
    """Without float32 copies the rounded weight itself goes on: steps of u units at a time, each rounded up with probability u.

    After S steps a weight has moved by S u units on average, with a variance of S u (1 - u). Rounding to nearest would not move it at all.
    """
    weights, steps, part = (256, 32, 0x2000) if SIMULATING else (1 << 16, 32, 0x2000)
    bits = np.full(weights, 0x3CA30000, np.uint32)
    for seed in seeds_of_a_run(steps):
        bits = rounded(bits + np.uint32(part), seeds=[seed])[0]
    moved, u = ((bits >> 16).astype(int) - 0x3CA3), part / CUT_OFF
    variance = steps * u * (1 - u)
    assert abs(moved.mean() - steps * u) < 4 * math.sqrt(variance / weights)
    assert abs(moved.var(ddof=1) / variance - 1) < 5 * math.sqrt(2 / weights)
