"""Two runs in one log directory: the second is refused in one line, whatever its flags, and the first is not disturbed.

A run that was killed leaves no lock that anybody would have to remove.
"""

import signal
import time

from dev.drills.checkpoints import expect_end, expect_resumable, expect_same_bits
from dev.drills.report import Lost, Silent, Try
from dev.drills.training import Training, train

LONG = {"-x": 60}
BUILT_IN = {"-i": None, "-j": None, "-o": None, "-x": 2, "-b": 2, "-t": 8, "-d": None}


def tries(scale):
    return [
        Try("the same command again", _second({})),
        Try("with another seed", _second({"--seed": 2})),
        Try("resume while it runs", _second({"-y": 1})),
        Try("while it is stopped by SIGSTOP", _second({"-y": 1}, pause=True)),
        *(Try("both at the same moment", _together) for _ in range(scale.random(20, short=2))),
        Try("a lock left by a killed run", _stale),
        Try("a lock with other contents", _odd_lock),
        Try("the built-in run twice", _built_in_again),
        Try("the built-in run twice at the same moment", _built_in_together),
    ]


def _second(changes, pause=False):
    def run(directory, _rng):
        first = Training(directory, LONG)
        first.wait_for("wrote the checkpoint of step 2 ")
        if pause:
            first.send(signal.SIGSTOP)
        other = directory / "other"
        other.mkdir()
        (other / "log").symlink_to("../log")
        refused = train(other, {**LONG, **changes})
        if first.poll() is not None:
            raise Lost("the first run ended too early for this try")
        first.send(signal.SIGCONT)
        ended = first.wait()
        expect_end(refused, 2, "^error: .*")
        expect_end(ended, 0)
        expect_same_bits(directory, LONG)

    return run


def _together(directory, rng):
    first = Training(directory, LONG)
    other = directory / "other"
    other.mkdir()
    (other / "log").symlink_to("../log")
    time.sleep(rng.uniform(0, 0.02))
    second = Training(other, LONG)
    both = first.wait(), second.wait()
    if sorted(one.code for one in both) == [0, 0]:
        raise Silent("both runs wrote to one directory, and both ended with 0")
    if sorted(one.code for one in both) != [0, 2]:
        raise Lost(f"one should run and the other be refused: {both[0]}; {both[1]}")
    expect_end(next(one for one in both if one.code == 2), 2, "^error: .*")
    expect_same_bits(directory, LONG)


def _stale(directory, _rng):
    first = Training(directory, LONG)
    first.wait_for("wrote the checkpoint of step 2 ")
    first.send(signal.SIGKILL)
    first.wait()
    expect_resumable(directory, LONG)


def _odd_lock(directory, rng):
    (directory / "log").mkdir()
    (directory / "log" / ".lock").write_bytes(rng.randbytes(5000))
    expect_end(train(directory), 0)
    expect_same_bits(directory)


def _built_in_again(directory, _rng):
    first = train(directory, BUILT_IN)
    expect_end(first, 0)
    log = (directory / "log_built_in" / "main.log").read_bytes()
    second = train(directory, {**BUILT_IN, "-x": 3})
    expect_end(second, 0, "log_built_in")
    if not any(path.read_bytes() == log for path in directory.glob("log_built_in?*/main.log")):
        raise Silent(f"the log of the first run is gone: {second}")


def _built_in_together(directory, _rng):
    both = [Training(directory, {**BUILT_IN, "-x": 20}), Training(directory, {**BUILT_IN, "-x": 20})]
    codes = sorted(one.wait().code for one in both)
    if codes == [0, 0] and len(list(directory.glob("log_built_in*/main.log"))) < 2:
        raise Silent("both runs wrote to one directory")
    if codes not in ([0, 0], [0, 2]):
        raise Lost(f"exit codes {codes}: {both[0].wait()}; {both[1].wait()}")
