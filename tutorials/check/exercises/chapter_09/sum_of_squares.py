"""09_sum_of_squares: each block its share, in a fixed order."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from gpt2_numba.layer_checks.running import GuardedArray
from gpt2_numba.layer_checks.sizes import ODD, ONES
from gpt2_numba.layer_checks.tolerances import summation_error
from tutorials.check.exercise import Counts, Wrong
from tutorials.check.failures import Failure
from tutorials.check.layer_exercises import LayerExercise, in_several_orders

THREADS = 32  # of a block
FEW = replace(ONES, C=5)
LOOP = "range(cuda.grid(1), grads.shape[0], cuda.gridsize(1))"
SQUARE = "A thread adds grads[i] * grads[i] to its own sum."
ATOMIC = "Atomic additions come in the order in which threads arrive: use block_sum, and let one thread add to the block's partial sum."


@dataclass(frozen=True, kw_only=True)
class SumOfSquares(LayerExercise):
    """A LayerExercise that names usual wrong sums, and whose result must have the same bits in whatever order the threads run."""

    def format_size(self, size):
        return f"{size.Vp * size.C + 7:,} gradients"

    def calls(self, function, size):
        for call in super().calls(function, size):
            yield replace(call, check=check_total)
            yield in_several_orders(call, "partials")


def check_total(call, storage):
    """Launch once. Raises Failure, with the name of the mistake where there is one, if the total is wrong: any gradient may be in any share."""
    arrays = {name: GuardedArray(tensor, storage) for name, tensor in call.tensors.items()}
    call.launch(SimpleNamespace(**{name: array.array for name, array in arrays.items()}))
    for name, array in arrays.items():
        if problem := array.problem(array.fetch()):
            raise Failure("input", f"{name}: {problem}")
    before, grads = (call.tensors[name].values.astype(np.float64) for name in ("partials", "grads"))
    after = arrays["partials"].array.copy_to_host()
    added = after != call.tensors["partials"].values
    if not added.any():
        raise Failure("not written", "partials is as it was: nothing has been added")
    due, got = before.sum() + (grads * grads).sum(), after.sum(dtype=np.float64)
    if not abs(got - due) <= summation_error(len(grads) + 1, due):
        what, hint = named(got, before, grads)
        failure = Failure("value", f"the partial sums add up to {got:.7g}, and must add up to {due:.7g}{what and ': '}{what}")
        failure.hint = hint
        raise failure
    if len(grads) >= THREADS * len(added) and not added.all():
        raise Failure("accesses", f"the total is right, but block {np.argmin(added)} has added nothing: other blocks do its work")
    return []


def named(got, before, grads):
    """What has been added up instead, in words, and the hint that fits; two empty texts if it is none of the usual mistakes."""
    held, squares = before.sum(), (grads * grads).sum()
    known = {
        squares: (
            "what partials held before is lost",
            "partials[cuda.blockIdx.x] += total, since a model calls this once for each of its arrays.",
        ),
        held + grads.sum(): ("that is the sum of the gradients, and not of their squares", SQUARE),
        held + np.abs(grads).sum(): ("that is the sum of the gradients' sizes, and not of their squares", SQUARE),
        held + len(before) * squares: ("each gradient has been added by every block", ""),
        held + THREADS * squares: ("each gradient has been added by every thread of a block", ""),
        held + THREADS * len(before) * squares: ("each gradient has been added by every thread", ""),
    }
    return next((words for value, words in known.items() if abs(got - value) < 1e-5 * abs(value)), ("", ""))


EXERCISE = SumOfSquares(
    function="sum_of_squares",
    layers=("global norm",),
    sizes=(FEW, ONES, replace(ONES, C=100), replace(ODD, C=7)),
    least=Counts(global_reads=13, global_writes=1, shared_reads=11, shared_writes=6),
    most=Counts(global_reads=26, global_writes=2, shared_reads=11, shared_writes=6),
    least_transactions=130,  # 99, and as many gradients again for grads[i] * grads[i], which a compiler reads once
    drawn=("grads",),
    hints={
        "": (
            "A stride over the gradients, then block_sum, then one thread adds to partials[cuda.blockIdx.x].",
            "for i in range(cuda.grid(1), grads.shape[0], cuda.gridsize(1)): thread by thread through the whole grid.",
            "if cuda.threadIdx.x == 0: partials[cuda.blockIdx.x] += total",
        ),
        "value": (
            "Does every gradient belong to exactly one thread? There may be more gradients than threads: a stride of cuda.gridsize(1), from cuda.grid(1).",
            "partials[cuda.blockIdx.x] += the sum over the block's threads: block_sum gives it to all of them, and one adds it.",
        ),
        "race": (
            "Several threads add to the same partial sum: block_sum first, then one thread of the block, if cuda.threadIdx.x == 0.",
            ATOMIC,
        ),
        "barrier": ("There are barriers inside block_sum: all 32 threads must call it, also those that have no gradient.",),
        "bounds": ("Let the loop's range end at grads.shape[0]; and partials has one number for each block.",),
        "shared": ("It must go through block_sum. " + ATOMIC,),
        "accesses": ("Share the gradients out: the threads of all blocks together, each every cuda.gridsize(1)-th one.",),
        "transactions": ("Neighbouring threads must read neighbouring gradients: thread i takes i, i + (all threads), ...",),
        "float64": ("A sum that starts from 0.0 is float64: start from ZERO.",),
    },
    wrong=(
        Wrong("as it was given", {"    total = ZERO\n    for": "    return\n    total = ZERO\n    for"}, "not written", "stride"),
        Wrong("no squares", {"g * g": "g"}, "value", "grads[i] * grads[i]"),
        Wrong("overwrites", {"] += total": "] = total"}, "value", "once for each"),
        Wrong("every block takes all", {LOOP: "range(cuda.threadIdx.x, grads.shape[0], cuda.blockDim.x)"}, "value"),
        Wrong("the first gradients only", {LOOP: "range(cuda.grid(1), min(grads.shape[0], cuda.gridsize(1)), cuda.gridsize(1))"}, "value"),
        Wrong("the last gradient is left out", {LOOP: "range(cuda.grid(1), grads.shape[0] - 1, cuda.gridsize(1))"}, "value"),
        Wrong("thread 0's sum only", {"    total = block_sum(total)\n": ""}, "value"),
        Wrong("the wrong block's sum", {"partials[cuda.blockIdx.x]": "partials[0]"}, "race", "one thread of the block"),
        Wrong("all threads add", {"    if cuda.threadIdx.x == 0:": "    if True:"}, "race", "one thread of the block"),
        Wrong("the root", {"] += total": "] += total ** np.float32(0.5)"}, "value"),
        Wrong("threads without a gradient leave", {"    total = ZERO\n": "    if cuda.grid(1) >= grads.shape[0]:\n        return\n    total = ZERO\n"},
            "barrier", "no gradient"),
        Wrong("no end", {"grads.shape[0], cuda.gridsize(1))": "grads.shape[0] + 1, cuda.gridsize(1))"}, "bounds", "grads.shape[0]"),
        Wrong("atomic additions", {"    total = block_sum(total)\n    if cuda.threadIdx.x == 0:\n        partials[cuda.blockIdx.x] += total":
            "    cuda.atomic.add(partials, cuda.blockIdx.x, total)"}, "race", "block_sum"),
        Wrong("atomic additions in shared memory", {"    total = block_sum(total)\n":
            "    sums = cuda.shared.array(1, np.float32)\n    if cuda.threadIdx.x == 0:\n        sums[0] = ZERO\n    cuda.syncthreads()\n"
            "    cuda.atomic.add(sums, 0, total)\n    cuda.syncthreads()\n    total = sums[0]\n"}, "race", "block_sum"),
        Wrong("one thread of a block does it all", {LOOP: "range(cuda.blockIdx.x, grads.shape[0] if cuda.threadIdx.x == 0 else 0, cuda.gridDim.x)"},
            "accesses", "Share the gradients"),
        Wrong("one block does it all", {LOOP: "range(cuda.threadIdx.x, grads.shape[0] if cuda.blockIdx.x == 0 else 0, 32)"}, "accesses", "all blocks"),
        Wrong("a chunk for each thread", {LOOP: "range(cuda.grid(1) * ((grads.shape[0] + 63) // 64), min(grads.shape[0], (cuda.grid(1) + 1) * "
            "((grads.shape[0] + 63) // 64)))"}, "transactions", "neighbouring gradients"),
        Wrong("a bare 0.0", {"total = ZERO": "total = 0.0"}, "float64", "ZERO"),
    ),
)  # fmt: skip
