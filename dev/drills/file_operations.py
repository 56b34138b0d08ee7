"""File operations of a training counted, and a fault planted in one of them.

`plant` replaces Python's functions that write, flush, rename and delete, in the process that calls it. Only what is done to files in one
directory counts. The n-th operation calls the fault before it is done: one that kills the process, raises an OSError, sends a signal.
"""

import builtins
import errno
import io
import itertools
import os
import signal
from pathlib import Path

# Functions of os, with the argument that names the file: a path or a descriptor. Those with a second path act on the second.
FUNCTIONS = {
    "open": 0, "write": 0, "pwrite": 0, "fsync": 0, "fdatasync": 0, "ftruncate": 0, "truncate": 0, "replace": 1, "rename": 1, "link": 1,
    "unlink": 0, "remove": 0, "mkdir": 0, "rmdir": 0, "utime": 0,
}  # fmt: skip
_open, _write, _append = os.open, os.write, os.O_WRONLY | os.O_APPEND | os.O_CREAT


def plant(directory, fault=None, at=None, journal=None):
    """Count the operations on files in `directory`, and call `fault` at operation number `at` (from 0), or at every one if `at` is None.

    fault    function (name, path, write_half); the last writes half of what is to be written, and does nothing in other operations
    journal  file to which each operation is written, a line "name path"
    """
    counter = _Counter(Path(directory).absolute(), fault, at, journal)
    for name, argument in FUNCTIONS.items():
        if hasattr(os, name):
            setattr(os, name, _counted(getattr(os, name), name, argument, counter))
    builtins.open = io.open = _counted_open(io.open, counter)


def operations(journal):
    """The operations in a journal: a list of (name, file's name)."""
    return [tuple(line.split(" ", 1)) for line in journal.read_text().splitlines()]


def kill(_name, _path, _write_half):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_halfway(name, path, write_half):
    write_half()
    kill(name, path, write_half)


def fails(number, halfway=False):
    """A fault: the operation fails with an errno."""

    def fail(_name, path, write_half):
        if halfway:
            write_half()
        raise OSError(number, os.strerror(number), str(path))

    return fail


def on(names, fault, pattern="*", number=None):
    """The fault, for some operations only, on files that match a pattern: for that number of them (from 0), or for all."""
    numbers = itertools.count()

    def choose(name, path, write_half):
        if name in names and path.match(pattern) and number in (None, next(numbers)):
            fault(name, path, write_half)

    return choose


def directories_cannot_be_flushed(number=errno.EINVAL):
    """A fault for every operation: os.fsync of a directory fails."""

    def fail(name, path, _write_half):
        if name == "fsync" and path.is_dir():
            raise OSError(number, os.strerror(number))

    return fail


class _Counter:
    def __init__(self, directory, fault, at, journal):
        self.directory, self.fault, self.at, self.count = directory, fault, at, 0
        self.journal = None if journal is None else _open(journal, _append)

    def path(self, file):
        """The absolute path of a file if it is in the directory, else None. file: a path or a descriptor."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.path.abspath(os.fsdecode(file)))
        except OSError:
            return None
        return path if path == self.directory or self.directory in path.parents else None

    def before(self, name, file, write_half=lambda: None):
        path = self.path(file)
        if path is None:
            return
        number, self.count = self.count, self.count + 1
        if self.journal is not None:
            _write(self.journal, f"{name} {path.name}\n".encode())
        if self.fault and self.at in (None, number):
            self.fault(name, path, write_half)


def _counted(function, name, argument, counter):
    def call(*args, **kwargs):
        writes = name != "open" or args[1] & (os.O_WRONLY | os.O_RDWR)
        if writes and len(args) > argument:
            half = (lambda: function(args[0], args[1][: len(args[1]) // 2])) if name == "write" else (lambda: None)
            counter.before(name, args[argument], half)
        return function(*args, **kwargs)

    return call


class _CountedFile(io.FileIO):
    """A file whose writes are counted, below Python's buffer."""

    def __init__(self, path, mode, counter, opener):
        counter.before("open", path)
        self._counter = counter
        super().__init__(path, mode, opener=opener)

    def write(self, data):
        self._counter.before("write", self.fileno(), lambda: io.FileIO.write(self, memoryview(data).cast("B")[: len(data) // 2]))
        return super().write(data)


def _counted_open(original, counter):
    # The eight parameters of Python's open.
    def call(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        written = set(mode) & set("wax+")
        if isinstance(file, int) or not written or counter.path(file) is None:
            return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _CountedFile(file, mode.replace("b", "").replace("t", ""), counter, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    return call
