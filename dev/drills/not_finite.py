"""Infinite numbers and NaN: in a gradient, in a weight, by a learning rate that is too high, in a checkpoint.

A step whose loss or gradient norm is not finite updates nothing and is reported, with the first tensor that is not finite. After three in a
row the run ends with the exit code 1, and what it leaves can be resumed: a checkpoint with finite numbers.
"""

import itertools
import math
import os
import struct

import numpy as np

from dev.drills.checkpoints import expect_end, expect_resumable, last_checkpoint, undisturbed
from dev.drills.planting import before_step
from dev.drills.report import Lost, Silent, Try
from dev.drills.training import STEPS, train
from dev.drills.ways_to_damage import HEADER_BYTES
from gpt2_numba.model import GPT2
from gpt2_numba.training.checkpoint import complete_checkpoints

TENSORS = ("wte", "wpe", "qkvw", "lnfb")
WITHOUT_SKIPPING = {"-sl": 0, "-sg": 0}


def tries(scale):
    once = list(itertools.product((0, 5, STEPS - 1), (math.nan, math.inf, -math.inf), TENSORS, (True, False)))
    weights = list(itertools.product((0, 5, STEPS - 3), (math.nan, math.inf), TENSORS, (True, False)))
    return [
        *(Try(f"a gradient of {tensor} is {value} in step {step}, {_skipping(skip)}", _gradient(step, value, tensor, skip))
          for step, value, tensor, skip in scale.some(once, 9)),
        *(Try(f"a weight of {tensor} becomes {value} before step {step}, {_skipping(skip)}", _weight(step, value, tensor, skip))
          for step, value, tensor, skip in scale.some(weights, 6)),
        *(Try(f"a learning rate of {rate}, {_skipping(skip)}", _diverges(rate, skip))
          for rate in scale.some(("1e30", "1e20", "1e10", "3e38"), 2) for skip in (True, False)),
        *(Try(f"{value} in {part} of the newest checkpoint, which has no checksums", _in_checkpoint(part, value))
          for part in ("the model", "m", "v", "the master weights") for value in (math.nan, math.inf)),
    ]  # fmt: skip


def _skipping(skip):
    return "with -sl and -sg" if skip else "without -sl and -sg"


def _gradient(step, value, tensor, skip):
    """One step updates nothing; all others do."""

    def run(directory, _rng):
        changes = {} if skip else WITHOUT_SKIPPING
        ended = train(directory, changes, lambda: _plant_gradient(step, value, tensor, directory))
        expect_end(ended, 0, f"step {step + 1}\\b.*{tensor}|{tensor}.*step {step + 1}\\b", "not finite")
        before, after = (directory / name for name in ("before.bin", "after.bin"))
        if before.read_bytes() != after.read_bytes():
            raise Silent(f"the step changed parameters: {ended}")
        _expect_finite(directory)

    return run


def _plant_gradient(step, value, tensor, directory):
    """In every backward pass of a step, also when the step is recomputed to find the tensor."""
    backward, begin = GPT2.backward, GPT2.moment
    steps, in_this_step = itertools.count(), False

    def plant(model, *args, **kwargs):
        backward(model, *args, **kwargs)
        if in_this_step:
            _first(getattr(model.grads, tensor))[0] = value

    def moment(model):
        """Called at the beginning of a step, and at its end, which is followed by its report."""
        nonlocal in_this_step
        now = next(steps)
        in_this_step = now in (2 * step, 2 * step + 1)
        if in_this_step:
            (directory / ("before.bin", "after.bin")[now % 2]).write_bytes(_everything(model))
        return begin(model)

    GPT2.backward, GPT2.moment = plant, moment


def _everything(model):
    return b"".join(np.ascontiguousarray(model.raw(name)).tobytes() for name in ("params", "m", "v"))


def _first(tensors):
    """The first of a tensor's numbers, as an array of length 1. tensors: an array, or one for each block."""
    return (tensors[0] if isinstance(tensors, list) else tensors).reshape(-1)[:1]


def _weight(step, value, tensor, skip):
    def run(directory, _rng):
        def plant(model):
            _first(getattr(model.params, tensor))[0] = value

        changes = {} if skip else WITHOUT_SKIPPING
        ended = train(directory, changes, lambda: before_step(step, plant))
        expect_end(ended, 1, "not finite", tensor, "in a row|diverged")
        if step > 2:
            expect_resumable(directory, changes)  # without the fault, from the newest finite checkpoint

    return run


def _diverges(rate, skip):
    def run(directory, _rng):
        ended = train(directory, {"-l": rate, "-x": 30, "-u": 0, **({} if skip else WITHOUT_SKIPPING)})
        expect_end(ended, 1, "not finite", "in a row|diverged")
        if list((directory / "log").glob("DONE_*")):  # a run that diverges in its first step has nothing to keep
            _expect_finite(directory)

    return run


def _expect_finite(directory):
    """The newest checkpoint has finite numbers only."""
    for name, content in last_checkpoint(directory / "log").items():
        if name.startswith("model") and not np.isfinite(np.frombuffer(content, "<f4", offset=HEADER_BYTES)).all():
            raise Lost(f"{name} has numbers that are not finite; there are checkpoints of steps {complete_checkpoints(directory / 'log')}")


def _in_checkpoint(part, value):
    """DONE is empty, as llm.c's: nothing but the numbers themselves tells that they are wrong."""

    def run(directory, rng):
        train(directory, prepare=lambda: before_step(5, lambda _: os._exit(9)))
        log = directory / "log"
        (log / "DONE_00000004").write_bytes(b"")
        count = (len(undisturbed()[f"model_{STEPS:08d}.bin"]) - HEADER_BYTES) // 4
        name, index = ("model", 0) if part == "the model" else ("state", ("m", "v", "the master weights").index(part))
        with open(next(log.glob(f"{name}_00000004*")), "r+b") as file:
            file.seek(HEADER_BYTES + 4 * (index * count + rng.randrange(count)))
            file.write(struct.pack("<f", value))
        ended = expect_resumable(directory)
        if "warning" not in ended.err:
            raise Silent(f"resumed without a word: {ended}")

    return run
