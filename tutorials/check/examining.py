"""Looks at a learner's file, in the simulator: calls its function at every size of the exercise, until something is wrong."""

from types import SimpleNamespace

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32
from gpt2_numba.layer_checks.running import GuardedArray, run_on_host
from tutorials.check.comparing import check_arrays
from tutorials.check.counting import busiest_thread, transactions
from tutorials.check.failures import Failure
from tutorials.check.host_exercises import HostExercise, call_on_host
from tutorials.check.loading import explained, find_function, load_module
from tutorials.check.watching import watch


def examine(exercise, path, begin=lambda size: None):
    """Check the file at `path`. Returns the watching.Record of the first call at the last size, None for an exercise without kernels.

    begin   called with the text of each size, such as "N = 33", before the function is called at it
    Raises Failure for the first thing that is wrong.
    """
    function = find_function(load_module(path), exercise)
    record = None
    for size in exercise.sizes:
        begin(exercise.format_size(size))
        try:
            if isinstance(exercise, HostExercise):
                examine_on_host(exercise, function, size, path)
            else:
                record = [examine_call(exercise, call, size, path) for call in exercise.calls(function, size)][0]
        except Failure as failure:
            failure.size = exercise.format_size(size)
            raise
    if record is not None:
        try:
            check_economy(exercise, record)
        except Failure as failure:
            failure.size, failure.record = exercise.format_size(size), record
            raise
    return record


def examine_on_host(exercise, function, size, path):
    try:
        call_on_host(exercise, function, size)
    except BaseException as error:
        raise error if isinstance(error, Failure) else explained(error, path) from None


def examine_call(exercise, call, size, path):
    """Make one Call of the learner's function, and check what it did. Returns the Record."""
    guarded = {name: GuardedArray(tensor, FLOAT32) for name, tensor in call.tensors.items()}
    rows = []
    with watch() as record:
        try:
            if call.check is None:
                call.launch(SimpleNamespace(**{name: array.array for name, array in guarded.items()}))
            else:
                rows = list(call.check(call, FLOAT32))
        except BaseException as error:
            raise explained(error, path) from None
    if not record.launches:
        raise Failure("not launched", f"{exercise.function} launches no kernel: nothing has run")
    if wrong := [row for row in rows if not row.ok]:
        raise Failure("value", str(wrong[0]))
    if call.check is None:
        after, before = run_on_host(call, FLOAT32)
        try:
            check_arrays(call, after, before, guarded, record)
        except Failure as failure:
            if failure.kind == "value":
                failure.hint = usual_mistake(exercise, call, before, size, guarded)
            raise
    return record


def usual_mistake(exercise, call, before, size, guarded):
    """The hint of the usual mistake that has this very result; "" if none has."""
    for mistake in exercise.mistakes:
        if all(_agree(guarded[name], values) for name, values in exercise.mistaken(mistake, call, before, size).items()):
            return mistake.hint
    return ""


def _agree(guarded, values):
    got = guarded.array.copy_to_host()
    if got.dtype.kind in "iu":
        return np.array_equal(got, np.reshape(values, got.shape))
    return np.allclose(got, np.reshape(values, got.shape), rtol=1e-4, atol=1e-5, equal_nan=True)


def check_economy(exercise, record):
    """Raise Failure for a right result that was had in another way than the exercise asks for."""
    if exercise.least.shared_writes and not any(touch.is_shared for touch in record.touches):
        raise Failure("shared", "the result is right, but it does not go through shared memory, which this exercise is about")
    for launch in record.launches:
        if exercise.threads and launch.block != exercise.threads:
            raise Failure(
                "launch", f"the result is right, but it launches blocks of {_size(launch.block)} threads, not of {_size(exercise.threads)}"
            )
    for kind, count in vars(busiest_thread(record)).items():
        if exercise.most is not None and count > (most := getattr(exercise.most, kind)):
            what = kind.replace("_", " ")
            raise Failure("accesses", f"the result is right, but one thread makes {count:,} {what}, and {most:,} are enough")
    least = exercise.least_transactions
    if least is not None and (moved := transactions(record)) > least * 3 // 2:
        raise Failure("transactions", f"the result is right, but the warps move {moved:,} pieces of 32 bytes, and {least:,} are enough")
    barriers = max(launch.barriers for launch in record.launches)
    if exercise.most_barriers is not None and barriers > exercise.most_barriers:
        raise Failure("barriers", f"no race is left, but a thread waits at {barriers} barriers, and {exercise.most_barriers} are enough")


def _size(block):
    """(32, 1, 1) -> 32; (8, 4, 1) -> 8 × 4."""
    return " × ".join(map(str, block[: max(1, sum(size > 1 for size in block))]))
