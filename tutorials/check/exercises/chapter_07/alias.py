"""07_alias: in place, a kernel reads what it has overwritten."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read
from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import SEED, Counts, Exercise, Mistake, Wrong


def arrays(random, N, half):
    angle = random.uniform(0.3, 2.8, (N, half))
    return {"rows": changed(random.standard_normal((N, 2 * half))), "cos": read(np.cos(angle)), "sin": read(np.sin(angle))}


class InPlaceExercise(Exercise):
    """An exercise whose reference is given the array that is changed, as it was before the call."""

    def calls(self, function, size):
        def reference(a):
            a.rows = turned(**vars(a))["rows"]

        def errors(after, before, storage):
            return {"rows": 4 * UNIT * np.tile(sum(np.abs(part) for part in np.split(before.rows, 2, axis=1)), 2)}

        tensors = self.arrays(np.random.default_rng(SEED), **size)
        yield Call(self.function, self.function, tensors, lambda a: function(*vars(a).values()), errors, reference)

    def mistaken(self, mistake, call, before, size):
        return mistake.result(**vars(before))


def turned(rows, cos, sin):
    first, second = np.split(rows, 2, axis=1)
    return {"rows": np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)}


def first_overwritten(rows, cos, sin):
    first, second = np.split(rows, 2, axis=1)
    first = first * cos - second * sin
    return {"rows": np.concatenate([first, second * cos + first * sin], axis=1)}


def second_overwritten(rows, cos, sin):
    first, second = np.split(rows, 2, axis=1)
    second = second * cos + first * sin
    return {"rows": np.concatenate([first * cos - second * sin, second], axis=1)}


def turned_back(rows, cos, sin):
    return turned(rows, cos, -sin)


NO_BARRIER = "No other thread touches this pair: a barrier does not help. The trouble is the order in which this thread reads and writes."
TWO_LINES = """        out[row, c] = first * cosine - second * sine
        out[row, c + half] = second * cosine + first * sine
"""
READS = "        first, second = inp[row, c], inp[row, c + half]\n"
FIRST_LINE = "        out[row, c] = inp[row, c] * cosine - inp[row, c + half] * sine\n"
SECOND_LINE = "        out[row, c + half] = inp[row, c + half] * cosine + inp[row, c] * sine\n"
ONE_KEPT = """        second = inp[row, c + half]
        out[row, c] = inp[row, c] * cosine - second * sine
        out[row, c + half] = second * cosine + inp[row, c] * sine
"""

EXERCISE = InPlaceExercise(
    function="rotate",
    arrays=arrays,
    sizes=({"N": 2, "half": 3}, {"N": 1, "half": 1}, {"N": 3, "half": 33}, {"N": 2, "half": 97}),
    least=Counts(global_reads=16, global_writes=8),
    most=Counts(global_reads=16, global_writes=8),
    least_transactions=208,
    most_barriers=0,
    hints={
        "": (
            "Four numbers are needed, both of the pair, the cosine and the sine, for both results. When is each of them read for the last time?",
            "A register is nobody's memory: read both numbers of the pair into variables before you write either.",
            "first, second = inp[row, c], inp[row, c + half]",
        ),
        "error": ("c runs over half of the row; the other number of the pair is at c + half.",),
        "value": ("On paper: half = 1, the row [1, 0], cosine 0, sine 1. The result must be [0, 1].",),
        "not written": ("Both numbers of every pair must be written: columns c and c + half.",),
        "accesses": ("Read each of the four numbers once, into a variable; write each result once.",),
        "barrier": (NO_BARRIER,),
        "barriers": (NO_BARRIER,),
        "race": ("A pair belongs to one thread: leave the loop as it is.",),
    },
    mistakes=(
        Mistake(first_overwritten, "out and inp are the same array: when the second line reads inp[row, c], the first one has changed it already."),
        Mistake(second_overwritten, "out and inp are the same array: your first line has changed the number that your second line reads."),
        Mistake(turned_back, "That turns the other way: look at the two signs."),
        Mistake(lambda rows, cos, sin: {"rows": rows}, "The rows are as they were: nothing has been turned."),
    ),
    wrong=(
        Wrong("as it was found", {READS: "", TWO_LINES: FIRST_LINE + SECOND_LINE}, "value", "has changed it already"),
        Wrong("the lines swapped", {READS: "", TWO_LINES: SECOND_LINE + FIRST_LINE}, "value", "your second line reads"),
        Wrong("one of the two kept", {READS: "", TWO_LINES: ONE_KEPT}, "value", "has changed it already"),
        Wrong("a barrier between", {READS: "", TWO_LINES: FIRST_LINE + "        cuda.syncthreads()\n" + SECOND_LINE}, "barrier", "does not help"),
        Wrong("the other way", {"first * cosine - second": "first * cosine + second", "second * cosine + first": "second * cosine - first"}, "value", "two signs"),
        Wrong("only the first half", {"        out[row, c + half] = second * cosine + first * sine\n": ""}, "not written", "Both numbers"),
        Wrong("one angle for all rows", {"cos[row, c], sin[row, c]": "cos[0, c], sin[0, c]"}, "value"),
        Wrong("the neighbour's partner", {"inp[row, c + half]\n": "inp[row, (c + half + 1) % (2 * half)]\n"}, "race"),
        Wrong("reads twice", {"first * cosine - second": "inp[row, c] * cosine - second"}, "accesses", "once"),
        Wrong("in float64", {"- second * sine": "+ -1.0 * second * sine"}, "float64"),
    ),
)  # fmt: skip
