"""The list of all shards of a data set, written before they arrive, so that a run can begin with the first of them.

NAME_manifest.json lies beside the shards NAME_train_000001.bin and so on:

    {"shards": [{"name": "NAME_train_000001.bin", "tokens": 100000000, "bytes": 200001024, "sha256": "...", "url": "https://..."}, ...]}

It is written once and then says the same as long as the same shards are asked for. Beside it, NAME_download.json says whether a download is
running, done or failed, and why; while one runs, the time of that file advances every few seconds.
"""

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2_numba.data.file_header import HEADER_BYTES
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

MANIFEST, DOWNLOAD = "_manifest.json", "_download.json"  # what follows NAME
HEARTBEAT = 2  # seconds between two signs of life
LARGEST_FILE = 1 << 26  # bytes; a manifest of a thousand shards has 300 KB


@dataclass(frozen=True)
class ListedShard:
    """One shard of a manifest. sha256 and url are None if unknown."""

    name: str
    tokens: int
    bytes: int
    sha256: str | None = None
    url: str | None = None


def write_manifest(stem, shards):
    """Write the list of ListedShards to STEM_manifest.json; another one replaces it whole. Raises OSError."""
    _write_whole(_beside(stem, MANIFEST), {"shards": [asdict(shard) for shard in sorted(shards, key=lambda shard: shard.name)]})


def read_manifest(path):
    """The ListedShards of a manifest, sorted by name. Raises UserError if it cannot be read or is not one."""
    try:
        with open_regular(path) as file:
            shards = [ListedShard(**shard) for shard in json.loads(file.read(LARGEST_FILE))["shards"]]
        if not all(map(_is_possible, shards)) or len({shard.name for shard in shards}) < len(shards):
            raise ValueError("a shard with an impossible name or size")
    except OSError as error:
        raise UserError(f"{path}: a manifest must be a readable file: {error.strerror}. Check the path") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: a manifest must list shards, each with name, tokens and bytes ({type(error).__name__}: {error}). Start the download "
            "again, which writes it: python -m gpt2_numba.data --help"
        ) from error
    return sorted(shards, key=lambda shard: shard.name)


def _is_possible(shard):
    is_name = isinstance(shard.name, str) and Path(shard.name).name == shard.name and "\0" not in shard.name
    are_numbers = type(shard.tokens) is int and type(shard.bytes) is int
    return is_name and are_numbers and shard.tokens > 0 and shard.bytes == HEADER_BYTES + 2 * shard.tokens


@dataclass(frozen=True)
class DownloadState:
    """What a download says of itself.

    state     "running", "done" or "failed"
    reason    why it has failed
    command   the command that goes on with it
    time      when it was last said, in nanoseconds of the file's clock: only compare it with another one
    """

    state: str
    reason: str
    command: str
    time: int


def read_download_state(manifest_path):
    """The DownloadState beside a manifest, None if there is none that can be read."""
    path = _beside(str(manifest_path).removesuffix(MANIFEST), DOWNLOAD)
    try:
        with open_regular(path) as file:
            said = json.loads(file.read(LARGEST_FILE))
            return DownloadState(str(said["state"]), str(said["reason"]), str(said["command"]), os.fstat(file.fileno()).st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


class SignOfLife:
    """Says beside the shards that their download runs, and at the end how it went. Use it in a `with` statement.

    stem      the path of the shards up to NAME        command   the command line that goes on with a download that has failed
    Raises OSError if it cannot be written at first; later it is only silent then.
    """

    def __init__(self, stem, command):
        self._path, self._command = _beside(stem, DOWNLOAD), command
        self._ended = threading.Event()

    def __enter__(self):
        self._say("running")
        self._thread = threading.Thread(target=self._beat, name="sign of life", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, _):
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._say("failed" if kind else "done", (str(error) or kind.__name__) if kind else "")

    def _say(self, state, reason=""):
        _write_whole(self._path, {"state": state, "reason": reason, "command": self._command})

    def _beat(self):
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _beside(stem, ending):
    stem = Path(stem)
    return stem.with_name(stem.name + ending)


def _write_whole(path, value):
    """Write JSON so that a reader sees the old file or the new one, nothing between."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open_regular(unfinished, "wb") as file:
            file.write((json.dumps(value, indent=1) + "\n").encode())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
