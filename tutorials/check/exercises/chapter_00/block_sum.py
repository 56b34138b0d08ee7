"""00_block_sum: a sum over the threads of a block."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def pieces_of(N):
    return -(-N // 32)


def sums(inp):
    return np.array([inp[start : start + 32].sum() for start in range(0, len(inp), 32)])


EXERCISE = Exercise(
    function="sum_pieces",
    arrays=lambda random, N: {"out": written(pieces_of(N)), "inp": read(random.standard_normal(N))},
    reference=lambda inp: {"out": sums(inp)},
    error=lambda inp: {"out": 32 * UNIT * sums(np.abs(inp))},  # at most 31 additions, in any order
    sizes=({"N": 40}, {"N": 1}, {"N": 2}, {"N": 31}, {"N": 33}, {"N": 97}),
    least=Counts(global_reads=1, global_writes=1, shared_reads=5, shared_writes=1),
    most=Counts(global_reads=1, global_writes=1, shared_reads=5, shared_writes=5),
    float64_refused=False,
    hints={
        "": (
            "half = THREADS // 2, then a loop: the upper half writes its parts to values, the lower half adds values[i + half] to its own.",
            "After each round half //= 2, until half is 0; then thread 0 writes the block's sum to out[cuda.blockIdx.x].",
            "Thread i + half must have written before thread i reads: a barrier between the two, in every round, for all threads.",
        ),
        "accesses": (
            "In a round a thread reads one number of values, its partner's: its own sum stays in `part`, a register.",
            "One thread that adds up 32 numbers makes 31 others wait: in rounds, each thread adds one number, and half of the threads go on.",
        ),
        "race": (
            "If the element is one of out: all threads write it, and only thread 0 has the sum.",
            "No two threads may touch the same element, one of them writing, without a barrier between. In each round there are two such "
            "moments, or one if a thread writes its element only once.",
            "Every thread must reach the barrier, so it stands inside the loop, but outside of `if`.",
        ),
        "barrier": ("Threads with i >= half have nothing to add, but must still reach the barrier: put it outside of `if`.",),
    },
    mistakes=(
        Mistake(lambda inp: {"out": inp[::32]}, "That is the element of thread 0 alone: nothing has been added to it."),
        Mistake(
            lambda inp: {"out": np.array([inp[start : start + 32 : 16].sum() for start in range(0, len(inp), 32)])},
            "Only one round has been added up: halve `half` and go on until it is 0.",
        ),
    ),
    wrong=(
        Wrong("no barrier", {"        cuda.syncthreads()\n": ""}, "race"),
        Wrong("thread 0 adds up", {"    half = THREADS // 2\n    while half > 0:\n        if half <= i < 2 * half:\n            values[i] = part\n        cuda.syncthreads()\n"
            "        if i < half:\n            part += values[i + half]\n        half //= 2\n    if i == 0:\n": "    values[i] = part\n    cuda.syncthreads()\n    if i == 0:\n"
            "        for k in range(1, THREADS):\n            part += values[k]\n"}, "accesses", "its partner's"),
        Wrong("the chapter's way", {"        if half <= i < 2 * half:\n            values[i] = part\n        cuda.syncthreads()\n        if i < half:\n            part += values[i + half]\n":
            "        if half == THREADS // 2:\n            values[i] = part\n        cuda.syncthreads()\n        if i < half:\n            values[i] += values[i + half]\n            part = values[i]\n"},
            "accesses", "its partner's"),
        Wrong("a barrier before the loop only", {"        cuda.syncthreads()\n": "", "    half = THREADS": "    cuda.syncthreads()\n    half = THREADS"},
            "race"),
        Wrong("a barrier under a condition", {"            part += values[i + half]": "            cuda.syncthreads()\n            part += values[i + half]",
            "        cuda.syncthreads()\n        if": "        if"}, "barrier", "outside"),
        Wrong("one round", {"half //= 2": "half = 0"}, "value", "one round"),
        Wrong("all threads write the sum", {"if i == 0:": "if True:"}, "race", "only thread 0 has the sum"),
    ),
)  # fmt: skip
