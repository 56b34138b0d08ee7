"""SIGKILL: at every file operation of a run with checkpoints, in the middle of every write, and at random moments from outside. And power
failures, after which what was not flushed to disk is gone.

A killed run must resume from the newest checkpoint that was complete, and end with the bits of an undisturbed one.
"""

import functools
import re
import signal
import tempfile
import time
from pathlib import Path

from dev.drills.checkpoints import expect_resumable, resumed_from
from dev.drills.file_operations import kill, kill_halfway, operations, plant
from dev.drills.power_failure import PowerFailure
from dev.drills.report import Lost, Try
from dev.drills.training import Training, train

FEW_STEPS = {"-x": 5, "-n": 1}  # the checkpoints of steps 3 to 5 each delete an older one
MANY_STEPS = {"-x": 40, "-n": 1}
KILLS_IN_A_ROW = 5


def tries(scale):
    every = list(enumerate(_operations()))
    writes = [one for one in every if one[1][0] == "write"]
    return [
        *(Try(f"before operation {n}, {' '.join(operation)}", _at(n, kill)) for n, operation in scale.some(every, 8)),
        *(Try(f"halfway through operation {n}, {' '.join(operation)}", _at(n, kill_halfway)) for n, operation in scale.some(writes, 4)),
        *(Try(f"the power fails before operation {n}, {' '.join(operation)}", _power_failure(n)) for n, operation in scale.some(every, 6)),
        *(Try(f"{KILLS_IN_A_ROW} times at random moments", _at_random) for _ in range(scale.random(40, short=1))),
    ]


def _operations():
    with tempfile.TemporaryDirectory(prefix="drill_") as directory:
        directory = Path(directory)
        ended = train(directory, FEW_STEPS, lambda: plant(directory / "log", journal=directory / "journal"))
        if ended.code != 0:
            raise Lost(f"the undisturbed training failed: {ended}")
        return operations(directory / "journal")


def _at(n, fault):
    def run(directory, _rng):
        journal = directory / "journal"
        killed = train(directory, FEW_STEPS, lambda: plant(directory / "log", fault, n, journal))
        if killed.code != -signal.SIGKILL:
            raise Lost(f"it should have been killed: {killed}")
        _resume(directory, _newest_complete(operations(journal)[:-1]), FEW_STEPS)

    return run


def _newest_complete(done):
    """The step of the newest checkpoint whose DONE has got its name in these operations; 0 if there is none."""
    return max((int(name[5:]) for operation, name in done if operation in ("replace", "rename") and name.startswith("DONE_")), default=0)


def _power_failure(n):
    """A checkpoint that was reported is on disk."""

    def run(directory, rng):
        killed = train(directory, FEW_STEPS, lambda: plant(directory / "log", PowerFailure(n, rng)))
        if killed.code != -signal.SIGKILL:
            raise Lost(f"it should have been killed: {killed}")
        reported = re.findall(r"^wrote the checkpoint of step (\d+)", killed.out, re.MULTILINE)
        _resume(directory, max(map(int, reported), default=0), FEW_STEPS)

    return run


def _resume(directory, newest, changes):
    resumed = resumed_from(expect_resumable(directory, changes)) or 0
    if resumed < newest:
        raise Lost(f"resumed after {resumed} steps, and a checkpoint of step {newest} was complete")


@functools.cache
def _seconds():
    with tempfile.TemporaryDirectory(prefix="drill_") as directory:
        start = time.monotonic()
        train(Path(directory), MANY_STEPS)
        return time.monotonic() - start


def _at_random(directory, rng):
    for _ in range(KILLS_IN_A_ROW):
        training = Training(directory, {**MANY_STEPS, "-y": 1})
        time.sleep(rng.uniform(0, 0.8 * _seconds()))
        training.send(signal.SIGKILL)
        ended = training.wait()
        if ended.code not in (0, -signal.SIGKILL):
            raise Lost(f"resuming failed: {ended}")
    done = [int(path.name[5:]) for path in (directory / "log").glob("DONE_*")]
    _resume(directory, max(done, default=0), MANY_STEPS)
    return KILLS_IN_A_ROW
