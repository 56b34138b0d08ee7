"""02_encoder_forward: rows of two tables, added."""

import numpy as np

from gpt2_numba.layer_checks.sizes import MANY_ROWS, ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

SMALL = Sizes(B=3, T=5, C=40, NH=1, V=11, Vp=13, OC=1)


def rows_of(tokens, wte):
    return wte[tokens.reshape(-1).astype(np.int64)]


EXERCISE = layer_exercise(
    function="encoder_forward",
    layers=("encoder",),
    sizes=(ONES, MANY_ROWS, SMALL),
    least=Counts(global_reads=5, global_writes=2),  # the token, and two channels from both tables
    least_transactions=240,  # 15 rows of five pieces in wte, wpe and out, and a token each
    drawn=("wte", "out"),
    hints={
        "": (
            "Which row of out is the block's? t = cuda.blockIdx.x, b = cuda.blockIdx.y. Read its token into a variable.",
            "The threads stride over the channels: for c in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x). Then one line is missing.",
        ),
        "bounds": (
            "Which array does the message name? tokens is indexed tokens[b, t], where blockIdx.x is t and blockIdx.y is b. In wte, wpe or out it is "
            "the channel: a row may have fewer channels than the block has threads, so the channels need a loop, or a test.",
        ),
        "not written": (
            "A row may have more channels than the block has threads: does your loop reach all of them?",
            "The threads stride over the channels: for c in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x)",
        ),
        "transactions": (
            "Neighbouring threads, neighbouring channels, and every thread its share: for c in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x).",
        ),
        "race": ("Each thread takes channels of its own: it starts at cuda.threadIdx.x and goes on by cuda.blockDim.x.",),
    },
    mistakes=(
        Mistake(lambda out, tokens, wte, wpe, s: {"out": rows_of(tokens, wte)}, "That is the row of wte alone: the position is missing."),
        Mistake(
            lambda out, tokens, wte, wpe, s: {"out": rows_of(tokens, wte) + np.repeat(wpe[: s.B], s.T, axis=0)},
            "wpe has a row for each position: its row is t, not b.",
        ),
        Mistake(
            lambda out, tokens, wte, wpe, s: {"out": out},
            "out holds NaN before the call: it is to be overwritten, not added to.",
        ),
    ),
    wrong=(
        Wrong("no position", {" + wpe[t, c]": ""}, "value", "position is missing"),
        Wrong("the sequence in place of the position", {"wpe[t, c]": "wpe[b, c]"}, "value", "its row is t"),
        Wrong("x and y swapped", {"t, b = cuda.blockIdx.x": "b, t = cuda.blockIdx.x"}, "bounds", "tokens[b, t]"),
        Wrong(
            "a thread's first channel only",
            {"for c in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x):": "c = cuda.threadIdx.x\n    if c < out.shape[2]:"},
            "not written",
            "more channels",
        ),
        Wrong(
            "one thread does all",
            {
                "    for c in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x):": "    for c in range(out.shape[2] if "
                "cuda.threadIdx.x == 0 else 0):"
            },
            "transactions",
            "its share",
        ),
        Wrong(
            "neighbouring channels to one thread",
            {
                "range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x)": "range(2 * cuda.threadIdx.x, "
                "min(out.shape[2], 2 * cuda.threadIdx.x + 2))"
            },
            "transactions",
            "Neighbouring",
        ),
        Wrong("adds to out", {"out[b, t, c] =": "out[b, t, c] +="}, "value", "overwritten"),
        Wrong(
            "every thread writes all channels", {"cuda.threadIdx.x, out.shape[2], cuda.blockDim.x": "out.shape[2]"}, "race", "of its own"
        ),
    ),
)
