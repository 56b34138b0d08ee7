"""00_shift: a neighbour's element, and the edge."""

import numpy as np

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def shifted(inp):
    return np.concatenate([[0], inp[:-1]])


EXERCISE = Exercise(
    function="shift",
    arrays=lambda random, N: {"out": written(N), "inp": read(random.standard_normal(N))},
    reference=lambda inp: {"out": shifted(inp)},
    sizes=({"N": 5}, {"N": 1}, {"N": 2}, {"N": 31}, {"N": 33}, {"N": 97}),
    least=Counts(global_reads=1, global_writes=1),
    most=Counts(global_reads=1, global_writes=1),
    float64_refused=False,
    hints={
        "": (
            "Thread i writes out[i] and reads inp[i - 1]. One thread has no neighbour on that side: what does it write?",
            "Three kinds of threads: i == 0, the others below N, and those from N on, which do nothing.",
        ),
        "bounds": (
            "Which thread has no element inp[i - 1]? And which ones have no element out[i]?",
            "if i == 0: … elif i < inp.shape[0]: …",
        ),
        "race": ("Only one thread may write an element: out[0] belongs to thread 0 of block 0, and the others leave it alone.",),
        "not written": ("The first element has no neighbour, but must be written too: out[0] is 0.",),
    },
    mistakes=(
        Mistake(lambda inp: {"out": np.concatenate([inp[1:], [0]])}, "That is the other neighbour, inp[i + 1]."),
        Mistake(lambda inp: {"out": np.roll(inp, 1)}, "out[0] is the last element of inp, as in NumPy; it must be 0."),
        Mistake(lambda inp: {"out": np.concatenate([inp[:1], inp[:-1]])}, "out[0] is inp[0]; it must be 0."),
    ),
    wrong=(
        Wrong(
            "every thread writes out[0]",
            {"if i == 0:\n        out[i] = ZERO\n    elif i <": "out[0] = ZERO\n    if 0 < i <"},
            "race",
            "Only one thread",
        ),
        Wrong("reads before the array", {"if i == 0:\n        out[i] = ZERO\n    elif": "if"}, "bounds", "no element inp[i - 1]"),
        Wrong("out[0] left out", {"out[i] = ZERO": "pass"}, "not written", "The first element"),
        Wrong("the other neighbour", {"if i == 0": "if i == inp.shape[0] - 1", "inp[i - 1]": "inp[i + 1]"}, "value", "other neighbour"),
        Wrong("no end", {"elif i < inp.shape[0]:": "else:"}, "bounds"),
        Wrong("inp[0] at the edge", {"out[i] = ZERO": "out[i] = inp[i]"}, "value", "it must be 0"),
        Wrong("as in NumPy", {"out[i] = ZERO": "out[i] = inp[inp.shape[0] - 1]"}, "value", "it must be 0"),
    ),
)
