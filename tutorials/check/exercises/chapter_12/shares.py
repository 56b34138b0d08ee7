"""12_shares: cut every matrix into aligned parts, one for each process."""

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

UNIT = 8


def arguments(random, lengths, rank, ranks):
    return {"lengths": [int(length) for length in lengths.split(" and ")], "rank": rank, "ranks": ranks}


def cut(
    lengths, rank, ranks, unit=UNIT, within=False, unpacked=False, equal=False, first_ones=False, early=False, empty=True, fractions=False
):
    """The parts, or those of a usual mistake."""
    parts, local, matrix = [], 0, 0
    for length in lengths:
        first, last = (unit * (length // unit * r // ranks) for r in (rank, rank + 1))
        if equal:
            share = length // unit // ranks * unit
            first, last = share * rank, share * (rank + 1) if rank + 1 < ranks else length
        if first_ones:
            share, left_over = divmod(length // unit, ranks)
            first, last = (unit * (share * r + min(r, left_over)) for r in (rank, rank + 1))
        if early:
            first, last = (unit * (length // unit // ranks * r) for r in (rank, rank + 1))
        if fractions:
            first, last = (unit * int(r / ranks * (length // unit)) for r in (rank, rank + 1))
        start = first if within else matrix + first
        if empty or last > first:
            parts.append((start if unpacked else local, start, last - first))
        local += last - first
        matrix += length
    return {"return": parts}


def mistaken(**mistakes):
    return lambda **given: cut(**given, **mistakes)


TOO_EARLY = (
    "Rounded too early: with units // ranks units for each, the units that are left over all go to the last process, or to nobody. Multiply "
    "first, then divide; then parts differ by one unit at most."
)

EXERCISE = host_exercise(
    function="shares",
    arguments=arguments,
    reference=cut,
    sizes=(
        {"lengths": "64", "rank": 1, "ranks": 2},
        {"lengths": "64 and 32 and 64", "rank": 0, "ranks": 2},
        {"lengths": "64 and 32 and 64", "rank": 1, "ranks": 2},
        {"lengths": "48 and 16", "rank": 1, "ranks": 4},
        {"lengths": "48 and 16", "rank": 2, "ranks": 4},
        {"lengths": "88 and 8 and 40 and 136", "rank": 2, "ranks": 3},
        {"lengths": "24 and 56", "rank": 0, "ranks": 1},
        {"lengths": "8 and 16 and 8", "rank": 4, "ranks": 5},
        {"lengths": "392 and 8", "rank": 1, "ranks": 49},  # 1 / 49 * 49 is less than 1 in floating point
        {"lengths": "12288 and 512 and 3072 and 3072", "rank": 5, "ranks": 7},
    ),
    tolerance=0,
    hints={
        "": (
            "Two running positions: where the matrix begins in the model (it grows by the whole length), and where the part begins in the packed "
            "array (it grows by the length of the part).",
            "units = length // UNIT; the part is from UNIT * (units * rank // ranks) to UNIT * (units * (rank + 1) // ranks), counted from the "
            "beginning of the matrix.",
        ),
    },
    mistakes=(
        Mistake(mistaken(unit=1), "That cuts through units: parts must begin and end at multiples of 8."),
        Mistake(mistaken(within=True), "start counts from the beginning of the model, not of the matrix."),
        Mistake(mistaken(unpacked=True), "local is a position in the array of this process, in which its parts lie without gaps."),
        Mistake(
            mistaken(first_ones=True),
            "Units that are left over go to the first ranks here. The formula of the text spreads them: it says which ranks get one more.",
        ),
        Mistake(mistaken(early=True), TOO_EARLY),
        Mistake(mistaken(empty=False), "A matrix of which this process has nothing is in the list, too, with the length 0."),
        Mistake(mistaken(fractions=True), "1 / 49 * 49 is less than 1 in floating point, and int() rounds it down to 0. Integers have no such trouble: //."),
        Mistake(mistaken(equal=True), TOO_EARLY),
    ),
    wrong=(
        Wrong("fractions", {"units * r // ranks": "int(r / ranks * units)"}, "value", "less than 1 in floating point"),
        Wrong("the first ones get what is left over", {"first, last = (UNIT * (units * r // ranks) for r in (rank, rank + 1))":
            "share, rest = divmod(units, ranks)\n        first = UNIT * (share * rank + min(rank, rest))\n        last = first + UNIT * (share + (rank < rest))"},
            "value", "which ranks get one more"),
        Wrong("units are cut", {"UNIT * (units * r // ranks)": "matrix_length * r // ranks"}, "value", "cuts through units"),
        Wrong("starts within the matrix", {"matrix_start + first": "first"}, "value", "beginning of the model"),
        Wrong("not packed", {"(local, matrix_start": "(matrix_start + first, matrix_start"}, "value", "without gaps"),
        Wrong("the last one gets the rest", {"first, last = (UNIT * (units * r // ranks) for r in (rank, rank + 1))":
            "first = UNIT * (units // ranks) * rank\n        last = first + UNIT * (units // ranks) if rank + 1 < ranks else matrix_length"},
            "value", "Multiply first"),
        Wrong("rounded too early", {"units * r // ranks": "units // ranks * r"}, "value", "Multiply first"),
        Wrong("empty parts are left out", {"        parts.append(": "        if last > first: parts.append("}, "value", "with the length 0"),
        Wrong("the end in place of the length", {"last - first))": "last))"}, "value"),
        Wrong("the first ones get more", {"units * r // ranks": "-(-units * r // ranks)"}, "value"),
        Wrong("local grows by the matrix", {"local += last - first": "local += matrix_length"}, "value"),
        Wrong("one cut through everything", {"    for matrix_length in lengths:": "    for matrix_length in [sum(lengths)]:"}, "value"),
    ),
)  # fmt: skip
