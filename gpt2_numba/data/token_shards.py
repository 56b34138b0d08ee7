"""Token shards: files of training data in llm.c's format, so files are interchangeable with it.

    256 int32, little-endian   [0] = 20240520, [1] = 1 (version), [2] = number of tokens, the rest 0
    uint16 tokens, little-endian

The file's size is exactly 1024 + 2 * tokens bytes. A document begins with the end-of-text token.
"""

import glob
import hashlib
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

MAGIC = 20240520
VERSION = 1
LARGEST_COUNT = 2**31 - 1  # the header stores the count as int32
LARGEST_TOKEN = 2**16 - 1
SCANNED_TOGETHER = 2**22  # tokens that are in memory at a time while a whole shard is read

HOW_TO_MAKE_ONE = "Make one from a text file: python -m gpt2_numba.data --help"


def write_shard(path, tokens):
    """Write `tokens` (1-D, at least one integer, all in [0, 65535]) to `path` as a shard, replacing an older file.

    Raises ValueError for any other tokens, since uint16 would wrap them silently, and OSError if the file cannot be written.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"write_shard: tokens must be a 1-D array of integers, got {tokens.dtype} {tokens.shape}")
    if not 1 <= tokens.size <= LARGEST_COUNT:
        raise ValueError(f"write_shard: a shard holds 1 to {LARGEST_COUNT} tokens, got {tokens.size}")
    if tokens.min() < 0 or tokens.max() > LARGEST_TOKEN:
        raise ValueError(f"write_shard: a token must be in [0, {LARGEST_TOKEN}], got {tokens.min()} to {tokens.max()}")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens.size
    with open_regular(path, "wb") as file:
        file.write(header.tobytes())
        file.write(tokens.astype("<u2").tobytes())


class Shard:
    """A shard file: `len(shard)` is its number of tokens, `shard[start:stop]` reads some of them, uint16 (stop - start,).

    The file is read, not mapped: a mapped file that is truncated ends the process with SIGBUS. It is opened by the first read and stays open
    until `close`. While it is used its tokens must not change. After each read, the file's size, times and inode are compared with those at
    the start; if they differ, the file's SHA-256 decides, so the same tokens in a new file are fine.

    All methods may raise UserError: the file is missing or is not a shard, cannot be read, or is no longer what it was at the start.
    """

    def __init__(self, path):
        self._file = None
        self.path, self.name = Path(path), str(path)
        self._lock = threading.Lock()  # two threads may want the same shard checked
        self.sha256 = None  # of the whole file, in hexadecimal digits, once its tokens have been checked
        self._count = int(read_header(path, "a token shard", MAGIC, (VERSION,), HOW_TO_MAKE_ONE)[2])
        if self._count < 1:
            raise UserError(f"{path}: a token shard must hold at least one token, its header says {self._count}. {HOW_TO_MAKE_ONE}")
        with self._as_user_error(), self._open() as file:
            self._identity = _identity(file)
        size, expected = self._identity[0], HEADER_BYTES + 2 * self._count
        if size != expected:
            raise UserError(
                f"{path}: a shard of {self._count} tokens must have {expected} bytes, this file has {size}: "
                "it was truncated or altered. Copy it again, or make a new one"
            )

    def __len__(self):
        return self._count

    @property
    def facts(self):
        """Name, tokens, bytes and time of modification (UTC) when the file was first opened, of JSON's types."""
        modified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._identity[1] // 10**9))
        return {"name": self.path.name, "tokens": self._count, "bytes": self._identity[0], "modified": modified}

    def __getitem__(self, tokens):
        start, stop, _ = tokens.indices(self._count)
        with self._as_user_error():
            self._file = self._file or self._open()
            while True:
                values = self._read(self._file, start, stop)
                identity = _identity(self._file)
                if identity == self._identity:
                    return values
                self._accept(identity)  # the tokens are the same, but perhaps were not while they were read

    def check(self, vocab_size=None):
        """Read all tokens, if that has not been done. Raises UserError if one is not below `vocab_size`. Threads may call it together."""
        with self._lock, self._as_user_error():
            if self.sha256 is None:
                with self._open() as file:
                    identity = _identity(file)
                    self._check_size(identity)
                    self.sha256 = self._scan(file, vocab_size)
                    self._identity = identity

    def close(self):
        """Close the file until the next read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    __del__ = close

    def _open(self):
        return open_regular(self.path, buffering=0)  # a buffer could hold tokens that have changed in the file

    def _read(self, file, start, stop):
        """Tokens start ... stop - 1 of the open file, uint16."""
        tokens = np.empty(stop - start, dtype="<u2")
        unread = memoryview(tokens.view(np.uint8))
        file.seek(HEADER_BYTES + 2 * start)
        while unread:
            count = file.readinto(unread)
            if count == 0:
                self._check_size(_identity(file))
                raise self._changed("it cannot be read to its end")
            unread = unread[count:]
        return tokens

    def _scan(self, file, vocab_size=None):
        """Read all tokens of the open file, a piece at a time, and return the file's SHA-256."""
        file.seek(0)
        digest = hashlib.sha256(file.read(HEADER_BYTES))
        for start in range(0, self._count, SCANNED_TOGETHER):
            tokens = self._read(file, start, min(start + SCANNED_TOGETHER, self._count))
            check_vocabulary(self.name, tokens, vocab_size, start)
            digest.update(tokens)
        return digest.hexdigest()

    def _accept(self, identity):
        """Remember another identity of the open file if its tokens are still those that were checked, otherwise raise UserError."""
        self._check_size(identity)
        if self._scan(self._file) != self.sha256:
            raise self._changed("it has other tokens")
        self._identity = identity

    def _check_size(self, identity):
        if identity[0] != self._identity[0]:
            raise self._changed(f"it had {self._identity[0]} bytes and has {identity[0]}")

    @contextmanager
    def _as_user_error(self):
        """What the system refuses becomes a UserError."""
        try:
            yield
        except OSError as error:
            raise self._changed(error.strerror) from error

    def _changed(self, reason):
        return UserError(
            f"{self.path}: a shard must stay as it was when the run began: {reason}. Put the same file back, then resume the run"
        )


class TokenArray:
    """Tokens in memory, 1-D uint16, used like a Shard. name: in messages."""

    def __init__(self, tokens, name):
        self.tokens, self.name = tokens, name
        self.sha256 = None  # as a Shard's, but of the tokens alone
        self._checked = False

    def __len__(self):
        return len(self.tokens)

    @property
    def facts(self):
        """Name and number of tokens."""
        return {"name": self.name, "tokens": len(self.tokens)}

    def __getitem__(self, tokens):
        return self.tokens[tokens]

    def check(self, vocab_size=None):
        """Raise UserError if a token is not below `vocab_size`."""
        if not self._checked:
            check_vocabulary(self.name, self.tokens, vocab_size)
            self.sha256, self._checked = hashlib.sha256(np.ascontiguousarray(self.tokens)).hexdigest(), True

    def close(self):
        """Nothing is open."""


def as_shard(data, name):
    """What a DataLoader reads: an array becomes a TokenArray of this name, a path a Shard; anything else is used like one already."""
    if isinstance(data, np.ndarray):
        return TokenArray(data, name)
    return Shard(data) if isinstance(data, str | os.PathLike) else data


def check_vocabulary(name, tokens, vocab_size, first=0):
    """Raise UserError if a token is not below `vocab_size` (None: any is fine): the model would read beyond wte.

    tokens: 1-D uint16, not empty, those of the shard `name` from number `first` on.
    """
    if vocab_size is not None and tokens.max() >= vocab_size:
        position = int(np.argmax(tokens >= vocab_size))  # the first one
        raise UserError(
            f"{name}: a token must be below the model's vocabulary of {vocab_size}, token number {first + position} is {tokens[position]}. "
            "Use a model with the tokenizer's vocabulary, or tokenize the text again"
        )


def find_shards(pattern):
    """Return the paths that match the glob `pattern` (or the file of that name), sorted by name. Raises UserError if there is none."""
    pattern = os.fspath(pattern)
    if os.path.isfile(pattern):  # a plain name wins, so that a file called "a[1].bin" can be passed as is
        return [Path(pattern)]
    try:
        paths = sorted(Path(match) for match in glob.glob(pattern))
        if paths:
            return paths
        reason = f"nothing of that name in {_listed_directory(pattern)}"
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        reason = getattr(error, "strerror", None) or error
    raise UserError(
        f"token shards: a pattern must match at least one file, {pattern!r} matches none: {reason}. Check the path, or make shards: "
        "python -m gpt2_numba.data --help"
    )


def _listed_directory(pattern):
    """The directory in which nothing matches `pattern`. Raises OSError or ValueError if it cannot be searched."""
    if glob.escape(pattern) == pattern:
        os.stat(pattern)  # a plain name: the reason is the system's
    directory = os.path.dirname(pattern)
    while glob.escape(directory) != directory:
        directory = os.path.dirname(directory)
    os.scandir(directory or ".").close()
    return os.path.abspath(directory)


def _identity(file):
    """(size, times, inode) of an open file: another identity may mean other contents."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
