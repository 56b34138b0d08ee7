"""Training begins on the first shard while the others are still being downloaded: `--wait-for-shards on`.

Order and sizes come from the manifest (manifest.py), which lists all shards before they are there. So the loader draws the same order, and
counts the same tokens, as with all files present: the bits of a run do not depend on when they arrive. A shard that is missing when its
first tokens are read is waited for.
"""

import fnmatch
import glob
import os
import sys
import threading
import time
from pathlib import Path

from gpt2_numba.data.manifest import MANIFEST, read_download_state, read_manifest
from gpt2_numba.data.token_shards import Shard
from gpt2_numba.errors import UserError

POLL = 0.2  # seconds between two looks
ANNOUNCED_AFTER = 2  # seconds of waiting
DEAD_AFTER = 60  # seconds without a sign of life of the download; over a network file system it may be seen late
MANIFEST_PATIENCE = 60  # seconds that a download may take to write the manifest, if it was started together with the run

HOW_TO_DOWNLOAD = "start the download, which writes it: python -m gpt2_numba.data --help"


class StoppedWaiting(UserError):
    """The run was asked to stop while it waited for a shard."""


class Arrivals:
    """The shards of a run that are still arriving.

    progress   function of a text, called about once a second while a shard is waited for, in the thread that waits
    """

    def __init__(self, progress=lambda what: None):
        self._progress = progress
        self._given_up = False  # a plain flag: it is set in a signal handler

    def find(self, pattern):
        """The shards that a manifest lists and whose paths match `pattern`: a list of ArrivingShard, in the order of `find_shards`.

        Waits for the manifest, for as long as a download may need to write it. Raises UserError if there is none that lists such shards.
        """
        directory = os.path.dirname(os.fspath(pattern))
        return [
            ArrivingShard(Path(directory) / listed.name, listed, manifest, self)
            for manifest in self.find_manifests(pattern)
            for listed in read_manifest(manifest)
            if _matches(listed.name, pattern)
        ]

    def find_manifests(self, pattern):
        """The one manifest, as a list of its path, that lists shards matching `pattern`. Waits and raises as `find` does."""
        directory, name = os.path.split(os.fspath(pattern))
        if glob.has_magic(directory):
            raise UserError(f"--wait-for-shards needs the shards' directory without wildcards, got {pattern!r}: name it")
        begin = time.monotonic()
        while True:
            manifests = sorted(Path(path) for path in glob.glob(os.path.join(glob.escape(directory), f"*{MANIFEST}")))
            matching = [path for path in manifests if any(_matches(listed.name, pattern) for listed in read_manifest(path))]
            if len(matching) > 1:
                raise UserError(
                    f"--wait-for-shards takes the shards of one manifest, {pattern!r} matches those of {matching[0]} and {matching[1]}: "
                    "use a pattern that names one"
                )
            if matching:
                return matching
            what = f"a manifest (*{MANIFEST}) in {directory or '.'} that lists {name}"
            if time.monotonic() - begin > MANIFEST_PATIENCE:
                raise UserError(f"--wait-for-shards needs {what}, and there is none: {HOW_TO_DOWNLOAD}")
            self._pause(begin, what)

    def wait(self, shard):
        """Return when the file of an ArrivingShard is there.

        Raises UserError if it will not come: the download has failed, has ended without it, or gives no sign of life; StoppedWaiting after
        `give_up`.
        """
        begin = heard = time.monotonic()
        last = read_download_state(shard.manifest)
        while not shard.path.exists():
            if self._given_up:
                raise StoppedWaiting(f"stopped while waiting for {shard.name}")
            state = read_download_state(shard.manifest)
            if state != last:
                last, heard = state, time.monotonic()
            reason = self._why_dead(state, silence=time.monotonic() - heard)
            if reason and not shard.path.exists():  # it may have come between the two looks
                again = f": {state.command}" if state and state.command else ""
                raise UserError(
                    f"{shard.name} must arrive before the run can go on, and its download {reason}. Start that again{again}; then resume "
                    "the run"
                )
            self._pause(begin, shard.name)
        if time.monotonic() - begin > ANNOUNCED_AFTER:
            print(f"{shard.name} has come after {time.monotonic() - begin:.0f} s", file=sys.stderr)

    def give_up(self):
        """End all waiting with StoppedWaiting, now and from now on. May be called in a signal handler."""
        self._given_up = True

    @staticmethod
    def _why_dead(state, silence):
        if silence > DEAD_AFTER:
            return f"has given no sign of life for {DEAD_AFTER} s"
        if state and state.state == "failed":
            return f"has failed ({state.reason})"
        if state and state.state == "done":
            return "has ended without it"
        return None

    def _pause(self, begin, what):
        """Wait a moment, and say so once it has taken long enough."""
        before = time.monotonic() - begin
        time.sleep(POLL)
        after = time.monotonic() - begin
        if before <= ANNOUNCED_AFTER < after:
            print(f"waiting for {what}", file=sys.stderr)
        if int(before) != int(after):
            self._progress(f"waiting for {what}")


class ArrivingShard:
    """A shard that may not be there yet, used like a Shard (token_shards.py).

    path, listed   its file, and its ListedShard        manifest   the path of the manifest        arrivals   the Arrivals of the run

    Its length is known from the manifest. Until the file is there, `check` does nothing; the first read then waits for the file, and checks
    it whole. All methods may raise UserError as Shard's do, a read also as Arrivals.wait does.
    """

    def __init__(self, path, listed, manifest, arrivals):
        self.path, self.name = path, str(path)
        self.listed, self.manifest, self.arrivals = listed, manifest, arrivals
        self._shard, self._vocab_size = None, None
        self._lock = threading.Lock()  # two threads may open it

    def __len__(self):
        return self.listed.tokens

    def __getitem__(self, tokens):
        return self._opened()[tokens]

    @property
    def facts(self):
        """As Shard.facts; what the manifest says until the file is there."""
        return self._shard.facts if self._shard else {"name": self.path.name, "tokens": len(self), "bytes": self.listed.bytes}

    @property
    def sha256(self):
        """As Shard.sha256."""
        return self._shard and self._shard.sha256

    def check(self, vocab_size=None):
        """As Shard.check, if the file is there; otherwise the first read does it, with this `vocab_size`."""
        self._vocab_size = vocab_size if vocab_size is not None else self._vocab_size
        if self._shard or self.path.exists():
            self._opened()

    def close(self):
        """Close the file until the next read."""
        if self._shard is not None:
            self._shard.close()

    def _opened(self):
        """The Shard, checked. Waits for its file."""
        if self._shard is None:
            self.arrivals.wait(self)
        with self._lock:
            if self._shard is None:
                shard = Shard(self.path)
                if len(shard) != len(self):
                    raise UserError(
                        f"{self.name}: a shard must have the tokens that {self.manifest.name} says, {len(self)}, this one has {len(shard)}. "
                        "Delete it and start its download again"
                    )
                self._shard = shard
        self._shard.check(self._vocab_size)
        return self._shard


def _matches(name, pattern):
    """Whether a shard of this name, in the pattern's directory, is one that the pattern asks for."""
    wanted = os.path.basename(os.fspath(pattern))
    return name == wanted or fnmatch.fnmatchcase(name, wanted)
