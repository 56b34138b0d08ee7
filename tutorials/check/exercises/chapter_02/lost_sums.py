"""02_lost_sums: blocks that add to the same row, which the simulator runs one after the other."""

import numpy as np

from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Wrong, accumulated, read

SOLVED = "        mine = tokens[n] % cuda.gridDim.x == cuda.blockIdx.x\n"


def arrays(random, N, C, V):
    tokens = random.integers(V, size=N).astype(np.int32)
    tokens[-1] = V - 1
    return {"dwte": accumulated(V, C), "dout": read(random.standard_normal((N, C))), "tokens": read(tokens, "i32")}


def sums(dout, tokens):
    tokens = tokens.astype(np.int64)
    dwte = np.zeros((tokens.max() + 1, dout.shape[1]))
    np.add.at(dwte, tokens, dout)
    return dwte


EXERCISE = Exercise(
    function="add_rows",
    arrays=arrays,
    reference=lambda dout, tokens: {"dwte": sums(dout, tokens)},
    error=lambda dout, tokens: {"dwte": (len(tokens) + 1) * UNIT * (1 + sums(np.abs(dout), tokens))},  # at most N additions
    sizes=({"N": 7, "C": 3, "V": 2}, {"N": 1, "C": 1, "V": 5}, {"N": 23, "C": 33, "V": 9}, {"N": 16, "C": 5, "V": 3}),
    least=Counts(global_reads=34, global_writes=6),  # with the loop as it is: the most frequent token occurs six times
    hints={
        "": (
            "The rows that a block adds are chosen by n, and rows with different n may have the same token. What else could choose them?",
            "Let the token decide: tokens[n] in place of n.",
        ),
        "race": (
            "Read the message: both blocks add to the same row of dwte, since `mine` depends on n. Of what should it depend, if all rows with "
            "the same token are to belong to the same block?",
            "Let the token decide: mine = tokens[n] % cuda.gridDim.x == cuda.blockIdx.x",
        ),
        "not written": ("Does every row of dout belong to some block? With four blocks, blockIdx.x is 0, 1, 2 or 3.",),
        "value": ("Does every row of dout belong to exactly one block, for any number of tokens?",),
        "barrier": ("A barrier makes the threads of one block wait for each other. It does nothing between blocks.",),
    },
    wrong=(
        Wrong("as it was given", {SOLVED: ""}, "race", "Read the message"),
        Wrong("with a barrier", {SOLVED: "        cuda.syncthreads()\n"}, "race", "Read the message"),
        Wrong("neighbouring rows to one block", {"mine = tokens[n] %": "mine = n // 4 %"}, "race", "Read the message"),
        Wrong(
            "only the tokens below four", {"mine = tokens[n] % cuda.gridDim.x ==": "mine = tokens[n] =="}, "not written", "Does every row"
        ),
        Wrong("rows whose own number is the token's", {"mine = tokens[n] %": "mine = mine and tokens[n] %"}, "value", "exactly one"),
        Wrong("one row more to block 0", {SOLVED: SOLVED + "        mine = mine or n == 0 and cuda.blockIdx.x == 0\n"}, "race"),
    ),
)
