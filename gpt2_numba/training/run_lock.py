"""One run per log directory: two that write to the same one would delete and mix each other's checkpoints.

The lock is flock's on DIR/.lock. The system releases it when the process ends, however it ends, so a file that is left behind blocks
no run. It holds the host and the process of the run, for the message that another run prints. Readers of the directory need no lock.

Some network file systems have no flock. There the lock is the file itself: it counts as long as the process that it names runs on this
host, and two runs that start in the same moment may both take it. Whether a process on another host still runs cannot be determined from
here: its lock is replaced, with a warning. Windows has no flock either, and nothing is locked there.
"""

import contextlib
import errno
import os
import re
import socket
import stat
import sys
from pathlib import Path

from gpt2_numba.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE_NAME = ".lock"
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_held = set()  # descriptors of the locks of this process


class RunLock:
    """The lock of a log directory, taken at once. Use it in a `with` statement, or call `release`.

    directory  created if absent; None: nothing is locked
    Raises UserError if another run has the lock, or if the directory cannot be written.
    """

    def __init__(self, directory):
        self._descriptor, self._path = None, None
        if directory is not None:
            self._path = Path(directory) / FILE_NAME
            try:
                self._take()
            except OSError as error:
                reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
                raise UserError(f"{directory} must be a directory that can be written ({reason}): name another one (-o)") from error

    def _take(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not fcntl:
            return
        while self._descriptor is None:
            descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666
            )  # as always closed in programs started from here
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, f"{FILE_NAME} in it is not a regular file")
                owner = _read_owner(descriptor)
                if _flock(descriptor):
                    if not self._is_current(descriptor):  # another run has ended and removed it since it was opened
                        continue
                elif _is_another_process_here(owner):
                    raise BlockingIOError
                elif owner and owner[0] != socket.gethostname():
                    print(f"warning: {self._path} was left by another run ({_text(owner)}): stop it if it still runs", file=sys.stderr)
                _held.add(descriptor)
                self._descriptor = descriptor
            except BlockingIOError:
                raise UserError(
                    f"another run ({_text(owner)}) is writing to {self._path.parent}: wait for its end, or name another directory (-o)"
                ) from None
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        with contextlib.suppress(OSError):  # on a full disk the lock is held, but does not say by whom
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)

    def _is_current(self, descriptor):
        """Whether the open file is still the one at the path."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def renew(self):
        """Take the lock again if somebody has removed its file or the directory. Raises UserError if another run has it by now."""
        with contextlib.suppress(OSError):  # a directory that cannot be read or made again: the next write to it says so
            if self._path is None or self._descriptor in _held and self._is_current(self._descriptor):
                return
            if self._descriptor in _held:
                _held.remove(self._descriptor)
                os.close(self._descriptor)
            self._descriptor = None
            self._take()

    def release(self):
        """Give the lock back and remove its file. Afterwards, and in a forked child process, it does nothing."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            with contextlib.suppress(OSError):  # the directory may be gone, or have another name
                if self._is_current(self._descriptor):
                    self._path.unlink()  # before another run can have the lock: it would lose its file
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def _flock(descriptor):
    """Take flock's lock. Returns False if this file system has none; raises BlockingIOError if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return False
        raise
    return True


def _read_owner(descriptor):
    """(host, process) in a lock file; None if they are not there, since the run has only just begun or ended."""
    found = re.fullmatch(rb"([!-~]{1,255}) ([0-9]{1,10})\n", os.read(descriptor, 300))
    return (found[1].decode(), int(found[2])) if found else None


def _is_another_process_here(owner):
    """Whether the owner runs on this host and is not this process, which may have the number of one that has ended."""
    if owner is None or owner[0] != socket.gethostname() or owner[1] == os.getpid():
        return False
    try:
        os.kill(owner[1], 0)  # sends nothing
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def _text(owner):
    return f"host {owner[0]}, process {owner[1]}" if owner else "one that has just begun"


def _forget_in_child():
    """A forked child must not keep the lock when its parent has ended: it closes its copies, which releases nothing."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
