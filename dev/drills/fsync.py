"""os.fsync fails. Some network file systems cannot flush directories: that is no reason to keep no checkpoint. A file that cannot be
flushed may be lost, so its checkpoint does not count; if none can be flushed, the run ends before its first step.
"""

import errno

from dev.drills.checkpoints import expect_end, expect_resumable, expect_same_bits
from dev.drills.file_operations import directories_cannot_be_flushed, fails, on, plant
from dev.drills.report import Lost, Try
from dev.drills.training import STEPS, train


def tries(_scale):
    last, middle = f"*{STEPS:08d}*", f"*{STEPS - 2:08d}*"
    return [
        Try("directories: EINVAL", _directories(errno.EINVAL)),
        Try("directories: ENOTSUP", _directories(errno.ENOTSUP)),
        Try("directories: EIO", _fails(directories_cannot_be_flushed(errno.EIO), code=2)),
        Try("every file: EIO", _fails(on(("fsync", "fdatasync"), fails(errno.EIO), "*.aside"), code=2)),
        Try("the last checkpoint's files: EIO", _fails(on(("fsync", "fdatasync"), fails(errno.EIO), last), code=1)),
        Try("another checkpoint's files: EIO", _fails(on(("fsync", "fdatasync"), fails(errno.EIO), middle), code=0)),
    ]


def _directories(number):
    def run(directory, _rng):
        ended = train(directory, prepare=lambda: plant(directory / "log", directories_cannot_be_flushed(number)))
        expect_end(ended, 0)
        if ended.err:
            raise Lost(f"nothing is wrong that a user could fix: {ended}")
        expect_same_bits(directory)

    return run


def _fails(fault, code):
    def run(directory, _rng):
        ended = train(directory, prepare=lambda: plant(directory / "log", fault))
        expect_end(ended, code, "error: checkpoints cannot be written" if code == 2 else "warning")
        if code == 0:
            expect_same_bits(directory)
        expect_resumable(directory)

    return run
