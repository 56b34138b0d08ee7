"""08_accumulate_mean: a block adds up all losses, in a fixed order."""

from dataclasses import dataclass, replace

from gpt2_numba.layer_checks.sizes import ONES
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import LayerExercise, in_several_orders

LOOP = "range(i, N, stride)"

ATOMIC = "Atomic additions come in the order in which threads arrive: use block_sum, and let one thread write mean[0]."


@dataclass(frozen=True, kw_only=True)
class FixedOrderExercise(LayerExercise):
    """A LayerExercise whose result must have the same bits in whatever order the threads run."""

    def calls(self, function, size):
        for call in super().calls(function, size):
            yield call
            yield in_several_orders(call, "mean")


EXERCISE = FixedOrderExercise(
    function="accumulate_mean",
    layers=("mean loss",),
    sizes=(replace(ONES, T=5), ONES, replace(ONES, T=33), replace(ONES, T=331)),
    least=Counts(global_reads=12, global_writes=1, shared_reads=11, shared_writes=6),
    least_transactions=44,
    hints={
        "": (
            "Each thread adds up its values in a register; block_sum adds up the threads' sums; one thread divides and adds the mean.",
            "for n in range(i, N, stride): total += values[n]. Then, in all threads, total = block_sum(total).",
            "if i == 0: mean[0] += total / float32(N)",
        ),
        "race": (
            "Many threads add to mean[0], and some of their sums get lost, or come in an order that nothing fixes: block_sum first, then one thread adds.",),
        "value": ("mean[0] is 1 before the call, and the mean is added to it. Is the sum that of all threads, and is it divided by N?",),
        "not written": ("One thread must add to mean[0], if i == 0.",),
        "host": (ATOMIC,),
        "barrier": ("There are barriers inside block_sum: all 32 threads must call it, also those without a value.",),
        "shared": ("All values in one thread? 31 threads have nothing to do. Share them out, and let block_sum bring the sums together.",),
        "transactions": ("Neighbouring threads must read neighbouring values: thread i takes values i, i + 32, i + 64, ...",),
        "float64": ("N is an integer, and Numba divides float32 by an integer in float64: divide by float32(N).",),
    },
    mistakes=(
        Mistake(lambda mean, values, **_: {"mean": [values.mean()]}, "mean[0] has been overwritten: `+=`, since earlier batches are in it."),
        Mistake(lambda mean, values, **_: {"mean": mean + values.sum()}, "That is the sum: divide by N."),
        Mistake(lambda mean, values, **_: {"mean": (mean + values.sum()) / len(values)},
            "Only the new values are divided by N, not what is in mean[0] already."),
    ),
    wrong=(
        Wrong("overwrites", {"mean[0] += total": "mean[0] = total"}, "value", "overwritten"),
        Wrong("a sum", {" / float32(N)": ""}, "value", "divide by N"),
        Wrong("divides all", {"mean[0] += total / float32(N)": "mean[0] = (mean[0] + total) / float32(N)"}, "value", "Only the new values"),
        Wrong("thread 0's sum only", {"    total = block_sum(total)\n": ""}, "value"),
        Wrong("the first 32 values", {LOOP: "range(i, min(N, 32), stride)"}, "value"),
        Wrong("the last value is left out", {LOOP: "range(i, N - 1, stride)"}, "value"),
        Wrong("all threads add", {"    if i == 0:": "    if True:"}, "race", "one thread adds"),
        Wrong("atomic additions", {"    total = block_sum(total)\n    if i == 0:\n        mean[0] += total / float32(N)":
            "    cuda.atomic.add(mean, 0, total / float32(N))"}, "host", "order in which threads arrive"),
        Wrong("atomic additions in shared memory", {"    total = block_sum(total)\n":
            "    sums = cuda.shared.array(1, float32)\n    if i == 0:\n        sums[0] = ZERO\n    cuda.syncthreads()\n"
            "    cuda.atomic.add(sums, 0, total)\n    cuda.syncthreads()\n    total = sums[0]\n"}, "race", "order"),
        Wrong("one thread does it all", {LOOP: "range(0, N if i == 0 else 0)", "    total = block_sum(total)\n": ""}, "shared", "31 threads"),
        Wrong("threads without a value leave", {"    total = ZERO\n": "    if i >= N:\n        return\n    total = ZERO\n"}, "barrier"),
        Wrong("a chunk for each thread", {LOOP: "range(i * ((N + 31) // 32), min(N, (i + 1) * ((N + 31) // 32)))"}, "transactions", "neighbouring"),
        Wrong("divides by an integer", {"float32(N)": "N"}, "float64", "float32(N)"),
    ),
)  # fmt: skip
