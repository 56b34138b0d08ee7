"""09_norm_and_scale: one block, many partial sums, and numbers that are not finite."""

import math
from dataclasses import dataclass

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32
from gpt2_numba.layer_checks import kernel_calls
from gpt2_numba.layer_checks.calls import Call, read, written
from gpt2_numba.layer_checks.global_norm import result_errors
from gpt2_numba.layer_checks.running import run_on_device
from gpt2_numba.layer_checks.sizes import ONES
from gpt2_numba.layers.global_norm import norm_and_scale_ref
from tutorials.check.exercise import SEED, Counts, Mistake, Wrong
from tutorials.check.failures import Failure
from tutorials.check.layer_exercises import LayerExercise

LOOP = "range(cuda.threadIdx.x, partials.shape[0], cuda.blockDim.x)"
NOT_FINITE = "scale if math.isfinite(norm) and math.isfinite(loss[0]) else NAN"


@dataclass(frozen=True, kw_only=True)
class NormAndScale(LayerExercise):
    """A LayerExercise with any number of partial sums, and with everything that may not be finite. A size is {"partials": their number}."""

    def format_size(self, size):
        return f"{size['partials']:,} partial sum" + "s" * (size["partials"] != 1)

    def calls(self, function, size):
        count = size["partials"]
        partials = np.random.default_rng(SEED).random(count).astype(np.float32) + np.float32(0.5)
        norm = math.sqrt(partials.sum())
        for max_norm in (norm / 4, 3 * norm):
            yield call_with(function, partials, 3.25, max_norm)
        for loss in (math.inf, -math.inf, math.nan):
            yield call_with(function, partials, loss, 4 * norm, check=check_no_scale)
        for value in (math.inf, math.nan):
            spoilt = partials.copy()
            spoilt[-1] = value
            yield call_with(function, spoilt, 3.25, norm, check=check_no_scale)
        if count == self.sizes[-1]["partials"]:
            yield from kernel_calls("global norm", ONES, FLOAT32, _Only(function))  # the package's own


class _Only:
    """A set of kernels with one function."""

    def __init__(self, function):
        self.norm_and_scale = function


def call_with(function, partials, loss, max_norm, check=None):
    """A Call of the learner's function."""
    tensors = dict(result=written(2), partials=read(partials), loss=read(np.array([loss], np.float32)))
    return Call(
        "norm_and_scale", "norm_and_scale", tensors, lambda a: function(a.result, a.partials, a.loss, max_norm),
        lambda after, before, storage: result_errors(after, len(partials)),
        lambda a: norm_and_scale_ref(a.result, a.partials, a.loss, max_norm), check,
    )  # fmt: skip


def check_no_scale(call, storage):
    """Raises Failure unless the scale is NaN, and the norm what it is."""
    results, rows = run_on_device(call, storage)
    norm, scale = results["result"]
    due = math.sqrt(call.tensors["partials"].values.sum(dtype=np.float64))
    what = f"the loss is {call.tensors['loss'].values[0]:g}" if math.isfinite(due) else f"the norm is {due:g}"
    if not np.isnan(scale):
        failure = Failure("value", f"result[1] is {scale:.5g}, and must be NaN: {what}")
        failure.hint = "The scale is NaN unless both norm and loss[0] are finite. Not finite are NaN and both infinities: math.isfinite knows all three."
        raise failure
    if not np.isclose(norm, due, rtol=1e-5, equal_nan=True):
        raise Failure("value", f"result[0] is {norm:.5g}, and must be {due:.5g}, the norm, also where the scale is NaN ({what})")
    yield from rows


def made(norm_of=lambda partials: np.sqrt(partials.sum()), scale_of=None):
    """The result of a usual mistake. scale_of takes norm and the reference's max_norm; None: the scale is not looked at."""

    def result(result, partials, **_):
        norm = norm_of(partials)
        clip = np.sqrt(partials.sum()) / 4  # of the first call, which is the one that clips
        return {"result": [norm, scale_of(norm, clip)]}

    return result


EXERCISE = NormAndScale(
    function="norm_and_scale",
    layers=("global norm",),
    sizes=({"partials": 5}, {"partials": 1}, {"partials": 32}, {"partials": 100}),
    least=Counts(global_reads=5, global_writes=2, shared_reads=11, shared_writes=6),
    most=Counts(global_reads=8, global_writes=2, shared_reads=11, shared_writes=6),
    least_transactions=17,
    hints={
        "": (
            "Add up as in 09_sum_of_squares, but in one block, and the partial sums themselves. Then the root, then one thread writes both numbers.",
            "scale = max_norm / norm if norm > max_norm else ONE",
            "result[1] = scale if math.isfinite(norm) and math.isfinite(loss[0]) else NAN",
        ),
        "not written": ("result[0] is the norm and result[1] the scale: both are always written, by thread 0.",),
        "value": (
            "Which of the two is wrong, and what should it be? A norm of twice max_norm has the scale 1/2; one below max_norm has 1.",
            "There may be more partial sums than threads: a thread takes partials threadIdx.x, threadIdx.x + 32, ...; all of them must be in the norm.",
        ),
        "race": ("All threads know the norm; only one of them may write it: if cuda.threadIdx.x == 0.",),
        "bounds": ("There may be fewer partial sums than threads: a loop from threadIdx.x to partials.shape[0] is empty for the others.",),
        "barrier": ("There are barriers inside block_sum: all 32 threads must call it, also those without a partial sum.",),
        "shared": ("Share the partial sums out among the threads, and let block_sum bring them together.",),
        "accesses": ("Each partial sum is read by one thread, once.",),
        "transactions": ("Neighbouring threads must read neighbouring partial sums: thread i takes i, i + 32, i + 64, ...",),
        "error": ("math.sqrt of a negative number, or a division by 0? Partial sums of squares are never negative.",),
        "float64": ("A bare 1 or 1.0 in a kernel makes it float64: ONE. math.nan is a float64, too: NAN.",),
    },
    mistakes=(
        Mistake(made(lambda partials: partials.sum(), lambda norm, clip: clip / norm if norm > clip else 1), "The root is missing."),
        Mistake(made(scale_of=lambda norm, clip: clip / (norm + 1e-6)),
            "The scale is a little too small: nothing is added to the norm here, as clip_grad_norm_ of PyTorch does. No division by 0 can happen where norm > max_norm."),
        Mistake(made(lambda partials: np.sqrt(partials[:32].sum()) if len(partials) > 32 else math.nan, lambda norm, clip: clip / norm if norm > clip else 1),
            "There are more partial sums than threads here: each thread takes every 32nd, partials threadIdx.x, threadIdx.x + 32, ..."),
        Mistake(made(scale_of=lambda norm, clip: 1), "It never clips: the scale is max_norm / norm where norm > max_norm."),
        Mistake(made(scale_of=lambda norm, clip: norm / clip), "Upside down: a norm that is too large needs a scale below 1."),
        Mistake(made(scale_of=lambda norm, clip: clip), "That is max_norm: the scale brings the norm down to it."),
        Mistake(made(lambda partials: np.sqrt((partials**2).sum()), lambda norm, clip: clip / norm),
            "The partial sums are sums of squares already: add them up as they are."),
    ),
    wrong=(
        Wrong("no root", {"math.sqrt(block_sum(total))": "block_sum(total)"}, "value", "root is missing"),
        Wrong("squares again", {"total += partials[i]": "total += partials[i] * partials[i]"}, "value", "squares already"),
        Wrong("a small number under the fraction, as in PyTorch", {"max_norm / norm if norm > max_norm else ONE": "min(ONE, max_norm / (norm + np.float32(1e-6)))"},
            "value", "clip_grad_norm_"),
        Wrong("never clips", {"max_norm / norm if norm > max_norm else ONE": "ONE"}, "value", "never clips"),
        Wrong("always scales", {" if norm > max_norm else ONE": ""}, "value", "Which of the two"),
        Wrong("upside down", {"max_norm / norm if": "norm / max_norm if"}, "value", "Upside down"),
        Wrong("the other comparison", {"norm > max_norm": "norm < max_norm"}, "value"),
        Wrong("the norm after clipping", {"result[0] = norm": "result[0] = min(norm, max_norm)"}, "value"),
        Wrong("clips an infinite norm", {NOT_FINITE: "scale"}, "value", "knows all three"),
        Wrong("does not look at the loss", {" and math.isfinite(loss[0])": ""}, "value", "knows all three"),
        Wrong("does not look at the norm", {"math.isfinite(norm) and ": ""}, "value"),
        Wrong("knows NaN only", {NOT_FINITE: "scale if norm == norm and loss[0] == loss[0] else NAN"}, "value"),
        Wrong("knows infinity only", {NOT_FINITE: "NAN if math.isinf(norm) or math.isinf(loss[0]) else scale"}, "value"),
        Wrong("one infinity only", {NOT_FINITE: "scale if norm < np.float32(3e38) and loss[0] < np.float32(3e38) else NAN"}, "value"),
        Wrong("0 for NaN", {"else NAN": "else ZERO"}, "value"),
        Wrong("no norm where it is not finite", {"result[0] = norm": "result[0] = norm if math.isfinite(norm) else NAN"}, "value"),
        Wrong("as many partial sums as threads", {LOOP: "range(cuda.threadIdx.x, min(32, partials.shape[0]), 32)"}, "value", "more partial sums than threads"),
        Wrong("no loop", {f"for i in {LOOP}:": "if True:\n        i = cuda.threadIdx.x"}, "bounds", "fewer partial sums"),
        Wrong("thread 0's sum", {"block_sum(total)": "total"}, "value"),
        Wrong("all threads write", {"if cuda.threadIdx.x == 0:": "if True:"}, "race", "only one"),
        Wrong("every thread reads all", {LOOP: "range(partials.shape[0])", "math.sqrt(block_sum(total))": "math.sqrt(total)"}, "shared", "Share"),
        Wrong("one thread reads all", {LOOP: "range(partials.shape[0] if cuda.threadIdx.x == 0 else 0)"}, "accesses", "one thread, once"),
        Wrong("a chunk for each thread", {LOOP: "range(cuda.threadIdx.x * ((partials.shape[0] + 31) // 32), min(partials.shape[0], "
            "(cuda.threadIdx.x + 1) * ((partials.shape[0] + 31) // 32)))"}, "transactions", "neighbouring"),
        Wrong("threads without a partial sum leave", {"    total = ZERO\n": "    if cuda.threadIdx.x >= partials.shape[0]:\n        return\n    total = ZERO\n"},
            "barrier", "all 32"),
        Wrong("a bare 1.0", {"else ONE": "else 1.0"}, "float64", "ONE"),
        Wrong("a Python float", {"np.float32(max_norm)": "max_norm"}, "float64"),
    ),
)  # fmt: skip
