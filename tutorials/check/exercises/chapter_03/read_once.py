"""03_read_once: the row stays with the threads that have read it."""

import numpy as np

from gpt2_numba.layer_checks.calls import read, written
from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong

EPS = 1e-5


def arrays(random, N, C):
    inp = 0.5 + 0.1 * random.standard_normal((N, C))
    return {"out": written(N, C), "mean": written(N), "rstd": written(N), "inp": read(inp)}


def normalised(inp, variance):
    mean, rstd = inp.mean(axis=1), 1 / np.sqrt(variance + EPS)
    return {"out": (inp - mean[:, None]) * rstd[:, None], "mean": mean, "rstd": rstd}


def reference(inp):
    return normalised(inp, inp.var(axis=1))


def error(inp):
    """A sum of C terms rounds C times; the error of the mean moves out, that of the sum of the squares moves rstd."""
    C, right = inp.shape[1], reference(inp)
    mean, relative_rstd = (C + 1) * UNIT * np.abs(inp).mean(axis=1), (C + 8) * UNIT
    out = (mean * right["rstd"])[:, None] + np.abs(right["out"]) * (relative_rstd + 4 * UNIT)
    return {"out": out, "mean": mean, "rstd": right["rstd"] * relative_rstd}


def padded(inp):
    """The variance if each of the 128 - C missing channels counts as a 0 in the row."""
    C, mean = inp.shape[1], inp.mean(axis=1)
    return normalised(inp, inp.var(axis=1) + (128 - C) * mean**2 / C)


CONDITION = "        if i + j * THREADS < C:\n            part += (x[j] - row_mean) * (x[j] - row_mean)\n"

EXERCISE = Exercise(
    function="normalise",
    arrays=arrays,
    reference=reference,
    error=error,
    sizes=({"N": 2, "C": 5}, {"N": 1, "C": 1}, {"N": 3, "C": 33}, {"N": 2, "C": 128}, {"N": 33, "C": 3}, {"N": 3, "C": 97}),
    least=Counts(global_reads=4, global_writes=6, shared_reads=22, shared_writes=12),
    least_transactions=76,  # 3 · 97 elements of inp and as many of out, and a piece each of mean and rstd
    drawn=("inp", "out"),
    local_refused=True,
    hints={
        "": (
            "Three loops over j in range(PER_THREAD), each with c = i + j * THREADS and `if c < C`. Only the first one reads inp.",
            "In the first loop: x[j] = inp[row, c], then part += x[j]. The second one adds up (x[j] - row_mean)², the third one writes out.",
        ),
        "transactions": (
            "Does inp stand in one loop only? For after the first one, x[j] has what you need. And are neighbouring threads at neighbouring channels?",
            "Look at the picture: in one read, the threads of the warp must be side by side, at c = i + j * THREADS.",
        ),
        "local": ("Loop over range(PER_THREAD), which has a constant length: then each index of x is known when the kernel is compiled.",),
        "shared": ("One thread does the work of 32. Each has its own channels, and block_sum, through shared memory, adds up the parts.",),
        "float64": ("C is an integer, and Numba divides float32 by an integer in float64: divide by float32(C). A bare 0.0 is float64, too: use ZERO.",),
        "race": ("x is each thread's own: no other thread sees it. Which threads write mean[row]? One is enough: if i == 0.",),
        "barrier": ("All 32 threads must call block_sum, also those that have no channel.",),
        "bounds": ("A row may be shorter than 128: the channel i + j * THREADS may not exist.",),
        "value": (
            "Wrong in the last digits only? Then you took mean of x² - mean², which cancels (section 2): x is at hand, so add up (x[j] - row_mean)². "
            "Otherwise: x[j] of a channel that does not exist holds whatever was there, so leave it out of every sum.",
        ),
    },
    mistakes=(
        Mistake(lambda inp: normalised(inp, inp.var(axis=1) - EPS), "EPS is missing: it stands under the root."),
        Mistake(padded, "Channels that do not exist have been counted: each adds mean² to the sum of the squares. Only where c < C."),
    ),
    wrong=(
        Wrong("reads three times", {"part += (x[j] - row_mean) * (x[j] - row_mean)": "part += (inp[row, i + j * THREADS] - row_mean) * "
            "(inp[row, i + j * THREADS] - row_mean)", "(x[j] - row_mean) * row_rstd": "(inp[row, c] - row_mean) * row_rstd"}, "transactions", "after the first"),
        Wrong("reads once more for the output", {"(x[j] - row_mean) * row_rstd": "(inp[row, c] - row_mean) * row_rstd"}, "transactions", "after the first"),
        Wrong("reads out again", {"    if i == 0:\n        mean": "    for j in range(PER_THREAD):\n        if i + j * THREADS < C:\n"
            "            out[row, i + j * THREADS] = out[row, i + j * THREADS]\n    if i == 0:\n        mean"}, "transactions"),
        Wrong("a chunk for each thread", {"c = i + j * THREADS": "c = i * PER_THREAD + j", "if i + j * THREADS < C": "if i * PER_THREAD + j < C"},
            "transactions", "neighbouring channels"),
        Wrong("counts channels that do not exist", {CONDITION: "        part += (x[j] - row_mean) * (x[j] - row_mean)\n",
            "        c = i + j * THREADS\n        if c < C:\n            x[j]": "        c = i + j * THREADS\n        x[j] = ZERO\n        if c < C:\n            x[j]"},
            "value", "do not exist"),
        Wrong("no condition", {"        if c < C:\n            out[row, c] = ": "        if True:\n            out[row, c] = "}, "bounds", "shorter than 128"),
        Wrong("no EPS", {" + EPS": ""}, "value", "EPS is missing"),
        Wrong("E[x²] - E[x]²", {"(x[j] - row_mean) * (x[j] - row_mean)": "x[j] * x[j]",
            "float32(C) + EPS": "float32(C) - row_mean * row_mean + EPS"}, "value", "cancels"),
        Wrong("three of four", {"range(PER_THREAD)": "range(3)"}, "value"),
        Wrong("an index that is not known in advance", {"    for j in range(PER_THREAD):\n        c = i + j * THREADS\n        if c < C:\n            x[j] = inp[row, c]\n            part += x[j]\n":
            "    k = 0\n    for c in range(i, C, THREADS):\n        x[k] = inp[row, c]\n        part += x[k]\n        k += 1\n"}, "local", "constant length"),
        Wrong("divides by an integer", {"float32(C)": "C"}, "float64", "float32(C)"),
        Wrong("all threads write", {"if i == 0:": "if True:"}, "race", "One is enough"),
        Wrong("threads without a channel leave", {"    part = ZERO\n    for j in range(PER_THREAD):\n        c": "    if i >= C:\n        return\n"
            "    part = ZERO\n    for j in range(PER_THREAD):\n        c"}, "barrier", "no channel"),
    ),
)  # fmt: skip
