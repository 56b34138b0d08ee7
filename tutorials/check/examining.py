"""Looks at a learner's file, in the simulator: calls its function at every size of the exercise, until something is wrong."""

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32
from gpt2_numba.layer_checks.running import GuardedArray
from tutorials.check.comparing import check_arrays
from tutorials.check.counting import transactions
from tutorials.check.failures import Failure
from tutorials.check.loading import explained, find_function, load_module
from tutorials.check.watching import watch

SEED = 14


def examine(exercise, path, begin=lambda size: None):
    """Check the file at `path`. Returns the watching.Record of the last size; raises Failure for the first thing that is wrong.

    begin   called with the text of each size, such as "N = 33", before the function is called at it
    """
    function = find_function(load_module(path), exercise)
    for size in exercise.sizes:
        begin(format_size(size))
        try:
            record = call(exercise, function, size, path)
        except Failure as failure:
            failure.size = format_size(size)
            raise
    try:
        check_economy(exercise, record)
    except Failure as failure:
        failure.size, failure.record = format_size(size), record
        raise
    return record


def format_size(size):
    """{"N": 3, "C": 5} -> N = 3, C = 5."""
    return ", ".join(f"{name} = {value}" for name, value in size.items())


def call(exercise, function, size, path):
    """Call the function once, with arrays of this size, and check what it did. Returns the Record."""
    tensors = exercise.arrays(np.random.default_rng(SEED), **size)
    guarded = {name: GuardedArray(tensor, FLOAT32) for name, tensor in tensors.items()}
    with watch() as record:
        try:
            function(*(array.array for array in guarded.values()))
        except BaseException as error:
            raise explained(error, path) from None
    if not record.launches:
        raise Failure("not launched", f"{exercise.function} launches no kernel: nothing has run")
    try:
        check_arrays(exercise, tensors, guarded, record)
    except Failure as failure:
        if failure.kind == "value":
            failure.hint = usual_mistake(exercise, tensors, guarded)
        raise
    return record


def usual_mistake(exercise, tensors, guarded):
    """The hint of the usual mistake that has this very result; "" if none has."""
    inputs = exercise.inputs(tensors)
    for mistake in exercise.mistakes:
        if all(_agree(guarded[name], values) for name, values in mistake.result(**inputs).items()):
            return mistake.hint
    return ""


def _agree(guarded, values):
    got = guarded.array.copy_to_host()
    return np.allclose(got, np.reshape(values, got.shape), rtol=1e-4, atol=1e-5, equal_nan=True)


def check_economy(exercise, record):
    """Raise Failure for a right result that was had in another way than the exercise asks for."""
    if exercise.least.shared_writes and not any(touch.is_shared for touch in record.touches):
        raise Failure("shared", "the result is right, but it does not go through shared memory, which this exercise is about")
    least = exercise.least_transactions
    if least is not None and (moved := transactions(record)) > least * 3 // 2:
        raise Failure("transactions", f"the result is right, but the warps move {moved:,} pieces of 32 bytes, and {least:,} are enough")
    barriers = max(launch.barriers for launch in record.launches)
    if exercise.most_barriers is not None and barriers > exercise.most_barriers:
        raise Failure("barriers", f"no race is left, but a thread waits at {barriers} barriers, and {exercise.most_barriers} are enough")
