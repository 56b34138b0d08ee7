"""What a run must leave: exit codes, lines instead of tracebacks, and checkpoints of the same bits as those of an undisturbed run."""

import functools
import re
import tempfile
from pathlib import Path

import numpy as np

from dev.drills.report import Lost, Silent
from dev.drills.training import extra_flags, train
from gpt2_numba.training.checkpoint import complete_checkpoints

LINES_AT_MOST = 40  # on stderr: a warning for each failed checkpoint, and an error


def undisturbed(changes=()):
    """Name -> bytes of the files of the last checkpoint of a training that nothing disturbs. changes: as in train."""
    return _undisturbed(tuple(dict(changes).items()), tuple(extra_flags))


@functools.cache
def _undisturbed(changes, _):
    with tempfile.TemporaryDirectory(prefix="drill_") as directory:
        ended = train(Path(directory), changes)
        if ended.code != 0:
            raise Lost(f"the undisturbed training failed: {ended}")
        return last_checkpoint(Path(directory) / "log")


def last_checkpoint(log_dir):
    """Name -> bytes of the files of the newest complete checkpoint."""
    steps = complete_checkpoints(log_dir)
    if not steps:
        raise Lost(f"there is no complete checkpoint, only {sorted(path.name for path in log_dir.glob('*'))}")
    return {path.name: path.read_bytes() for path in sorted(log_dir.glob(f"*_{steps[0]:08d}*"))}


def differences(expected, found):
    """One line for each file that differs."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        a, b = expected.get(name), found.get(name)
        if a is None or b is None:
            lines.append(f"{name}: only in the {'disturbed' if a is None else 'undisturbed'} training")
        elif len(a) != len(b):
            lines.append(f"{name}: {len(a)} bytes undisturbed, {len(b)} disturbed")
        elif a != b:
            unequal = np.flatnonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8))
            lines.append(f"{name}: {len(unequal)} of {len(a)} bytes differ, the first at {unequal[0]}")
    return lines


def expect_same_bits(directory, changes=()):
    """Raise Silent if the last checkpoint in directory/log differs from that of an undisturbed training."""
    unequal = differences(undisturbed(changes), last_checkpoint(directory / "log"))
    if unequal:
        raise Silent(f"unequal bits: {'; '.join(unequal)}")


def expect_resumable(directory, changes=()):
    """Resume the training, and raise Lost or Silent if it does not reach its end with the bits of an undisturbed one. Returns Ended."""
    ended = train(directory, {**dict(changes), "-y": 1})
    if ended.code != 0:
        raise Lost(f"it cannot be resumed: {ended}")
    expect_one_line(ended)
    expect_same_bits(directory, changes)
    return ended


def expect_one_line(ended):
    """Raise Lost if anything but warnings, errors and endings in a line each is on stderr."""
    if "Traceback" in ended.err or "Warning: " in ended.err:
        raise Lost(f"a traceback, or a warning of Python's: {ended}")
    if len(ended.err.splitlines()) > LINES_AT_MOST:
        raise Lost(f"more than {LINES_AT_MOST} lines on stderr: {ended}")


def expect_end(ended, codes, *words):
    """Raise Silent if it ended with code 0 and should not have, or without the words (regular expressions) on stderr; Lost otherwise."""
    expect_one_line(ended)
    codes = (codes,) if isinstance(codes, int) else codes
    if ended.code not in codes:
        raise (Silent if ended.code == 0 else Lost)(f"the exit code should be {' or '.join(map(str, codes))}: {ended}")
    for word in words:
        if not re.search(word, ended.err + ended.out):
            raise Silent(f"nothing says {word!r}: {ended}")


def resumed_from(ended):
    """The step from which a training was resumed; None if it began from the beginning."""
    match = re.search(r"resumed after (\d+) steps", ended.out)
    return int(match[1]) if match else None
