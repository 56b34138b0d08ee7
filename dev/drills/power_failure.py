"""A power failure, as a fault for file_operations.plant: the process is killed, and what was not flushed to disk is lost.

Of a file that was written and not flushed, a random part is left. Names change in order: of the renames and deletions since the directory
was last flushed, the first few have reached the disk, and the others have not.
"""

import itertools
import os
import signal


class PowerFailure:
    """The power fails before operation number `at`. rng: a random.Random, which decides what is left."""

    def __init__(self, at, rng):
        self._at, self._rng, self._numbers = at, rng, itertools.count()
        self._unflushed = set()  # inodes
        self._changes = []  # (path, its backup or None), one for each change of a name

    def __call__(self, name, path, _write_half):
        if next(self._numbers) == self._at:
            self._fail(path.parent)
        if name == "write":
            self._unflushed.add(os.stat(path).st_ino)
        elif name == "fsync" and path.is_dir():
            self._forget()
        elif name == "fsync":
            self._unflushed.discard(os.stat(path).st_ino)
        elif name in ("replace", "rename", "unlink", "remove"):
            self._changes.append((path, self._backup(path)))

    def _backup(self, path):
        if not path.exists():
            return None
        backup = path.parent.parent / f"backup_{len(self._changes)}_{path.name}"
        backup.unlink(missing_ok=True)
        os.link(path, backup)  # the same inode, so that the contents need no copy
        return backup

    def _forget(self):
        for _, backup in self._changes:
            if backup:
                backup.unlink()
        self._changes = []

    def _fail(self, directory):
        for path in directory.iterdir():
            if path.is_file() and os.stat(path).st_ino in self._unflushed:
                os.truncate(path, self._rng.randint(0, path.stat().st_size))
        kept = self._rng.randint(0, len(self._changes))
        for path, backup in reversed(self._changes[kept:]):
            path.unlink(missing_ok=True)
            if backup:
                os.link(backup, path)
        os.kill(os.getpid(), signal.SIGKILL)
