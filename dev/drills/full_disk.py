"""A full disk: limits on files, a small file system, full streams, and ENOSPC, EDQUOT and EIO at every write.

A checkpoint that cannot be written costs no older one and is reported; the run goes on. If it was the last, the exit code is 1. If none can
be written from the start, as a rehearsal shows, it is 2, and no step is done.
"""

import errno
import functools
import itertools
import os
import resource
import subprocess
import tempfile
from pathlib import Path

from dev.drills.checkpoints import expect_end, expect_resumable, expect_same_bits, undisturbed
from dev.drills.file_operations import fails, operations, plant
from dev.drills.report import Lost, Needs, Silent, Try
from dev.drills.training import FLAGS, open_to_write, train

FEW_STEPS = {"-x": 5, "-n": 1}
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
AFTER_DONE = 8  # operations after the last checkpoint has its DONE: flushing its name, deleting an older one
TOLD = ("open", "write", "fsync", "replace")  # operations whose failure must be reported


def tries(scale):
    every = list(enumerate(_operations()))
    return [
        *(Try(f"operation {n}, {' '.join(what)}, fails once", _once(n, ERRORS[n % 3], what[0])) for n, what in scale.some(every, 8)),
        *(Try(f"all operations from {n} on fail", _from(n, ERRORS[n % 3])) for n, _ in scale.some(every, 5)),
        *(Try("the largest file is limited from the start", _limited_size) for _ in range(scale.random(20, short=2))),
        *(Try("the largest file is limited midway", _limited_midway) for _ in range(scale.random(20, short=2))),
        *(Try(f"at most {n} open files", _limited_files(n)) for n in scale.some(range(6, 26), 3)),
        *(Try(f"a file system of {size} KiB", _small_file_system(size)) for size in scale.some((16, 64, 128, 192, 256, 320, 400, 512), 2)),
        *(Try(f"{name} is full", _full(streams)) for name, streams in FULL_STREAMS.items()),
    ]


@functools.cache
def _operations():
    with tempfile.TemporaryDirectory(prefix="drill_") as directory:
        directory = Path(directory)
        train(directory, FEW_STEPS, lambda: plant(directory / "log", journal=directory / "journal"))
        return operations(directory / "journal")


def _once(n, number, operation):
    def run(directory, _rng):
        ended = train(directory, FEW_STEPS, lambda: plant(directory / "log", fails(number), n))
        if ended.code == 0:
            expect_end(ended, 0, *(["warning"] if operation in TOLD else []))
            expect_same_bits(directory, FEW_STEPS)
        else:
            expect_end(ended, (1, 2), "warning|error")
            expect_resumable(directory, FEW_STEPS)

    return run


def _from(n, number):
    """A disk that stays full; what is deleted makes no room."""

    def run(directory, _rng):
        numbers, failed = itertools.count(), directory / "failed"

        def fault(name, path, write_half):
            if next(numbers) >= n and name not in ("unlink", "remove"):
                failed.mkdir(exist_ok=True)
                fails(number)(name, path, write_half)

        ended = train(directory, FEW_STEPS, lambda: plant(directory / "log", fault))
        if failed.exists():  # at the end only a flush or a deletion may have failed, after the last checkpoint was complete
            complete = n >= len(_operations()) - AFTER_DONE or "was written to log, but older ones" in ended.err
            expect_end(ended, (0, 1, 2) if complete else (1, 2), "warning|error")
        else:
            expect_end(ended, 0)
        expect_resumable(directory, FEW_STEPS)

    return run


def _largest():
    return max(len(content) for content in undisturbed(FEW_STEPS).values())


def _limited_size(directory, rng):
    """The limit is below a state file, and above what is printed."""
    limit = rng.randrange(8000, _largest() - 1)
    ended = train(directory, FEW_STEPS, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    expect_end(ended, 2, "error: checkpoints cannot be written")
    expect_resumable(directory, FEW_STEPS)


def _limited_midway(directory, rng):
    limit, n = rng.randrange(8000, _largest() - 1), rng.randrange(len(_operations()))

    def fault(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = train(directory, FEW_STEPS, lambda: plant(directory / "log", fault, n))
    expect_end(ended, (0, 1, 2), *(["warning|error"] if ended.code else []))
    expect_resumable(directory, FEW_STEPS)


def _limited_files(n):
    def run(directory, _rng):
        ended = train(directory, FEW_STEPS, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)))
        expect_end(ended, (0, 1, 2), *(["warning|error"] if ended.code else []))
        expect_resumable(directory, FEW_STEPS)

    return run


def _small_file_system(size):
    def run(directory, _rng):
        log = directory / FLAGS["-o"]
        log.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", log)
        try:
            ended = train(directory, FEW_STEPS)
            if ended.code == 0:
                expect_same_bits(directory, FEW_STEPS)
            else:
                expect_end(ended, (1, 2), "warning|error")
            _mount("-o", "remount,size=64m", log)
            expect_resumable(directory, FEW_STEPS)
        finally:
            subprocess.run(["umount", str(log)], check=True)

    return run


def _mount(*arguments):
    try:
        done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    except FileNotFoundError:
        raise Needs("mount") from None
    if done.returncode:
        raise Needs("root, and the right to mount")


FULL_STREAMS = {"stdout": (True, False), "stderr": (False, True), "stdout and stderr": (True, True)}


def _full(streams):
    def run(directory, _rng):
        if not os.path.exists("/dev/full"):
            raise Needs("/dev/full")
        full = open_to_write("/dev/full")
        try:
            ended = train(directory, FEW_STEPS, streams=tuple(full if which else None for which in streams))
            if ended.code != 0:
                raise Lost(f"all steps are possible without printing: {ended}")
            if streams == (True, False) and not ended.err:
                raise Silent("stdout is full, and stderr does not say so")
            expect_same_bits(directory, FEW_STEPS)
            wrong = train(directory, {"--no-such-flag": 1}, streams=tuple(full if which else None for which in streams))
            expect_end(wrong, 2)
        finally:
            os.close(full)

    return run
