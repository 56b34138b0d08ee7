"""Which process is making a file: others that need the file wait for it, instead of doing the same work.

    if claim(path):          this process makes it now, unless another one has just done so
        ...
        release(path)

A claim is an flock lock on PATH.claim. The system releases it when the process ends, however it ends, so no process waits for one that has
died. Where there are no such locks (Windows, some network file systems, a directory that cannot be written) no process holds a claim: none
waits, and work may be done twice. That is harmless, since files are renamed into place.
"""

import contextlib
import os
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SUFFIX = ".claim"
LONGEST_WAIT = 60  # seconds: no kernel takes so long; the process that has the claim must have been stopped
PAUSE = 0.005  # seconds between two looks

_held = {}  # path -> descriptor of the locked file


def claim(path, wait=True):
    """Claim the right to make the file at `path`, a Path. Returns whether this process has it.

    wait: whether to wait until another process has released it, for LONGEST_WAIT seconds at most
    """
    if path in _held:
        return True
    if fcntl is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(f"{path}{SUFFIX}", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return False
    try:
        if _lock(descriptor, LONGEST_WAIT if wait else 0):
            _held[path] = descriptor
    except OSError:  # this file system has no locks
        pass
    finally:
        if path not in _held:
            os.close(descriptor)
    return path in _held


def _lock(descriptor, seconds):
    """Try to lock an open file for so long. Returns whether that succeeded; raises OSError where it is impossible."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
        time.sleep(PAUSE)  # rather than to wait within flock: the wait has an end, and signals are handled


def release(path):
    """Give a claim back. Does nothing if this process does not have it."""
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}{SUFFIX}")  # a process that waits for it has it open
        os.close(descriptor)


def _forget_in_child():
    """A forked child must not keep the claims of its parent: it closes its copies, which releases nothing."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
