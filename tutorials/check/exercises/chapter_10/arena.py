"""10_arena: offsets in one piece of memory, for arrays that are not all needed at the same time."""

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

# name -> (sizes, first moments, last moments)
CASES = {
    "four arrays": ([500, 200, 300, 100], [4, 1, 3, 2], [5, 2, 5, 3]),  # here no two of the usual mistakes have the same result
    "the example": ([300, 100, 200], [0, 1, 2], [1, 2, 3]),
    "all at the same time": ([256, 512, 1, 257], [0, 0, 0, 0], [5, 5, 5, 5]),
    "never at the same time": ([700, 100, 256], [0, 2, 4], [1, 3, 4]),
    "no array": ([], [], []),
    "one moment in common": ([256, 256, 256], [0, 2, 4], [2, 4, 6]),
    "one within the other": ([100, 300, 100], [0, 2, 1], [9, 3, 1]),
    "not in order of time": ([100, 200, 300, 400], [6, 0, 3, 2], [9, 2, 6, 2]),
    "a gap that is too small": ([256, 512, 256, 600, 500], [0, 0, 0, 3, 3], [9, 1, 9, 9, 9]),
    "a gap that fits exactly": ([512, 512, 256, 512, 1], [0, 0, 0, 2, 2], [9, 1, 9, 9, 9]),
    "the last one does not end last": ([1000, 300], [0, 5], [1, 6]),
}


def arguments(random, case=None, arrays=0):
    if case is not None:
        sizes, first, last = CASES[case]
    else:
        sizes = [int(size) for size in random.integers(1, 1200, arrays)]
        first = [int(moment) for moment in random.integers(0, 30, arrays)]
        last = [moment + int(length) for moment, length in zip(first, random.integers(0, 12, arrays))]
    return {"sizes": list(sizes), "first": list(first), "last": list(last)}


def rounded(size):
    return -(-size // 256) * 256


def made(meet=lambda i, j, first, last: first[j] <= last[i] and first[i] <= last[j], align=rounded, on_top=False, total=rounded):
    """The result with another rule. meet: whether arrays i and j are needed at the same time. on_top: above all of these, never in a gap."""

    def result(sizes, first, last):
        offsets = []
        for i, size in enumerate(sizes):
            taken = [(offsets[j], offsets[j] + sizes[j]) for j in range(i) if meet(i, j, first, last)]
            ends = [align(end) for _, end in taken]
            places = [max(ends, default=0)] if on_top else sorted([0, *ends])
            offsets.append(next(place for place in places if all(place + size <= start or end <= place for start, end in taken)))
        return {"return": (offsets, total(max((offset + size for offset, size in zip(offsets, sizes)), default=0)))}

    return result


def last_end(sizes, first, last):
    offsets, _ = made()(sizes, first, last)["return"]
    return {"return": (offsets, rounded(offsets[-1] + sizes[-1]) if sizes else 0)}


MEET = "first[j] <= last[i] and first[i] <= last[j]"
FREE = "offset < offsets[j] + sizes[j] and offsets[j] < offset + size"

EXERCISE = host_exercise(
    function="place",
    arguments=arguments,
    reference=made(),
    sizes=(*({"case": case} for case in CASES), {"arrays": 12}, {"arrays": 40}),
    hints={
        "": (
            "Two questions for each pair of arrays: are they needed at the same time? Do their bytes overlap? Both are about two intervals.",
            "Two intervals overlap where each begins before the other ends. Moments are included at both ends (<=); an end of bytes is not (<).",
            "Try the offsets 0, 256, 512, ... until the array overlaps with none of those placed before it that are needed at the same time.",
        ),
        "not written": ("Return a pair: the list of offsets, and the total.",),
        "error": ("There may be no array at all: then there are no offsets, and the total is 0.",),
        "time": ("Does the offset grow each time around the loop?",),
    },
    mistakes=(
        Mistake(made(meet=lambda i, j, first, last: True), "That is right, and shares nothing: arrays that are never needed at the same time may have the same bytes."),
        Mistake(made(meet=lambda i, j, first, last: False), "All of them lie on top of each other. Which of them are needed at the same time?"),
        Mistake(made(meet=lambda i, j, first, last: first[j] < last[i] and first[i] < last[j]),
            "last is included: where one array's last moment is another's first, a layer reads the one and writes the other."),
        Mistake(made(meet=lambda i, j, first, last: first[j] <= first[i] <= last[j]),
            "An array that is placed later may be needed earlier: ask both ways, whether each begins before the other ends."),
        Mistake(made(meet=lambda i, j, first, last: first[i] <= last[j]),
            "An array that is placed later may be needed earlier: ask both ways, whether each begins before the other ends."),
        Mistake(made(align=lambda end: end), "An offset must be a multiple of 256: round up the place after an array."),
        Mistake(made(align=lambda end: end, total=lambda end: end), "An offset must be a multiple of 256: round up the place after an array."),
        Mistake(made(total=lambda end: end), "The offsets are right. The total is rounded up to a multiple of 256, too."),
        Mistake(made(on_top=True), "That is above all arrays that are needed at the same time. There may be a gap below, left by one that is not needed any more."),
        Mistake(last_end, "The offsets are right. The array that ends last need not be the last of the list."),
    ),
    wrong=(
        Wrong("nothing is shared", {MEET: "True"}, "value", "shares nothing"),
        Wrong("all is shared", {MEET: "False"}, "value", "on top of each other"),
        Wrong("the last moment is not included", {MEET: "first[j] < last[i] and first[i] < last[j]"}, "value", "last is included"),
        Wrong("half included", {MEET: "first[j] <= last[i] and first[i] < last[j]"}, "value"),
        Wrong("in order of time", {MEET: "first[i] <= last[j]"}, "value", "both ways"),
        Wrong("only where it begins", {MEET: "first[j] <= first[i] <= last[j]"}, "value", "both ways"),
        Wrong("not aligned", {"offset += ALIGNMENT": "offset += 1"}, "value", "multiple of 256"),
        Wrong("touching counts as overlapping", {FREE: "offset <= offsets[j] + sizes[j] and offsets[j] <= offset + size"}, "value"),
        Wrong("only its first byte is free", {FREE: "offsets[j] <= offset < offsets[j] + sizes[j]"}, "value"),
        Wrong("on top", {FREE: "offset < offsets[j] + sizes[j]"}, "value", "a gap below"),
        Wrong("the total is the sum", {"    end = max((offset + size for offset, size in zip(offsets, sizes)), default=0)\n": "    end = sum(sizes)\n"}, "value"),
        Wrong("the total is not rounded", {"return offsets, (end + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT": "return offsets, end"}, "value", "rounded up"),
        Wrong("one piece too many", {"(end + ALIGNMENT - 1) //": "(end + ALIGNMENT) //"}, "value"),
        Wrong("the last of the list", {"    end = max((offset + size for offset, size in zip(offsets, sizes)), default=0)\n":
            "    end = offsets[-1] + sizes[-1] if sizes else 0\n"}, "value", "need not be the last"),
        Wrong("no arrays", {", default=0": ""}, "error", "no array at all"),
        Wrong("sorted by time", {"enumerate(sizes)": "sorted(enumerate(sizes), key=lambda pair: first[pair[0]])"}, "error"),
    ),
)  # fmt: skip
