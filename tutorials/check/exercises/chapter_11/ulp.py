"""11_ulp: the distance of two float32 in units in the last place."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

SMALLEST, LARGEST = np.float32(1e-45), np.finfo(np.float32).max
# Pairs: neighbours, on both sides of a power of two; across zero; the ends; and two that are more than 2**31 steps apart. They come first, in
# the order of the exercise's docstring, so that the number of a wrong element says which pair it is.
PAIRS = np.array(
    [(1, np.nextafter(np.float32(1), np.float32(2))), (1, np.nextafter(np.float32(1), np.float32(0))), (0.0, -0.0), (SMALLEST, -SMALLEST),
     (-0.0, SMALLEST), (LARGEST, np.inf), (-1, 1), (-2.5, -2.25), (-np.inf, np.inf)],
    np.float32,
)  # fmt: skip


def arguments(random, N):
    a = random.standard_normal(N).astype(np.float32)
    b = a.copy()
    for _ in range(N % 5 + 1):
        b = np.nextafter(b, np.float32(np.inf))
    b[::3] = random.standard_normal(len(b[::3]))
    return {"a": np.concatenate([PAIRS[:, 0], a]), "b": np.concatenate([PAIRS[:, 1], b])}


def distances(a, b, kind=np.int64, negative=True, zeros_apart=0):
    """negative: whether negative numbers are counted backwards, as they must be."""

    def numbered(values):
        bits = values.view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(2**31) - bits - zeros_apart, bits) if negative else bits

    return {"return": np.abs((numbered(a) - numbered(b)).astype(kind)).astype(np.int64)}


SUBTRACT = "np.abs(numbered(a) - numbered(b))"

EXERCISE = host_exercise(
    function="ulp_distance",
    arguments=arguments,
    reference=distances,
    sizes=({"N": 1}, {"N": 33}, {"N": 300}),
    tolerance=0,
    hints={
        "": (
            "a.view(np.int32) gives the bits as integers. For positive numbers, subtract them. What are the integers of -0.0 and of -1e-45?",
            "They are -2**31 and -2**31 + 1, and should become 0 and -1: a negative integer i becomes -2**31 - i. np.where chooses.",
            "Two numbers may be 4 billion steps apart, and an int32 ends at 2 billion: .astype(np.int64) before the subtraction.",
        ),
        "input": ("Both arrays are only to be read, and a view is the same memory: write into new arrays.",),
    },
    mistakes=(
        Mistake(
            lambda a, b: distances(a, b, kind=np.int32), "The difference has overflowed: make the integers int64 before you subtract them."
        ),
        Mistake(
            lambda a, b: distances(a, b, negative=False),
            "Right for two positive numbers. But the integers of negative ones run the wrong way, and far from those of positive ones.",
        ),
        Mistake(lambda a, b: distances(a, b, zeros_apart=1), "0.0 and -0.0 are one number here, so -1e-45 is one step from both."),
        Mistake(
            lambda a, b: {"return": distances(a, b)["return"] * np.where(a < b, -1, 1)},
            "A distance is not negative: take the absolute value.",
        ),
        Mistake(
            lambda a, b: {"return": distances(np.abs(a), np.abs(b))["return"]},
            "The signs have been lost: -1 and 1 are far from each other.",
        ),
    ),
    wrong=(
        Wrong("in int32", {".astype(np.int64)  # differences of two int32 need 33 bits": ""}, "value", "overflowed"),
        Wrong("the bits as they are", {"np.where(bits < 0, -(2**31) - bits, bits)": "bits"}, "value", "wrong way"),
        Wrong("two zeros", {"-(2**31) - bits, bits": "-(2**31) - bits - 1, bits"}, "value", "one number here"),
        Wrong("with a sign", {SUBTRACT: "numbered(a) - numbered(b)"}, "value", "not negative"),
        Wrong("without signs", {SUBTRACT: "np.abs(numbered(np.abs(a)) - numbered(np.abs(b)))"}, "value", "signs have been lost"),
        Wrong("divided by a spacing", {SUBTRACT: "(np.abs(a - b) / np.spacing(np.abs(a))).astype(np.int64)"}, "value"),
        Wrong("in place", {"bits = values": "values += np.float32(1)\n        bits = values"}, "input", "only to be read"),
    ),
)
