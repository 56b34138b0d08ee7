"""04_matmul_backward: two products, and the sum of each column."""

from gpt2_numba.layer_checks.sizes import MANY_ROWS, ONES
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.exercises.chapter_04.matmul_forward import ALL_DIFFERENT, FEW, LIMITLESS
from tutorials.check.layer_exercises import layer_exercise


def dinp_only(product):
    return lambda dout, inp, weight, **_: {"dinp": product(dout, inp, weight)}


EXERCISE = layer_exercise(
    function="matmul_backward",
    layers=("matmul", "matmul without bias"),
    sizes=(FEW, ONES, MANY_ROWS, ALL_DIFFERENT),
    least=Counts(global_reads=11, global_writes=1),  # a column of dout, and dbias; by tiles of 16 × 16 the products read less
    taken=Counts(global_reads=26, global_writes=1),
    most=Counts(global_reads=26, global_writes=1, shared_reads=LIMITLESS, shared_writes=LIMITLESS),
    hints={
        "": (
            "Each kernel is the one of forward with other names: a guard, a sum in a variable, one write. Which index is summed?",
            "dinp: for o in range(dout.shape[1]): total += dout[n, o] * weight[o, c]",
            "dweight: for n in range(dout.shape[0]): total += dout[n, o] * inp[n, c]. dbias: the same loop, and dout[n, o] alone.",
        ),
        "value": ("dinp is overwritten, =. The gradients of parameters, dweight and dbias, are added to what they hold, +=.",),
        "bounds": (
            "Is there a guard, for rows and for columns? Blocks stick out of dinp, of dweight, and of dbias. If there is, compare the indices: "
            "dout[n, o], inp[n, c], weight[o, c].",
            "n counts tokens, c input channels, o output channels. dout is [n, o], inp [n, c], weight [o, c].",
        ),
        "not written": ("Every thread that has a number of dinp writes it, even if it is the only one of its block.",),
        "race": ("Each number belongs to one thread: dinp[n, c], dweight[o, c], dbias[o], with the thread's own indices.",),
        "accesses": ("Add up in a variable, and read and write the gradient itself once, after the loop.",),
        "float64": ("A bare 0.0 is float64, and makes the sum float64: begin with ZERO.",),
    },
    mistakes=(
        Mistake(dinp_only(lambda dout, inp, weight: dout[:, :-1] @ weight[:-1]), "The last output channel is missing from dinp."),
        Mistake(
            lambda dout, inp, **_: {"dweight": dout.T @ inp},
            "dweight is right, but for what it held before: a step may have several batches, dweight[o, c] += total.",
        ),
        Mistake(
            lambda dout, dbias, **_: {"dbias": dout.sum(axis=0)},
            "dbias is right, but for what it held before: a step may have several batches, dbias[o] += total.",
        ),
        Mistake(lambda dout, inp, dweight, **_: {"dweight": dweight + dout[:-1].T @ inp[:-1]}, "The last token is missing from dweight."),
        Mistake(lambda dout, dbias, **_: {"dbias": dbias + dout[:-1].sum(axis=0)}, "The last token is missing from dbias."),
    ),
    wrong=(
        Wrong("dweight is overwritten", {"dweight[o, c] += total": "dweight[o, c] = total"}, "value", "several batches"),
        Wrong("dbias is overwritten", {"dbias[o] += total": "dbias[o] = total"}, "value", "several batches"),
        Wrong("dinp is added to", {"dinp[n, c] = total": "dinp[n, c] += total"}, "value", "overwritten"),
        Wrong("weight turned over", {"weight[o, c]\n": "weight[c, o]\n"}, "bounds", "compare the indices"),
        Wrong("dout turned over", {"dout[n, o] * inp[n, c]": "dout[o, n] * inp[n, c]"}, "bounds"),
        Wrong("no guard for dinp", {"if n < dinp.shape[0] and c < dinp.shape[1]:": "if True:"}, "bounds", "guard"),
        Wrong("no guard for the columns of dweight", {"if o < dweight.shape[0] and c < dweight.shape[1]:": "if o < dweight.shape[0]:"},
            "bounds", "guard"),
        Wrong("no guard for dbias", {"if o < dbias.shape[0]:": "if True:"}, "bounds", "guard"),
        Wrong("the last output channel is forgotten", {"range(dout.shape[1])": "range(dout.shape[1] - 1)"}, "value", "last output channel"),
        Wrong("the last token is forgotten", {"for n in range(dout.shape[0]):\n            total += dout[n, o] *":
            "for n in range(dout.shape[0] - 1):\n            total += dout[n, o] *"}, "value", "missing from dweight"),
        Wrong("the last token is forgotten in dbias", {"for n in range(dout.shape[0]):\n            total += dout[n, o]\n":
            "for n in range(dout.shape[0] - 1):\n            total += dout[n, o]\n"}, "value", "missing from dbias"),
        Wrong("the gradient of a neighbour", {"            total += dout[n, o]\n":
            "            total += dout[n, (o + 1) % dout.shape[1]]\n"}, "value"),
        Wrong("all threads add to dbias[0]", {"dbias[o] += total": "dbias[0] += total"}, "race", "one thread"),
        Wrong("dbias in global memory", {"            total += dout[n, o]\n        dbias[o] += total":
            "            dbias[o] += dout[n, o]"},
            "accesses", "in a variable"),
        Wrong("a bare 0.0", {"total = ZERO\n        for o": "total = 0.0\n        for o"}, "float64", "bare 0.0"),
    ),
)  # fmt: skip
