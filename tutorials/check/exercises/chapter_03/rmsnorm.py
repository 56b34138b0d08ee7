"""03_rmsnorm: RMSNorm's backward."""

import numpy as np

from gpt2_numba.layer_checks.calls import changed, read
from gpt2_numba.layer_checks.tolerances import UNIT
from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong
from tutorials.check.exercises.chapter_03.layernorm_forward import CHUNK, LOOP


def arrays(random, N, C):
    normal = random.standard_normal
    inp = 0.5 + normal((N, C))
    rstd = 1 / np.sqrt((inp * inp).mean(axis=1) + 1e-5)
    return {
        "dinp": changed(np.ones((N, C), np.float32)), "dweight": changed(np.ones(C, np.float32)),
        "dout": read(normal((N, C))), "inp": read(inp), "weight": read(1 + 0.3 * normal(C)), "rstd": read(rstd),
    }  # fmt: skip


def mean(values):
    return values.mean(axis=1, keepdims=True)


def gradients(terms=lambda dxhat, xhat: dxhat - xhat * mean(dxhat * xhat)):
    """The gradients; terms: takes dxhat and xhat, returns what stands in the bracket of dinp."""

    def result(dout, inp, weight, rstd):
        xhat = inp * rstd[:, None]
        return {"dinp": rstd[:, None] * terms(dout * weight, xhat), "dweight": (dout * xhat).sum(axis=0)}

    return result


def after(dinp_terms):
    """The dinp of a usual mistake, which starts from ones."""
    return lambda **inputs: {"dinp": 1 + gradients(dinp_terms)(**inputs)["dinp"]}


def dinp_of(dout, inp, weight, rstd, by=None):
    """dinp with `by` in place of xhat as the factor of the mean; it starts from ones."""
    xhat, dxhat = inp * rstd[:, None], dout * weight
    return {"dinp": 1 + rstd[:, None] * (dxhat - (xhat if by is None else by) * mean(dxhat * xhat))}


def error(dout, inp, weight, rstd):
    """A sum of n terms rounds n times; the other operations on an element are eight."""
    N, C = inp.shape
    xhat, dxhat = inp * rstd[:, None], dout * weight
    dinp = rstd[:, None] * (8 * np.abs(dxhat) + (C + 8) * np.abs(xhat) * mean(np.abs(dxhat * xhat)))
    return {"dinp": UNIT * (dinp + 2), "dweight": UNIT * (N + 8) * (1 + np.abs(dout * xhat).sum(axis=0))}


EXERCISE = Exercise(
    function="rmsnorm_backward",
    arrays=arrays,
    reference=gradients(),
    error=error,
    sizes=({"N": 2, "C": 5}, {"N": 1, "C": 1}, {"N": 1, "C": 33}, {"N": 35, "C": 2}, {"N": 7, "C": 39}),
    least=Counts(global_reads=22, global_writes=2, shared_reads=11, shared_writes=6),
    least_transactions=477,  # those of the solution
    drawn=("dout",),
    hints={
        "": (
            "Two of the movements are left: inp[c] itself, and the spread. The mean, which is subtracted nowhere, moves nothing.",
            "dinp[c] += rstd (dxhat[c] - xhat[c] · mean of (dxhat · xhat)), with xhat = inp rstd and dxhat = dout weight: one block_sum.",
        ),
        "value": ("Which array is wrong? dinp belongs to the first kernel, dweight to the second. Both are added to: +=.",),
        "race": ("Two threads add to the same element. Whose is dinp[row, c], and whose is dweight[c]? Each must have one owner.",),
        "barrier": ("All 32 threads of a block must call block_sum, also those that have no channel.",),
        "bounds": ("There may be more threads than channels in the second kernel: if c < inp.shape[1].",),
        "shared": ("One thread does the work of 32. Each has its own channels, and block_sum, through shared memory, adds up the parts.",),
        "transactions": ("Neighbouring threads must read neighbouring channels: in the first kernel thread i takes i, i + stride, i + 2 stride, ...",),
        "float64": ("C is an integer, and Numba divides float32 by an integer in float64: divide by float32(C). A bare 0.0 is float64, too: use ZERO.",),
    },
    mistakes=(
        Mistake(lambda **inputs: {"dinp": gradients()(**inputs)["dinp"]}, "That is right, but it has overwritten what dinp held: dinp[row, c] += ..."),
        Mistake(after(lambda dxhat, xhat: dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)), "That is LayerNorm's: RMSNorm subtracts no mean."),
        Mistake(lambda dout, weight, **inputs: dinp_of(dout, weight=1, **inputs), "That is with dout in place of dxhat: dxhat = dout * weight."),
        Mistake(lambda inp, **inputs: dinp_of(inp=inp, by=inp, **inputs), "The mean is multiplied by xhat = inp * rstd, not by inp."),
        Mistake(after(lambda dxhat, xhat: dxhat - xhat * xhat.shape[1] * mean(dxhat * xhat)), "dinp needs the mean of dxhat * xhat: divide by C."),
        Mistake(after(lambda dxhat, xhat: dxhat), "The spread moves, too: its term is missing."),
        Mistake(after(lambda dxhat, xhat: dxhat - mean(dxhat * xhat)), "The term of the spread lacks its factor xhat[c]."),
    ),
    wrong=(
        Wrong("dinp is overwritten", {"dinp[row, c] += ": "dinp[row, c] = "}, "value", "overwritten"),
        Wrong("LayerNorm's", {"    part = ZERO\n": "    part = ZERO\n    other = ZERO\n    for c in range(i, C, stride):\n        other += dout[row, c] * weight[c]\n"
            "    mean_dxhat = block_sum(other) / float32(C)\n", "weight[c] - inp": "weight[c] - mean_dxhat - inp"}, "value", "LayerNorm's"),
        Wrong("no term of the spread", {" - inp[row, c] * row_rstd * mean_dxhat_xhat": ""}, "value", "its term"),
        Wrong("no xhat", {"inp[row, c] * row_rstd * mean_dxhat_xhat": "mean_dxhat_xhat"}, "value", "lacks"),
        Wrong("without weight", {"dout[row, c] * weight[c]": "dout[row, c]"}, "value", "in place of dxhat"),
        Wrong("inp for xhat", {"inp[row, c] * row_rstd * mean_dxhat_xhat": "inp[row, c] * mean_dxhat_xhat"}, "value", "not by inp"),
        Wrong("a sum for a mean", {"block_sum(part) / float32(C)": "block_sum(part)"}, "value", "divide by C"),
        Wrong("each thread's own sum", {"block_sum(part)": "part"}, "value"),
        Wrong("dweight is overwritten", {"dweight[c] += dw": "dweight[c] = dw"}, "value", "Both are added to"),
        Wrong("dweight without rstd", {"dout[row, c] * inp[row, c] * rstd[row]": "dout[row, c] * inp[row, c]"}, "value"),
        Wrong("a chunk for each thread", {LOOP: CHUNK}, "transactions", "neighbouring channels"),
        Wrong("no guard", {"    if c < inp.shape[1]:\n        dw": "    if True:\n        dw"}, "bounds", "more threads"),
        Wrong("block_sum under a condition", {"    mean_dxhat_xhat =": "    if i >= C:\n        return\n    mean_dxhat_xhat ="}, "barrier", "no channel"),
        Wrong("every thread takes all channels", {"range(i, C, stride)": "range(C)"}, "race", "one owner"),
        Wrong("divides by an integer", {"float32(C)": "C"}, "float64", "float32(C)"),
    ),
)  # fmt: skip
