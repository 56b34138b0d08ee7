"""A log directory that cannot be written, read or found, from the start or midway.

From the start: one line, exit code 2, and no earlier run is emptied. Midway: a warning, and the run goes on; if its last checkpoint cannot
be written, the exit code is 1.
"""

import ctypes
import os
import shutil
import sys
from pathlib import Path

from dev.drills.checkpoints import expect_end, expect_resumable, expect_same_bits
from dev.drills.planting import before_step
from dev.drills.report import Lost, Needs, Try
from dev.drills.training import train, write_data

CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
MIDWAY = 5  # step: checkpoints of steps 2 and 4 are written


def tries(_scale):
    if os.getuid() == 0 and sys.platform != "linux":
        raise Needs("another user than root")
    return [
        Try("read-only from the start", _at_start(_unwritable)),
        Try("in a directory that may not be searched", _at_start(lambda log: log.parent.chmod(0o000), log="closed/log")),
        Try("a file from the start", _at_start(lambda log: (log.rmdir(), log.write_text("mine")))),
        Try("below a file", _at_start(lambda log: (log.rmdir(), log.parent.rmdir(), log.parent.write_text("mine")), log="file/log")),
        Try("a name of 300 characters", _at_start(None, log="x" * 300)),
        Try("main.log is a directory", _at_start(lambda log: (log / "main.log").mkdir())),
        Try("data that may not be read", _unreadable_data),
        *(Try(f"midway: {what}", _midway(change)) for what, change in MIDWAY_CHANGES.items()),
        *(Try(f"resuming from a directory of mode {mode:o}", _resume_closed(mode)) for mode in (0o000, 0o111, 0o333, 0o444, 0o555)),
        Try("resuming where the newest state may not be read", _unreadable_state),
    ]


def obey_permissions():
    """Permissions bind this process from here on, even if it is root's: it gives up its capabilities."""
    if os.getuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def _train(directory, changes=(), prepare=lambda: None):
    return train(directory, changes, lambda: (obey_permissions(), prepare()))


def _unwritable(log):
    log.chmod(0o555)


def _at_start(change, log="log"):
    def run(directory, _rng):
        path = directory / log
        if change:
            path.mkdir(parents=True)
            change(path)
        ended = _train(directory, {"-o": log})
        path.parent.chmod(0o755)
        expect_end(ended, 2, "^error: .*")
        if len(ended.err.splitlines()) != 1:
            raise Lost(f"more than one line: {ended}")

    return run


def _unreadable_data(directory, _rng):
    write_data(directory)
    (directory / "data" / "train_1.bin").chmod(0o000)
    expect_end(_train(directory), 2, "^error: .*")


def _replace_by_file():
    os.rename("log", "moved")
    Path("log").write_text("mine")


def _main_log_becomes_directory():
    os.unlink("log/main.log")
    os.mkdir("log/main.log")


def _leave():
    """Relative names lead nowhere, as on a network file system that was unmounted."""
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


# what -> (what is done, exit codes, what undoes it)
MIDWAY_CHANGES = {
    "read-only": (lambda: os.chmod("log", 0o555), (1,), lambda log: log.chmod(0o755)),
    "closed": (lambda: os.chmod("log", 0o000), (1,), lambda log: log.chmod(0o755)),
    "removed": (lambda: shutil.rmtree("log"), (0, 1), lambda log: None),
    "replaced by a file": (_replace_by_file, (1,), lambda log: (log.unlink(), log.with_name("moved").rename(log))),
    "main.log read-only": (lambda: os.chmod("log/main.log", 0o444), (0,), lambda log: (log / "main.log").chmod(0o644)),
    "main.log becomes a directory": (_main_log_becomes_directory, (0,), lambda log: (log / "main.log").rmdir()),
    "the working directory is gone": (_leave, (0, 1, 2), lambda log: None),  # 2: it cannot read its data, either
}  # fmt: skip


def _midway(change):
    do, codes, undo = change

    def run(directory, _rng):
        ended = _train(directory, prepare=lambda: before_step(MIDWAY, lambda _: do()))
        expect_end(ended, codes, "warning|error")
        undo(directory / "log")
        expect_resumable(directory)

    return run


def _first_half(directory):
    ended = _train(directory, prepare=lambda: before_step(MIDWAY, lambda _: os._exit(9)))
    if ended.code != 9:
        raise Lost(f"the first half of the run failed: {ended}")


def _resume_closed(mode):
    """It must not start over, since what is there cannot be seen."""

    def run(directory, _rng):
        _first_half(directory)
        log = directory / "log"
        before = (log / "main.log").read_bytes()
        log.chmod(mode)
        ended = _train(directory, {"-y": 1})
        log.chmod(0o755)
        if mode & 0o555 == 0o555:  # everything can be read, and the files be written: only new ones cannot
            expect_end(ended, (1, 2), "warning|error")
        else:
            expect_end(ended, 2, "^error: .*")
        if not (log / "main.log").read_bytes().startswith(before):
            raise Lost("main.log of the earlier run was changed")
        expect_resumable(directory)

    return run


def _unreadable_state(directory, _rng):
    _first_half(directory)
    (directory / "log" / "state_00000004_00000.bin").chmod(0o000)
    expect_end(_train(directory, {"-y": 1}), 0, "warning")
    expect_same_bits(directory)
