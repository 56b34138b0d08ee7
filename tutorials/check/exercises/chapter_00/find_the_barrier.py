"""00_find_the_barrier: a missing barrier that no test of the numbers finds."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Wrong, read, written


def sums_to_the_end(inp):
    return np.concatenate([inp[start : start + 64][::-1].cumsum()[::-1] for start in range(0, len(inp), 64)])


EXERCISE = Exercise(
    function="sum_to_the_end",
    arrays=lambda random, N: {"out": written(N), "inp": read(random.standard_normal(N))},
    reference=lambda inp: {"out": sums_to_the_end(inp)},
    error=lambda inp: {"out": 64 * UNIT * sums_to_the_end(np.abs(inp))},  # at most 63 additions
    sizes=({"N": 5}, {"N": 1}, {"N": 2}, {"N": 33}, {"N": 97}),
    least=Counts(global_reads=1, global_writes=1, shared_reads=13, shared_writes=7),
    most_barriers=13,  # one after loading, two in each of six rounds
    float64_refused=False,
    hints={
        "": ("Read the message: which two lines touch the same element, and is there a barrier between them?",),
        "race": (
            "In the same round one thread reads the element of its neighbour, and the neighbour changes it. Which barrier keeps the two apart?",
            "All threads must have read before any of them writes: the barrier belongs between `other = …` and `values[i] += other`.",
        ),
        "barrier": ("Every thread must reach the barrier: do not indent it under a condition.",),
        "barriers": ("One of the barriers orders nothing that another one does not. Take one out, and see whether a race appears.",),
    },
    wrong=(
        Wrong("as it was given", {"        # your lines:\n        cuda.syncthreads()\n": "        # your lines:\n"}, "race", "In the same round"),
        Wrong("at the start of the round", {"        # your lines:\n        cuda.syncthreads()\n": "        # your lines:\n",
            "distance < THREADS:\n": "distance < THREADS:\n        cuda.syncthreads()\n"}, "race", "In the same round"),
        Wrong("after the loop", {"        # your lines:\n        cuda.syncthreads()\n": "        # your lines:\n",
            "    if element <": "    cuda.syncthreads()\n    if element <"}, "race", "In the same round"),
        Wrong("in all three places", {"distance < THREADS:\n": "distance < THREADS:\n        cuda.syncthreads()\n"}, "barriers", "Take one out"),
        Wrong("one more at the end", {"    if element <": "    cuda.syncthreads()\n    if element <"}, "barriers", "Take one out"),
    ),
)  # fmt: skip
