"""07_fused: the sum is normalised by the threads that have it."""

import numpy as np

from gpt2_numba.layer_checks.calls import read, written
from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong

EPS = 1e-5


def arrays(random, N, C):
    inp, branch = (0.5 + 0.1 * random.standard_normal((N, C)) for _ in range(2))
    weight, bias = 1 + 0.3 * random.standard_normal(C), random.standard_normal(C)
    outputs = {"residual": written(N, C), "out": written(N, C), "mean": written(N), "rstd": written(N)}
    return {**outputs, "inp": read(inp), "branch": read(branch), "weight": read(weight), "bias": read(bias)}


def made(normalised, variance=lambda x: x.var(axis=1), eps=EPS, has_weight=True, has_bias=True):
    """The results if `normalised(inp, branch)` is what goes through the LayerNorm."""

    def result(inp, branch, weight, bias):
        x = normalised(inp, branch)
        with np.errstate(all="ignore"):
            mean, rstd = x.mean(axis=1), 1 / np.sqrt(variance(x) + eps)
            out = (x - mean[:, None]) * rstd[:, None] * (weight if has_weight else 1) + (bias if has_bias else 0)
        return {"residual": inp + branch, "out": out, "mean": mean, "rstd": rstd}

    return result


def both(inp, branch):
    return inp + branch


def error(inp, branch, weight, bias):
    """The sum is rounded once; a sum of C terms rounds C times; the error of the mean moves out, that of the sum of squares moves rstd."""
    C, right = inp.shape[1], made(both)(inp, branch, weight, bias)
    x = np.abs(inp + branch)
    mean, relative_rstd = (C + 2) * UNIT * x.mean(axis=1), (C + 8) * UNIT + 4 * UNIT * (x.max(axis=1) * right["rstd"])
    scale = right["rstd"][:, None] * np.abs(weight)
    out = (mean[:, None] + UNIT * x) * scale + np.abs(right["out"] - bias) * (relative_rstd[:, None] + 4 * UNIT) + UNIT * np.abs(bias)
    return {"residual": UNIT * x, "out": out, "mean": mean, "rstd": right["rstd"] * relative_rstd}


def overwritten(inp, branch, weight, bias):
    """residual holds the normalised rows, or the stream alone."""
    return {"residual": made(both)(inp, branch, weight, bias)["out"]}


READ = "            x[j] = inp[row, c] + branch[row, c]\n            residual[row, c] = x[j]\n"
OUT = "out[row, c] = (x[j] - row_mean) * row_rstd"

EXERCISE = Exercise(
    function="residual_layernorm_forward",
    arrays=arrays,
    reference=made(both),
    error=error,
    sizes=({"N": 2, "C": 5}, {"N": 1, "C": 1}, {"N": 3, "C": 33}, {"N": 2, "C": 128}, {"N": 7, "C": 3}, {"N": 3, "C": 97}),
    least=Counts(global_reads=16, global_writes=10, shared_reads=22, shared_writes=12),
    most=Counts(global_reads=16, global_writes=10, shared_reads=22, shared_writes=12),
    least_transactions=240,
    drawn=("inp",),
    hints={
        "": (
            "Three loops over j in range(PER_THREAD), each with c = i + j * THREADS and `if c < C`. Only the first one reads inp and branch.",
            "In the first loop: x[j] = inp[row, c] + branch[row, c], residual[row, c] = x[j], part += x[j]. Then the mean, by block_sum.",
            "The second loop adds up (x[j] - row_mean)², the third one writes out.",
        ),
        "not written": ("Four outputs: residual and out by all threads, mean and rstd by one of them.",),
        "value": (
            "What is the first wrong number: residual, row_mean, row_rstd, out? And a thread's part must start from ZERO in each pass. (Only the last digits "
            "of rstd? The mean of x² less mean² cancels: chapter 03, section 2.)",
            "x[j] of a channel that does not exist holds whatever was there: leave it out of every sum.",
        ),
        "accesses": (
            "Once a number is in x[j], neither inp, branch nor residual need be read again: count how often each is mentioned.",
            "32 threads share a row: channels i, i + 32, i + 64, i + 96 for thread i.",
        ),
        "transactions": ("Neighbouring threads must take neighbouring channels: channel i + j * THREADS for thread i.",),
        "race": ("Which threads write mean[row] and rstd[row]? One is enough, if i == 0; and nobody need read them.",),
        "barrier": ("There are barriers inside block_sum: all 32 threads must call it, also those that have no channel.",),
        "bounds": ("A row may be shorter than 128: the channel i + j * THREADS may not exist.",),
        "float64": ("C is an integer, and Numba divides float32 by an integer in float64: divide by float32(C).",),
    },
    mistakes=(
        Mistake(made(lambda inp, branch: inp), "The LayerNorm must see the sum; yours has normalised the stream before the addition."),
        Mistake(made(lambda inp, branch: branch), "The LayerNorm must see the sum; yours has normalised the branch alone."),
        Mistake(made(both, eps=0), "EPS is missing: it stands under the root."),
        Mistake(made(both, lambda x: x.shape[1] * x.var(axis=1)), "The variance is the sum of the squares divided by C."),
        Mistake(made(both, lambda x: (x**2).mean(axis=1)), "That is the mean of the squares: subtract the mean before you square."),
        Mistake(made(both, lambda x: x.shape[1] * x.var(axis=1) / (x.shape[1] - 1)), "That is divided by C - 1, as torch.var does: LayerNorm divides by C."),
        Mistake(made(both, lambda x: x.var(axis=1) + (128 / x.shape[1] - 1) * x.mean(axis=1) ** 2 if x.shape[1] < 128 else np.nan),
            "Channels that do not exist, with x[j] = 0, have been counted in the variance, as (0 - mean)²: `if c < C`, there too."),
        Mistake(made(both, has_weight=False), "weight is missing."),
        Mistake(made(both, has_bias=False), "bias is missing."),
        Mistake(overwritten, "residual must hold the sum, which backward will need: yours holds the normalised rows."),
        Mistake(lambda inp, branch, weight, bias: {"residual": inp}, "residual must hold the sum: the branch has been forgotten."),
    ),
    wrong=(
        Wrong("normalises the stream", {READ: "            x[j] = inp[row, c]\n            residual[row, c] = x[j] + branch[row, c]\n"}, "value", "before the addition"),
        Wrong("no branch", {"inp[row, c] + branch[row, c]": "inp[row, c]"}, "value", "branch has been forgotten"),
        Wrong("no EPS", {" + EPS": ""}, "value", "EPS"),
        Wrong("no weight", {" * weight[c]": ""}, "value", "weight is missing"),
        Wrong("no bias", {" + bias[c]": ""}, "value", "bias is missing"),
        Wrong("the mean of the squares", {"(x[j] - row_mean) * (x[j] - row_mean)": "x[j] * x[j]"}, "value", "before you square"),
        Wrong("a sum instead of a mean", {"block_sum(part) / float32(C) + EPS": "block_sum(part) + EPS"}, "value", "divided by C"),
        Wrong("divides by C - 1", {"block_sum(part) / float32(C) + EPS": "block_sum(part) / float32(max(C - 1, 1)) + EPS"}, "value", "torch.var"),
        Wrong("counts zeros in the variance", {"        if c < C:\n            x[j] = inp": "        x[j] = ZERO\n        if c < C:\n            x[j] = inp",
            "        if i + j * THREADS < C:\n            part": "        if True:\n            part"}, "value", "do not exist"),
        Wrong("the mean of the squares less the square of the mean", {"part += (x[j] - row_mean) * (x[j] - row_mean)": "part += x[j] * x[j]",
            "block_sum(part) / float32(C) + EPS": "block_sum(part) / float32(C) - row_mean * row_mean + EPS"}, "value", "cancels"),
        Wrong("the second sum starts from the first", {"\n\n    part = ZERO\n": "\n\n"}, "value", "start from ZERO"),
        Wrong("each thread's own sum", {"row_mean = block_sum(part)": "row_mean = part"}, "value"),
        Wrong("counts channels that do not exist", {"        if i + j * THREADS < C:\n            part": "        if True:\n            part"}, "value"),
        Wrong("residual holds the result", {"            residual[row, c] = x[j]\n": "", OUT: f"residual[row, c] = {OUT}"}, "value", "normalised rows"),
        Wrong("residual is not written", {"            residual[row, c] = x[j]\n": ""}, "not written", "Four outputs"),
        Wrong("reads the sum back", {"(x[j] - row_mean) * row_rstd": "(residual[row, c] - row_mean) * row_rstd"}, "accesses", "read again"),
        Wrong("adds twice", {"(x[j] - row_mean) * row_rstd": "(inp[row, c] + branch[row, c] - row_mean) * row_rstd"}, "accesses", "read again"),
        Wrong("two passes over the sum", {"part += (x[j] - row_mean) * (x[j] - row_mean)": "part += (residual[row, i + j * THREADS] - row_mean) * (x[j] - row_mean)"},
            "accesses", "read again"),
        Wrong("a chunk for each thread", {"i + j * THREADS": "i * PER_THREAD + j"}, "transactions", "neighbouring channels"),
        Wrong("no condition", {"        if c < C:\n            x[j]": "        if True:\n            x[j]"}, "bounds", "shorter than 128"),
        Wrong("all threads write the mean", {"    if i == 0:\n        mean[row] = row_mean\n": "    mean[row] = row_mean\n    if i == 0:\n"}, "race", "One is enough"),
        Wrong("threads without a channel leave", {"    part = ZERO\n    for j in range(PER_THREAD):\n        c =": "    if i >= C:\n        return\n    part = ZERO\n"
            "    for j in range(PER_THREAD):\n        c ="}, "barrier", "no channel"),
        Wrong("divides by an integer", {"row_mean = block_sum(part) / float32(C)": "row_mean = block_sum(part) / C"}, "float64", "float32(C)"),
    ),
)  # fmt: skip
