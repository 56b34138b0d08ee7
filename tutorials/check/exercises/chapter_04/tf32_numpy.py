"""04_tf32_numpy: rounding to nearest, on the bits of a float32."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

STEP, HALF = np.uint32(0x2000), np.uint32(0x1000)
# Ties, the largest number below a tie, the largest finite one, which becomes infinity, infinity, and a NaN whose bits are 1 but for the sign.
SPECIAL = np.array([0x3F801000, 0x3F803000, 0xBF801000, 0x3F800FFF, 0x3FFFF000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0x80000001],
    np.uint32).view(np.float32)  # fmt: skip


def arguments(random, N):
    spread = random.standard_normal(N) * 10.0 ** random.integers(-30, 30, N)
    return {"values": np.concatenate([spread.astype(np.float32), SPECIAL])}


def from_bits(change):
    """A function of values, from one of their bits; NaN stays."""

    def changed(values):
        return np.where(np.isnan(values), values, (change(values.view(np.uint32))).view(np.float32))

    return changed


cut_off = from_bits(lambda bits: bits & ~(STEP - np.uint32(1)))
nearest = from_bits(lambda bits: (bits + HALF) & ~(STEP - np.uint32(1)))
nearest_even = from_bits(lambda bits: (bits + HALF - np.uint32(1) + (bits // STEP & np.uint32(1))) & ~(STEP - np.uint32(1)))
always_up = from_bits(lambda bits: (bits + STEP) & ~(STEP - np.uint32(1)))
to_bfloat16 = from_bits(lambda bits: (bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000))


def to_float16(values):
    """What is computed by way of float16."""
    with np.errstate(over="ignore"):
        return {"return": values.astype(np.float16).astype(np.float32)}


def nan_lost(values):
    """What is computed if NaN is rounded like a number."""
    return {"return": ((values.view(np.uint32) + HALF) & ~(STEP - np.uint32(1))).view(np.float32)}


ROUND = "(bits + np.uint32(0x1000)) & ~UNUSED"

EXERCISE = host_exercise(
    function="round_to_tf32",
    arguments=arguments,
    reference=lambda values: {"return": nearest(values)},
    sizes=({"N": 1}, {"N": 33}, {"N": 300}),
    tolerance=0,
    hints={
        "": (
            "bits = values.view(np.uint32). Which bits must be 0 in the end? UNUSED has them, and & ~UNUSED makes them 0.",
            "That alone cuts off. Half of a step is the highest of the 13 bits, 0x1000: add it before you cut.",
            "np.isnan(values) says where NaN must stay; np.where(condition, these, those) chooses.",
        ),
        "input": ("`values` is only to be read: bits += ... changes it, since a view is the same memory. bits + ... is new.",),
        "value": (
            "Compare 1.0004882812 (bits 0x3F801000), a tie: the step above is 1.0009765625. And the largest float32 becomes infinity.",
        ),
    },
    mistakes=(
        Mistake(
            nan_lost, "Only NaN is wrong: it is no number to be rounded, and adding to its bits makes something else of it. Let it stay."
        ),
        Mistake(
            lambda values: {"return": cut_off(values)},
            "The last bits are cut off, so every number becomes smaller: add half of a step first.",
        ),
        Mistake(  # these two differ by less than the comparison with a mistake allows: one hint for both
            lambda values: {"return": nearest_even(values)},
            "Ties go toward 0 here, or to the even neighbour; TF32 takes the one farther from 0. Half of a step is 0x1000, not 0xFFF.",
        ),
        Mistake(
            to_float16,
            "float16 has 10 bits of mantissa, too, but 5 of exponent: large numbers become infinity, small ones 0. Work on the bits.",
        ),
        Mistake(
            lambda values: {"return": always_up(values)}, "That adds a whole step before cutting off; to the nearest takes half of one."
        ),
        Mistake(
            lambda values: {"return": to_bfloat16(values)},
            "That is bfloat16, with 7 bits of mantissa: only 13 bits are cut off here, not 16.",
        ),
    ),
    wrong=(
        Wrong("cut off", {ROUND: "bits & ~UNUSED"}, "value", "cut off"),
        Wrong(
            "ties to even", {"np.uint32(0x1000)": "np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))"}, "value", "even neighbour"
        ),
        Wrong("a whole step", {"0x1000": "0x2000"}, "value", "a whole step"),
        Wrong("bfloat16", {ROUND: "(bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)"}, "value", "bfloat16"),
        Wrong("ties toward 0", {"0x1000": "0xFFF"}, "value", "toward 0"),
        Wrong(
            "float16",
            {
                "    return np.where(np.isnan(values), values, rounded.view(np.float32))": "    with np.errstate(over='ignore'):\n"
                "        return values.astype(np.float16).astype(np.float32)"
            },
            "value",
            "float16",
        ),
        Wrong(
            "NaN is rounded, too",
            {"np.where(np.isnan(values), values, rounded.view(np.float32))": "rounded.view(np.float32)"},
            "value",
            "Only NaN",
        ),
        Wrong("float64", {"return np.where(": "return np.float64(1) * np.where("}, "value", ""),
        Wrong(
            "in place",
            {"rounded = (bits": "bits += np.uint32(0)\n    bits[0] ^= np.uint32(1)\n    rounded = (bits"},
            "input",
            "only to be read",
        ),
    ),
)
