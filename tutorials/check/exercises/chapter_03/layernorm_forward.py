"""03_layernorm_forward: a row's mean, its spread, its output."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ODD, ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

FEW = Sizes(B=1, T=3, C=5, NH=1, V=2, Vp=2, OC=1)
LOOP = "range(i, C, stride)"
CHUNK = "range(i * ((C + 31) // 32), min(C, (i + 1) * ((C + 31) // 32)))"
EPS = 1e-5


def forward_with(variance=lambda inp: inp.var(axis=1), eps=EPS, has_weight=True, has_bias=True):
    """The result of a usual mistake."""

    def result(inp, weight, bias, **_):
        with np.errstate(all="ignore"):
            mean, rstd = inp.mean(axis=1), 1 / np.sqrt(variance(inp) + eps)
            out = (inp - mean[:, None]) * rstd[:, None] * (weight if has_weight else 1) + (bias if has_bias else 0)
        return {"out": out, "mean": mean, "rstd": rstd}

    return result


def own_part(inp, **_):
    """The mean if each thread divides its own part; at few sizes a thread has one channel."""
    C = inp.shape[1]
    return {"mean": np.full(len(inp), np.nan) if C == 1 else inp[:, ::32].sum(axis=1) / C}


def own_squares(inp, **_):
    """rstd if each thread takes the squares of its own channels only."""
    C, distance = inp.shape[1], inp - inp.mean(axis=1, keepdims=True)
    return {"rstd": np.full(len(inp), np.nan) if C == 1 else 1 / np.sqrt((distance[:, ::32] ** 2).sum(axis=1) / C + EPS)}


EXERCISE = layer_exercise(
    function="layernorm_forward",
    layers=("layernorm",),
    sizes=(FEW, ONES, ODD),
    least=Counts(global_reads=6, global_writes=4, shared_reads=22, shared_writes=12),
    taken=Counts(global_reads=12, global_writes=4, shared_reads=22, shared_writes=12),  # inp three times, and twice for its square
    least_transactions=540,  # of three passes in which inp stands once, with weight and bias for each row
    drawn=("inp",),
    hints={
        "": (
            "Three loops over range(i, C, stride): the sum of inp, the sum of the squares of (inp - row_mean), out.",
            "After the first loop row_mean = block_sum(part) / float32(C), in every thread; after the second row_rstd, in the same way.",
            "row_rstd = ONE / math.sqrt(block_sum(part) / float32(C) + EPS)",
        ),
        "not written": ("A row may have more channels than the block has threads: does each of your loops reach all of them?",),
        "value": (
            "What is the first wrong number: row_mean, the variance, row_rstd? Print them in the kernel, for row 0 and thread 0.",
            "A thread's part must start from ZERO in each pass, and every sum must go through block_sum.",
            "The variance is the mean of (inp - row_mean)², so it needs a loop of its own; the mean of inp² minus mean² has too few digits.",
        ),
        "race": ("All threads know the row's mean and rstd; only one of them may write them: if i == 0. And none may read them back.",),
        "barrier": ("There are barriers inside block_sum: all 32 threads must call it, also those that have no channel.",),
        "shared": ("One thread does the work of 32. Each has its own channels, i, i + 32, ..., and block_sum, through shared memory, adds up the parts.",),
        "transactions": ("Neighbouring threads must read neighbouring channels: thread i takes channels i, i + 32, i + 64, ...",),
        "float64": ("C is an integer, and Numba divides float32 by an integer in float64: divide by float32(C). A bare 0.0 is float64, too: use ZERO.",),
    },
    mistakes=(
        Mistake(own_part, "mean[row] is thread 0's part alone, divided by C: block_sum(part) is the sum over all threads."),
        Mistake(own_squares, "rstd[row] has the squares of thread 0's channels alone: block_sum(part) is the sum over all threads."),
        Mistake(forward_with(eps=0), "EPS is missing: without it a row whose channels are all equal divides by 0."),
        Mistake(forward_with(lambda inp: inp.var(axis=1, ddof=1)), "That is with C - 1: LayerNorm divides the sum of the squares by C."),
        Mistake(forward_with(lambda inp: inp.shape[1] * inp.var(axis=1)), "The variance is the sum of the squares divided by C."),
        Mistake(forward_with(lambda inp: (inp**2).mean(axis=1)), "That is the mean of inp²: subtract the mean before you square."),
        Mistake(forward_with(has_bias=False), "bias is missing."),
        Mistake(forward_with(has_weight=False), "weight is missing."),
    ),
    wrong=(
        Wrong("no EPS", {" + EPS": ""}, "value", "EPS"),
        Wrong("C - 1", {"float32(C) + EPS": "float32(max(C - 1, 1)) + EPS"}, "value", "with C - 1"),
        Wrong("a sum instead of a mean", {"block_sum(part) / float32(C) + EPS": "block_sum(part) + EPS"}, "value", "divided by C"),
        Wrong("the mean of the squares", {"(inp[row, c] - row_mean) * (inp[row, c] - row_mean)": "inp[row, c] * inp[row, c]"}, "value", "mean of inp²"),
        Wrong("E[x²] - E[x]²", {"(inp[row, c] - row_mean) * (inp[row, c] - row_mean)": "inp[row, c] * inp[row, c]",
            "block_sum(part) / float32(C) + EPS": "block_sum(part) / float32(C) - row_mean * row_mean + EPS"}, "value", "first wrong number"),
        Wrong("the second sum starts from the first", {"\n\n    part = ZERO\n": "\n\n"}, "value"),
        Wrong("no bias", {" + bias[c]": ""}, "value", "bias is missing"),
        Wrong("no weight", {" * weight[c]": ""}, "value", "weight is missing"),
        Wrong("each thread's own sum", {"row_mean = block_sum(part)": "row_mean = part"}, "value", "mean[row] is thread 0's"),
        Wrong("each thread's own squares", {"block_sum(part) / float32(C) + EPS": "part / float32(C) + EPS"}, "value", "rstd[row] has"),
        Wrong("thread 0 does all", {"    part = ZERO\n    for c in range(i, C, stride):\n        part += inp": "    if i > 0:\n        return\n"
            "    part = ZERO\n    for c in range(i, C, stride):\n        part += inp", LOOP: "range(C)", "block_sum(part)": "part"}, "shared", "work of 32"),
        Wrong("the first 32 channels only", {f"for c in {LOOP}:\n        out": "for c in range(i, min(C, 32), stride):\n        out"},
            "not written", "each of your loops"),
        Wrong("all threads write the mean", {"    if i == 0:\n        mean[row] = row_mean\n        rstd": "    mean[row] = row_mean\n    if i == 0:\n        rstd"},
            "race", "only one of them"),
        Wrong("the mean through global memory", {"    part = ZERO\n    for c in range(i, C, stride):\n        part += (inp": "    if i == 0:\n"
            "        mean[row] = row_mean\n    row_mean = mean[row]\n    part = ZERO\n    for c in range(i, C, stride):\n        part += (inp"}, "race",
            "read them back"),
        Wrong("threads without a channel leave", {"    part = ZERO\n    for c in range(i, C, stride):\n        part += inp": "    if i >= C:\n        return\n"
            "    part = ZERO\n    for c in range(i, C, stride):\n        part += inp"}, "barrier", "also those that have no channel"),
        Wrong("a chunk for each thread", {LOOP: CHUNK}, "transactions", "neighbouring channels"),
        Wrong("a chunk, and inp stands once", {LOOP: CHUNK, "        part += (inp[row, c] - row_mean) * (inp[row, c] - row_mean)":
            "        distance = inp[row, c] - row_mean\n        part += distance * distance"}, "transactions", "neighbouring channels"),
        Wrong("the row of a neighbour", {"mean[row] = row_mean": "mean[row - 1] = row_mean"}, "bounds"),
        Wrong("divides by an integer", {"row_mean = block_sum(part) / float32(C)": "row_mean = block_sum(part) / C"}, "float64", "float32(C)"),
    ),
)  # fmt: skip
