"""02_encoder_backward: rows of dout, added up by position and by token."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ONES, Sizes, awkward_tokens
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

WIDE = Sizes(B=2, T=3, C=40, NH=1, V=10, Vp=11, OC=1)
NARROW = Sizes(B=1, T=13, C=2, NH=1, V=8, Vp=8, OC=1)
SMALL = Sizes(B=7, T=2, C=64, NH=1, V=8, Vp=9, OC=1)
MOST = int(np.bincount(awkward_tokens(SMALL).reshape(-1)).max())  # rows of the most frequent token
BY_TOKEN = """    for b in range(B):
        for t in range(T):
            if tokens[b, t] == v:
                for c in range(cuda.threadIdx.x, C, cuda.blockDim.x):
                    dwte[v, c] += dout[b, t, c]
"""
OVERWRITTEN = """    for c in range(cuda.threadIdx.x, C, cuda.blockDim.x):
        total = ZERO
        for b in range(B):
            for t in range(T):
                if tokens[b, t] == v:
                    total += dout[b, t, c]
        dwte[v, c] = total
"""
POSITIONS = "            total += dout[b, t, c]\n        dwpe[t, c] += total"


def right(dwte, dwpe, dout, tokens, s):
    """The outputs after a right call."""
    dwte, dwpe = dwte.copy(), dwpe.copy()
    np.add.at(dwte, tokens.reshape(-1).astype(np.int64), dout)
    dwpe[: s.T] += dout.reshape(s.B, s.T, -1).sum(axis=0)
    return {"dwte": dwte, "dwpe": dwpe}


def forgotten(dwte, dwpe, dout, tokens, s):
    """dwpe where what was in it is forgotten."""
    return {"dwpe": np.concatenate([right(dwte, 0 * dwpe, dout, tokens, s)["dwpe"][: s.T], dwpe[s.T :]])}


def last_only(dwte, dwpe, dout, tokens, s):
    """The outputs where each place of a token overwrites dwte."""
    sums = right(dwte, dwpe, dout, tokens, s)
    sums["dwte"] = dwte.copy()
    for token, row in zip(tokens.reshape(-1).astype(np.int64), dout):
        sums["dwte"][token] = row
    return sums


EXERCISE = layer_exercise(
    function="encoder_backward",
    layers=("encoder",),
    sizes=(ONES, WIDE, NARROW, SMALL),
    # Two channels of the most frequent token's rows, and of dwte. Through shared memory a thread could do with one token.
    least=Counts(global_reads=1 + 2 * (MOST + 1), global_writes=2),
    taken=Counts(global_reads=SMALL.N + 4 * MOST, global_writes=2 * MOST),
    least_transactions=606,  # those of the solution
    drawn=("dwte",),
    hints={
        "": (
            "First dwpe: for each of its channels, a thread adds up dout[b, t, c] over b in a register, then adds the sum to dwpe[t, c].",
            "dwte: two loops go through all b and t. Where tokens[b, t] is v, the threads add dout[b, t, c] to dwte[v, c], each its channels.",
        ),
        "race": (
            "Block t writes row t of dwpe, block v row v of dwte, and no other; and in a block each thread has channels of its own.",
            "No token decides where a block writes: it decides only whether a row of dout is added. dwte[v, c], not dwte[tokens[b, t], c].",
        ),
        "not written": (
            "Are both kernels complete? Do their loops reach the last sequence, the last position, and the last channel?",
            "The threads stride over the channels: for c in range(cuda.threadIdx.x, C, cuda.blockDim.x)",
        ),
        "host": (
            "If your kernel adds with cuda.atomic.add: that would be right, with different bits in each run. Here block v makes all additions to "
            "row v, in the order of a loop.",
        ),
        "transactions": (
            "Neighbouring threads, neighbouring channels, and every thread its share: for c in range(cuda.threadIdx.x, C, cuda.blockDim.x).",
        ),
        "float64": ("A bare 0.0 is float64, and makes the sum float64: begin with ZERO.",),
        "bounds": (
            "dout has the shape (B, T, C) in the kernels: dout[b, t, c]. tokens has (B, T). Is it the channel that is too large? There may be fewer "
            "channels than threads: for c in range(cuda.threadIdx.x, C, cuda.blockDim.x)",
        ),
        "value": (
            "Compare the ranges: b from 0 to B - 1, t from 0 to T - 1, and every channel once.",
            "Is each row added once, to what was there before? dwte[v, c] += dout[b, t, c] where tokens[b, t] == v.",
        ),
    },
    mistakes=(
        Mistake(
            lambda dwte, dwpe, dout, tokens, s: right(0 * dwte, dwpe, dout, tokens, s),
            "What was in dwte before is lost: dwte[v, c] += the sum, not =.",
        ),
        Mistake(
            lambda dwte, **a: right(0 * dwte, **a) | forgotten(dwte, **a),
            "What was in dwte and dwpe before is lost: both are added to, +=, not =.",
        ),
        Mistake(last_only, "A row of dwte holds the last place of its token alone: +=, not =."),
        Mistake(lambda **a: right(**a) | forgotten(**a), "dwpe is added to, not overwritten: dwpe[t, c] += total"),
        Mistake(
            lambda dwte, dwpe, dout, tokens, s: right(dwte, dwpe, np.concatenate([dout[: s.T], 0 * dout[s.T :]]), tokens, s),
            "That is sequence 0 alone: a position occurs in every sequence b of the batch.",
        ),
        Mistake(
            lambda dwte, dwpe, dout, tokens, s: (
                right(dwte, dwpe, dout, tokens, s)
                | {"dwpe": right(dwte, dwpe, np.concatenate([dout[: s.T], 0 * dout[s.T :]]), tokens, s)["dwpe"]}
            ),
            "In dwpe only sequence 0 has arrived: a position occurs in every sequence b of the batch.",
        ),
    ),
    wrong=(
        Wrong("dwpe is overwritten", {"dwpe[t, c] +=": "dwpe[t, c] ="}, "value", "dwpe is added to"),
        Wrong("dwte is overwritten by the sum", {BY_TOKEN: OVERWRITTEN}, "value", "What was in dwte before"),
        Wrong("both are overwritten", {BY_TOKEN: OVERWRITTEN, "dwpe[t, c] +=": "dwpe[t, c] ="}, "value", "What was in dwte and dwpe"),
        Wrong("a float64 sum", {"total = ZERO": "total = 0.0"}, "float64", "ZERO"),
        Wrong("dwte is overwritten by each place", {"dwte[v, c] +=": "dwte[v, c] ="}, "value", "the last place"),
        Wrong(
            "the first sequence only, in dwpe",
            {"        for b in range(dout.shape[0]):\n            total": "        for b in range(1):\n            total"},
            "value",
            "In dwpe only sequence 0",
        ),
        Wrong("dwpe is forgotten", {POSITIONS: "            total += dout[b, t, c]"}, "not written", "both kernels"),
        Wrong(
            "every block takes its own position's token",
            {"if tokens[b, t] == v:": "if b * T + t == v:", "dwte[v, c]": "dwte[tokens[b, t], c]"},
            "race",
            "Block t writes",
        ),
        Wrong("the last position is forgotten", {"for t in range(T):": "for t in range(T - 1):"}, "not written", "the last"),
        Wrong(
            "the last sequence is forgotten", {"for b in range(B):": "for b in range(B - 1 if B > 1 else B):"}, "not written", "the last"
        ),
        Wrong("b and t swapped", {"if tokens[b, t] == v": "if tokens[t, b] == v"}, "bounds", "(B, T, C)"),
        Wrong(
            "a thread's first channel only",
            {
                "                for c in range(cuda.threadIdx.x, C, cuda.blockDim.x):\n                    dwte": "                c = cuda.threadIdx.x\n                if c < C:\n                    dwte"
            },
            "not written",
            "the last channel",
        ),
        Wrong(
            "one thread does all",
            {"for c in range(cuda.threadIdx.x, C, cuda.blockDim.x)": "for c in range(C if cuda.threadIdx.x == 0 else 0)"},
            "transactions",
            "its share",
        ),
        Wrong(
            "neighbouring channels to one thread",
            {"range(cuda.threadIdx.x, C, cuda.blockDim.x)": "range(2 * cuda.threadIdx.x, min(C, 2 * cuda.threadIdx.x + 2))"},
            "transactions",
            "Neighbouring",
        ),
        Wrong(
            "atomic additions",
            {
                "    for b in range(B):\n        for t in range(T):\n            if tokens[b, t] == v:\n": "    for n in range(v, B * T, "
                "cuda.gridDim.x):\n        if True:\n            if True:\n                b, t = n // T, n % T\n",
                "dwte[v, c] += dout[b, t, c]": "cuda.atomic.add(dwte, (tokens[b, t], c), dout[b, t, c])",
            },
            "host",
            "atomic",
        ),
        Wrong(
            "only the first place of a token",
            {"                    dwte[v, c] += dout[b, t, c]": "                    dwte[v, c] += dout[b, t, c]\n                return"},
            "value",
        ),
    ),
)
