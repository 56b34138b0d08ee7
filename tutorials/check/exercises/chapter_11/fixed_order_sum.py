"""11_fixed_order_sum: a sum whose order does not depend on the launch."""

import numpy as np

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

THREADS, PIECE = 32, 64


def block_sum(values):
    """The float32 sum of 32 numbers, in the order of gpu/block_sum.py."""
    while len(values) > 1:
        half = len(values) // 2
        values = values[:half] + values[half:]
    return values[0]


def strided(values):
    """The float32 sum in which thread i takes elements i, i + 32, ..."""
    rows = np.pad(values, (0, -len(values) % THREADS)).reshape(-1, THREADS)
    total = np.zeros(THREADS, np.float32)
    for row in rows:
        total += row
    return block_sum(total)


def sums(inp, blocks=None):
    """blocks: the sum whose pieces are as many as the blocks, in place of the one that is asked for."""
    values = inp.astype(np.float32)
    length = PIECE if blocks is None else -(-len(values) // blocks)
    partials = [strided(values[start : start + length]) for start in range(0, len(values), length)]
    return np.cumsum(np.array(partials, np.float32))[-1]  # cumsum adds from the left


def three(result):
    return {name: np.array([result(blocks)], np.float32) for name, blocks in (("one", 1), ("few", 3), ("many", 8))}


LOOP = "range(cuda.blockIdx.x, partials.shape[0], cuda.gridDim.x)"
ELEMENTS = "range(piece * PIECE + i, min((piece + 1) * PIECE, inp.shape[0]), THREADS)"
WRITE = "        if i == 0:\n            partials[piece] = total\n"


def arrays(random, N):
    """Numbers of many sizes, whose sum is near 0: hardly two orders have the same bits."""
    inp = random.standard_normal(N) * np.exp(2 * random.standard_normal(N))
    return {"one": written(1), "few": written(1), "many": written(1), "inp": read(inp - (inp.mean() if N > 1 else 0))}


EXERCISE = Exercise(
    function="sum_three_times",
    arrays=arrays,
    reference=lambda inp: three(lambda blocks: sums(inp)),
    sizes=({"N": 300}, {"N": 1}, {"N": 33}, {"N": 64}, {"N": 65}, {"N": 600}, {"N": 500}),
    least=Counts(global_reads=16, global_writes=8, shared_reads=11 * 8, shared_writes=6 * 8),
    hints={
        "": (
            "Which pieces does a block take? blockIdx.x, blockIdx.x + number of blocks, ...: a loop around everything else.",
            "In a piece, thread i adds inp[start + i] and inp[start + i + 32], if they are there; total = block_sum(total); thread 0 writes.",
            "The second kernel is a loop over partials. The number of blocks, cuda.gridDim.x, may only choose who adds up which piece.",
        ),
        "not written": ("Which kernel writes out[0]? The second one: a loop over partials, then out[0] = total.",),
        "value": (
            "If it is NaN, a partial has not been written: there may be more pieces than blocks, so a block takes several, one after another. If "
            "it is right but for the last digits, the order is another one: which additions are made first, with one block, and with eight?",
            "Thread i of a piece takes elements i and i + 32, not 2 i and 2 i + 1. The partials are added from the first to the last.",
        ),
        "race": (
            "Two threads of a block? All have the sum, and one of them writes it: if i == 0. Two blocks? Then both take the same piece: a block "
            "takes pieces blockIdx.x, blockIdx.x + gridDim.x, ...",
        ),
        "barrier": (
            "block_sum has barriers, and all threads of the block must call it equally often: not under a condition on i, and in the loop over "
            "the pieces, not in the one over the elements, which some threads leave earlier.",
        ),
        "bounds": (
            "Beyond the end of partials? There may be more blocks than pieces. Beyond the end of inp? The last piece may be shorter than 64: it "
            "ends at min((piece + 1) * PIECE, inp.shape[0]).",
        ),
    },
    mistakes=(
        Mistake(
            lambda inp: three(lambda blocks: sums(inp[: blocks * PIECE])),
            "Only as many pieces have been added up as there are blocks: a block takes piece after piece.",
        ),
        Mistake(
            lambda inp: three(lambda blocks: sums(inp) * np.float32(32)), "That is 32 times the sum: all threads have added it up."
        ),
    ),
    wrong=(
        Wrong("as many pieces as blocks", {"    pieces = (inp.shape[0] + PIECE - 1) // PIECE\n": "    pieces = blocks\n",
            ELEMENTS: "range(piece * ((inp.shape[0] + partials.shape[0] - 1) // partials.shape[0]) + i, min((piece + 1) * ((inp.shape[0] + "
            "partials.shape[0] - 1) // partials.shape[0]), inp.shape[0]), THREADS)"}, "value"),
        Wrong("a stride over the whole grid", {LOOP: "range(cuda.blockIdx.x, min(partials.shape[0], cuda.gridDim.x), cuda.gridDim.x)",
            ELEMENTS: "range(cuda.grid(1), inp.shape[0], cuda.gridsize(1))", "    for piece in range(partials.shape[0]):\n":
            "    for piece in range(min(8, partials.shape[0])):\n"}, "value"),
        Wrong("one piece for each block", {LOOP: "range(cuda.blockIdx.x, min(partials.shape[0], cuda.gridDim.x), cuda.gridDim.x)"}, "value", "If it is NaN"),
        Wrong("neighbours for each thread", {ELEMENTS: "range(piece * PIECE + 2 * i, min(piece * PIECE + 2 * i + 2, inp.shape[0]))"},
            "value", "If it is NaN"),
        Wrong("from the last to the first", {"range(partials.shape[0])": "range(partials.shape[0] - 1, -1, -1)"}, "value", "last digits"),
        Wrong("a tree of partials", {"add_partials_kernel[1, 1]": "add_partials_kernel[1, THREADS]", "    for piece in range(partials.shape[0]):\n"
            "        total += partials[piece]\n    out[0] = total\n": "    for piece in range(cuda.threadIdx.x, partials.shape[0], THREADS):\n"
            "        total += partials[piece]\n    total = block_sum(total)\n    if cuda.threadIdx.x == 0:\n        out[0] = total\n"}, "value"),
        Wrong("in float64", {"        total = ZERO\n": "        total = np.float64(0)\n"}, "float64"),
        Wrong("all threads write", {WRITE: "        partials[piece] = total\n"}, "race", "one of them writes it"),
        Wrong("a block sum for each element", {"            total += inp[n]\n        total = block_sum(total)\n": "            total += "
            "block_sum(inp[n])\n"}, "barrier", "leave earlier"),
        Wrong("every block takes every piece", {LOOP: "range(partials.shape[0])"}, "race", "both take the same piece"),
        Wrong("a piece for each block, if there is one or not", {LOOP: "range(cuda.blockIdx.x, cuda.blockIdx.x + 1)"}, "bounds",
            "more blocks than pieces"),
        Wrong("the last piece is full", {"min((piece + 1) * PIECE, inp.shape[0])": "(piece + 1) * PIECE"}, "bounds", "may be shorter"),
        Wrong("atomically", {WRITE: "        if i == 0:\n            cuda.atomic.add(partials, 0, total)\n"}, "value"),
        Wrong("the last piece is left out", {"(inp.shape[0] + PIECE - 1) // PIECE": "max(1, inp.shape[0] // PIECE)"}, "value"),
    ),
)  # fmt: skip
