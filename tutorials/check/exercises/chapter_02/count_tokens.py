"""02_count_tokens: a histogram, each cell of which is a block's."""

import numpy as np

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

LOOP = "for n in range(i, tokens.shape[0], cuda.blockDim.x):\n        if tokens[n] == v:\n            count += ONE"


def arrays(random, N, V):
    tokens = random.integers(V, size=N).astype(np.int32)
    tokens[-1] = V - 1
    return {"counts": written(V), "tokens": read(tokens, "i32")}


def counted(tokens, V):
    return np.bincount(tokens.astype(np.int64), minlength=V).astype(np.float64)


def reference(tokens):
    return {"counts": counted(tokens, int(tokens.max()) + 1)}


EXERCISE = Exercise(
    function="count_tokens",
    arrays=arrays,
    reference=reference,
    sizes=({"N": 40, "V": 3}, {"N": 1, "V": 2}, {"N": 33, "V": 1}, {"N": 97, "V": 5}),
    least=Counts(global_reads=4, global_writes=1, shared_reads=5, shared_writes=1),
    taken=Counts(global_reads=4, global_writes=1, shared_reads=11, shared_writes=6),  # block_sum, as chapter 00 has it
    least_transactions=70,  # for each of 5 tokens: 13 pieces of tokens, one of counts
    drawn=("tokens",),
    hints={
        "": (
            "Thread i looks at tokens i, i + blockDim.x, i + 2 blockDim.x, … and adds ONE to a variable of its own where the token is v.",
            "Then total = block_sum(count), for all threads; thread 0 writes counts[v].",
        ),
        "race": (
            "Only one thread may write counts[v], and only the block of v: the others hand over what they have counted through block_sum.",
            "total = block_sum(count), called by all; then thread 0 alone writes: if i == 0: counts[v] = total",
        ),
        "not written": (
            "Thread 0 of each block writes: counts[v] = total. To add to counts, atomically or not, is no use: it holds NaN before.",
        ),
        "float64": ("A bare 0.0 or 1.0 is float64, and makes the sum float64: ZERO and ONE are there for that.",),
        "barrier": ("There are barriers in block_sum: all threads of the block must call it, also those that have found nothing.",),
        "bounds": ("There may be fewer tokens than threads, or more: for n in range(i, tokens.shape[0], cuda.blockDim.x)",),
        "value": (
            "Do the threads look at every token, each of them once? Thread i starts at i and goes on by cuda.blockDim.x.",
            "Start with count = ZERO in every thread, and add ONE for each token that is v.",
        ),
        "shared": ("Share the tokens among the threads, and let block_sum add up what they have found.",),
        "transactions": (
            "The threads of a warp should read neighbouring tokens at the same time: thread i token i, then token i + blockDim.x.",
        ),
    },
    mistakes=(
        Mistake(
            lambda tokens: {"counts": counted(tokens[::32], int(tokens.max()) + 1)}, "That is what thread 0 alone has found: use block_sum."
        ),
        Mistake(
            lambda tokens: {"counts": 32 * counted(tokens, int(tokens.max()) + 1)},  # a block has 32 threads in the simulator
            "That is 32 times too much: each of the 32 threads has counted all tokens. Thread i starts at i and goes on by cuda.blockDim.x.",
        ),
        Mistake(
            lambda tokens: {"counts": np.arange(tokens.max() + 1) * counted(tokens, int(tokens.max()) + 1)},
            "That is the sum of the tokens: add ONE for each.",
        ),
        Mistake(
            lambda tokens: {"counts": np.full(int(tokens.max()) + 1, np.nan)},
            "counts holds NaN before the call: it is to be overwritten, not added to.",
        ),
    ),
    wrong=(
        Wrong("what thread 0 has found", {"total = block_sum(count)": "total = count"}, "value", "thread 0 alone"),
        Wrong("all threads write", {"    if i == 0:\n        counts[v] = total": "    counts[v] = total"}, "race", "Only one thread"),
        Wrong(
            "who has found nothing does not call",
            {"    total =": "    total = ZERO\n    if count > ZERO:\n        total ="},
            "barrier",
            "barriers",
        ),
        Wrong(
            "a thread's first token only",
            {LOOP: "if i < tokens.shape[0]:\n        if tokens[i] == v:\n            count = ONE"},
            "value",
            "every token",
        ),
        Wrong("without a bound", {LOOP: "if tokens[i] == v:\n        count = ONE"}, "value", "every token"),
        Wrong("the last token is forgotten", {"range(i, tokens.shape[0],": "range(i, tokens.shape[0] - 1,"}, "value", "every token"),
        Wrong("adds to counts", {"counts[v] = total": "counts[v] += total"}, "value", "overwritten"),
        Wrong(
            "every thread counts all, and all are added",
            {"range(i, tokens.shape[0], cuda.blockDim.x)": "range(tokens.shape[0])"},
            "value",
            "32 times",
        ),
        Wrong("a float64 sum", {"count = ZERO": "count = 0.0"}, "float64", "ZERO"),
        Wrong("adds the token", {"count += ONE": "count += np.float32(v)"}, "value", "sum of the tokens"),
        Wrong(
            "adds where the token is",
            {
                "    total = block_sum(count)\n    if i == 0:\n        counts[v] = total": "    counts[v] = ZERO\n"
                "    cuda.syncthreads()\n    counts[v] += count"
            },
            "race",
            "Only one thread",
        ),
        Wrong(
            "every thread counts all",
            {"range(i, tokens.shape[0], cuda.blockDim.x)": "range(tokens.shape[0])", "total = block_sum(count)": "total = count"},
            "shared",
            "Share the",
        ),
        Wrong(
            "neighbouring tokens to one thread",
            {"range(i, tokens.shape[0], cuda.blockDim.x)": "range(4 * i, min(tokens.shape[0], 4 * i + 4))"},
            "transactions",
            "neighbouring",
        ),
        Wrong(
            "one thread counts all",
            {LOOP: "if i == 0:\n        for n in range(tokens.shape[0]):\n            if tokens[n] == v:\n                count += ONE"},
            "transactions",
            "neighbouring",
        ),
    ),
)
