"""03_layernorm_backward: a kernel by rows, and one by columns."""

from gpt2_numba.layer_checks.sizes import ODD, ONES
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.exercises.chapter_03.layernorm_backward_numpy import dinp_with, mean, right
from tutorials.check.exercises.chapter_03.layernorm_forward import CHUNK, FEW, LOOP
from tutorials.check.layer_exercises import layer_exercise


def overwritten(dweight, dbias, dout, inp, mean, rstd, **_):
    return {"dweight": (dout * (inp - mean[:, None]) * rstd[:, None]).sum(axis=0)}


GUARD = "    if c < inp.shape[1]:\n        dw, db"

EXERCISE = layer_exercise(
    function="layernorm_backward",
    layers=("layernorm",),
    sizes=(FEW, ONES, ODD),
    least=Counts(global_reads=58, global_writes=2, shared_reads=22, shared_writes=12),
    taken=Counts(global_reads=72, global_writes=2, shared_reads=22, shared_writes=12),  # dout stands twice in the loop
    least_transactions=988,  # if each kernel keeps in variables what it uses twice in a round
    drawn=("dout",),
    hints={
        "": (
            "First kernel: one loop over range(i, C, stride) for the sums of dxhat and of dxhat * xhat, then block_sum for each, then a loop for dinp.",
            "Second kernel: if c < inp.shape[1], then a loop over all rows that adds up dout * xhat and dout of column c.",
            "dweight[c] += dw and dbias[c] += db, once, at the end: no other thread has this channel.",
        ),
        "value": (
            "Which array is wrong? dinp belongs to the first kernel, dweight and dbias to the second. All three are added to: +=.",
            "Both sums of the first kernel must go through block_sum: a thread's own part knows its own channels only.",
            "Right with C = 5, wrong with C = 39? Then a thread has two channels, and its second loop must compute xhat and dxhat of each again.",
        ),
        "race": ("Two threads add to the same element. Whose is dinp[row, c], and whose is dweight[c]? Each must have one owner.",),
        "barrier": ("All 32 threads of a block must call block_sum, also those that have no channel.",),
        "bounds": ("There may be more threads than channels in the second kernel: if c < inp.shape[1].",),
        "shared": ("One thread does the work of 32. Each has its own channels, and block_sum, through shared memory, adds up the parts.",),
        "transactions": ("Neighbouring threads must read neighbouring channels: in the first kernel thread i takes i, i + stride, i + 2 stride, ...",),
        "float64": ("C is an integer, and Numba divides float32 by an integer in float64: divide by float32(C). A bare 0.0 is float64, too: use ZERO.",),
    },
    mistakes=(
        Mistake(dinp_with(right, accumulate=False), "That is the right gradient, but it has overwritten what dinp held: dinp[row, c] += ..."),
        Mistake(dinp_with(lambda dxhat, xhat, dout: dxhat - mean(dxhat)), "The third term of dinp is missing: the spread moves, too."),
        Mistake(dinp_with(lambda dxhat, xhat, dout: dxhat - xhat * mean(dxhat * xhat)), "The second term of dinp is missing: the mean moves, too."),
        Mistake(
            dinp_with(lambda dxhat, xhat, dout: dout - mean(dout) - xhat * mean(dout * xhat)),
            "dinp is computed with dout in place of dxhat = dout * weight.",
        ),
        Mistake(
            dinp_with(lambda dxhat, xhat, dout: dxhat - xhat.shape[1] * (mean(dxhat) + xhat * mean(dxhat * xhat))),
            "dinp needs the means of dxhat and of dxhat * xhat: divide both sums by C.",
        ),
        Mistake(overwritten, "dweight is right, but for what it held: a step may have several batches, dweight[c] += dw."),
    ),
    wrong=(
        Wrong("dinp is overwritten", {"dinp[row, c] += ": "dinp[row, c] = "}, "value", "overwritten"),
        Wrong("no third term", {" - xhat * mean_dxhat_xhat": ""}, "value", "third term"),
        Wrong("no second term", {"dxhat - mean_dxhat - xhat": "dxhat - xhat"}, "value", "second term"),
        Wrong("without weight", {"dout[row, c] * weight[c]": "dout[row, c]"}, "value", "in place of dxhat"),
        Wrong("sums for means", {"block_sum(sum_dxhat) / float32(C)": "block_sum(sum_dxhat)",
            "block_sum(sum_dxhat_xhat) / float32(C)": "block_sum(sum_dxhat_xhat)"}, "value", "divide both"),
        Wrong("each thread's own sum", {"block_sum(sum_dxhat)": "sum_dxhat"}, "value"),
        Wrong("dweight is overwritten", {"dweight[c] += dw": "dweight[c] = dw"}, "value", "several batches"),
        Wrong("dbias is overwritten", {"dbias[c] += db": "dbias[c] = db"}, "value", "All three"),
        Wrong("the mean of another row", {"(inp[row, c] - mean[row])": "(inp[row, c] - mean[0])"}, "value"),
        Wrong("the last row is forgotten", {"range(inp.shape[0])": "range(inp.shape[0] - 1)"}, "value"),
        Wrong("xhat is left from the first loop", {"        xhat = (inp[row, c] - row_mean) * row_rstd\n        dxhat = dout[row, c] * weight[c]\n"
            "        dinp": "        dinp"}, "value", "Which array"),
        Wrong("a chunk for each thread", {LOOP: CHUNK}, "transactions", "neighbouring channels"),
        Wrong("no guard", {GUARD: "    if True:\n        dw, db"}, "bounds", "more threads than channels"),
        Wrong("all rows add to dweight", {"dinp[row, c] += ": "dweight_of_all[c] += dout[row, c] * xhat\n        dinp[row, c] += ",
            "kernel(dinp, dout": "kernel(dweight_of_all, dinp, dout", "[N, THREADS](": "[N, THREADS](dweight, "}, "race", "one owner"),
        Wrong("every thread takes all channels", {"range(i, C, stride)": "range(C)"}, "race", "one owner"),
        Wrong("block_sum under a condition", {"    mean_dxhat = block": "    if i >= C:\n        return\n    mean_dxhat = block"}, "barrier", "no channel"),
        Wrong("divides by an integer", {"float32(C)": "C"}, "float64", "float32(C)"),
        Wrong("starts from a bare 0.0", {"sum_dxhat, sum_dxhat_xhat = ZERO, ZERO": "sum_dxhat, sum_dxhat_xhat = 0.0, 0.0"}, "float64", "use ZERO"),
    ),
)  # fmt: skip
