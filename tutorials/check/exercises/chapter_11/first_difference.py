"""11_first_difference: the first element, of the first array, whose bits differ."""

import copy

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

NAMES = "encoded", "ln1", "qkv", "tokens", "norm", "att"


def recording(random):
    """Arrays of several types and dimensions, with the same NaN, zero and infinity in each of the real ones."""
    arrays = (random.standard_normal((3, 5)), random.standard_normal((2, 3, 4)), random.standard_normal(7))
    arrays = [array.astype(np.float32) for array in arrays] + [random.integers(100, size=(2, 6)).astype(np.int32)]
    arrays += [random.standard_normal((4, 2)), random.standard_normal((2, 2, 2, 3)).astype(np.float32)]
    for array in arrays:
        if array.dtype.kind == "f":
            array.reshape(-1)[:3] = np.nan, 0.0, np.inf
    return [list(pair) for pair in zip(NAMES, arrays)]


# What differs: the number of the array, the index, and how: "much", "last" (one ulp), "zero" (-0.0 for 0.0), "NaN" (one with other bits).
CASES = {
    "an element that is far off": ((1, (1, 0, 2), "much"), (4, (1, 1), "much")),
    "nothing differs": (),
    "a zero with another sign": ((0, (0, 1), "zero"), (2, (4,), "last")),
    "a NaN with other bits": ((2, (0,), "NaN"), (5, (1, 1, 1, 1), "last")),
    "two elements of one array": ((0, (2, 1), "last"), (0, (1, 3), "last")),  # in another order of memory the second one comes later
    "an array of integers": ((3, (1, 4), "last"),),
    "an array of float64": ((4, (3, 0), "last"),),
    "the last element": ((5, (1, 1, 1, 2), "last"),),
}


def arguments(random, case):
    one = [(name, array) for name, array in recording(random)]
    other = copy.deepcopy(one)
    for which, index, how in CASES[case]:
        array = other[which][1]
        if how == "much":
            array[index] += 1
        elif how == "zero":
            array[index] = -0.0
        elif how == "NaN":
            array.view(f"u{array.itemsize}")[index] ^= 1
        else:
            array[index] = np.nextafter(array[index], array.dtype.type(9)) if array.dtype.kind == "f" else array[index] + 1
    return {"one": one, "other": other}


def found(one, other, differ=lambda a, b: a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}"), order="C", last=False):
    pairs = list(zip(one, other))
    for (name, a), (_, b) in reversed(pairs) if last else pairs:
        places = np.flatnonzero(differ(a, b).ravel(order))
        if places.size:
            return {"return": (name, tuple(int(i) for i in np.unravel_index(places[0], a.shape, order=order)))}
    return {"return": None}


BITS = "a.view(bits) != b.view(bits)"

EXERCISE = host_exercise(
    function="first_difference",
    arguments=arguments,
    reference=found,
    sizes=tuple({"case": case} for case in CASES),
    hints={
        "": (
            'Go through both lists at once, zip(one, other). For each pair of arrays: where does a.view("u4") != b.view("u4")?',
            "np.flatnonzero(...)[0] is the first place, counted through the memory; np.unravel_index(place, a.shape) makes it an index.",
            'float64 has eight bytes: view(f"u{a.itemsize}").',
        ),
        "error": (
            "A view needs the right number of bytes: 8 for float64. And np.flatnonzero of arrays that agree is empty: it has no [0].",
        ),
        "not written": ("It returns None, but something differs. Is every array looked at, and each of its elements?",),
    },
    mistakes=(
        Mistake(
            lambda one, other: found(one, other, differ=lambda a, b: a != b),
            "That compares numbers: NaN != NaN is True, though the bits agree, and 0.0 != -0.0 is False, though they differ.",
        ),
        Mistake(
            lambda one, other: found(one, other, differ=lambda a, b: ~((a == b) | (a != a) & (b != b))),
            "NaN is taken care of. But 0.0 and -0.0 are equal as numbers, and their bits differ; and two NaN may have different bits.",
        ),
        Mistake(
            lambda one, other: found(one, other, differ=lambda a, b: ~np.isclose(a, b, equal_nan=True)),
            "Close is not equal: the last bit counts.",
        ),
        Mistake(lambda one, other: found(one, other, last=True), "That is the last array that differs; wanted is the first."),
        Mistake(lambda one, other: found(one, other, order="F"), "The last index runs fastest: (1, 3) comes before (2, 1)."),
    ),
    wrong=(
        Wrong("numbers", {BITS: "a != b"}, "value", "compares numbers"),
        Wrong("numbers and NaN", {BITS: "~((a == b) | (a != a) & (b != b))"}, "value", "two NaN may"),
        Wrong("array_equal", {BITS: "np.array([not np.array_equal(a, b, equal_nan=True)])"}, "value"),
        Wrong("close", {BITS: "~np.isclose(a, b, equal_nan=True)"}, "not written", "Close is not equal"),
        Wrong("four bytes for all", {'f"u{a.itemsize}"': '"u4"'}, "error", "right number of bytes"),
        Wrong("the last one", {"in zip(one, other)": "in list(zip(one, other))[::-1]"}, "value", "wanted is the first"),
        Wrong("columns first", {BITS: "(a.view(bits) != b.view(bits)).T", "places[0], a.shape)": "places[0], a.shape[::-1])[::-1]"},
            "value", "runs fastest"),
        Wrong("a flat index", {"tuple(int(i) for i in np.unravel_index(places[0], a.shape))": "(int(places[0]),)"}, "value"),
    ),
)  # fmt: skip
