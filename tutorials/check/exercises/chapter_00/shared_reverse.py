"""00_shared_reverse: shared memory, and one barrier that all threads reach."""

import numpy as np

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def reverse_pieces(inp):
    return np.concatenate([inp[start : start + 32][::-1] for start in range(0, len(inp), 32)])


EXERCISE = Exercise(
    function="reverse_pieces",
    arrays=lambda random, N: {"out": written(N), "inp": read(random.standard_normal(N))},
    reference=lambda inp: {"out": reverse_pieces(inp)},
    sizes=({"N": 5}, {"N": 1}, {"N": 2}, {"N": 31}, {"N": 32}, {"N": 33}, {"N": 97}),
    least=Counts(global_reads=1, global_writes=1, shared_reads=1, shared_writes=1),
    float64_refused=False,
    drawn=("values",),
    hints={
        "": (
            "Three steps: a thread with an element puts it into values[i]; all wait; a thread with an element takes another one out.",
            "The piece starts at `start`: thread i reads inp[start + i], if i < size.",
            "Reversed, element i of a piece of `size` elements is its element size - 1 - i.",
        ),
        "race": (
            "Which thread puts something into that element of values? In the last piece, which is shorter, nobody may: is the index right?",
            "A thread takes out what another thread may not have put in yet: all must wait between the two, at cuda.syncthreads().",
        ),
        "barrier": ("In the last piece some threads have no element, and skip the barrier. It must stand outside of the condition.",),
        "bounds": ("The last piece has `size` elements, not 32: count back from size - 1, and only in threads with i < size.",),
    },
    mistakes=(
        Mistake(lambda inp: {"out": inp}, "That is inp itself: a thread must take out another thread's element."),
        Mistake(lambda inp: {"out": inp[::-1]}, "That reverses all of inp; each piece of 32 elements must be reversed for itself."),
    ),
    wrong=(
        Wrong("no barrier", {"    cuda.syncthreads()\n": ""}, "race"),
        Wrong("a barrier under a condition", {"    cuda.syncthreads()\n": "        cuda.syncthreads()\n"}, "barrier", "outside"),
        Wrong("pieces of 32 always", {"size - 1 - i": "THREADS - 1 - i"}, "race", "is the index right"),
        Wrong("not through shared memory", {"= values[size - 1 - i]": "= inp[start + size - 1 - i]", "values[i] = ": "x = "}, "shared"),
        Wrong("nothing reversed", {"values[size - 1 - i]": "values[i]"}, "value", "another thread's"),
    ),
)
