"""Token shards: the files that training data comes in, in llm.c's format, so that its files work here and ours there.

    256 int32, little-endian   [0] = 20240520, [1] = 1 (version), [2] = number of tokens, the rest 0
    uint16 tokens, little-endian

The file's size is exactly 1024 + 2 * tokens bytes. A document begins with the end-of-text token.
"""

import glob
from pathlib import Path

import numpy as np

from gpt2_numba.errors import UserError

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
LARGEST_COUNT = 2**31 - 1  # the header keeps the count as int32
LARGEST_TOKEN = 2**16 - 1

# llm.c's files begin with numbers of their own, so a mix-up can be called by its name.
FILE_KINDS = {
    MAGIC: "a token shard",
    20240326: "a model checkpoint",
    20240327: "a debug state",
    20240328: "a tokenizer",
    20240522: "a multiple-choice evaluation",
    20240527: "an optimizer state",
}
HOW_TO_MAKE_ONE = "Make one from a text file: python -m dev.data.tokenize_text --help"


def write_shard(path, tokens):
    """Write `tokens` (1-D, integers in [0, 65535], at least one) to `path` as one shard; an older file is replaced.

    Raises ValueError for other tokens: uint16 would wrap them silently.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"write_shard: tokens must be a 1-D array of integers, got {tokens.dtype} {tokens.shape}")
    if not 1 <= tokens.size <= LARGEST_COUNT:
        raise ValueError(f"write_shard: a shard holds 1 to {LARGEST_COUNT} tokens, got {tokens.size}")
    if tokens.min() < 0 or tokens.max() > LARGEST_TOKEN:
        raise ValueError(
            f"write_shard: a token must be in [0, {LARGEST_TOKEN}], got {tokens.min()} to {tokens.max()}")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens.size
    with open(path, "wb") as file:
        file.write(header.tobytes())
        file.write(tokens.astype("<u2").tobytes())


def read_shard(path):
    """Return the tokens of the shard at `path`: a read-only uint16 memory map of shape (tokens,).

    Mapped, not read: a shard may be larger than memory, and a batch touches only its own pages.
    Raises UserError if the file is missing or is not exactly a shard.
    """
    path = Path(path)
    header = _read_header(path)
    if header.size < HEADER_INTS or header[0] != MAGIC:
        raise UserError(f"{path}: a token shard begins with the number {MAGIC}; this file {_kind(header)}. "
                        f"{HOW_TO_MAKE_ONE}")
    version, count = int(header[1]), int(header[2])
    if version != VERSION:
        raise UserError(f"{path}: a token shard must have version {VERSION}, this one has {version}. {HOW_TO_MAKE_ONE}")
    if count < 1:
        raise UserError(f"{path}: a token shard must hold at least one token, its header says {count}. "
                        f"{HOW_TO_MAKE_ONE}")
    size, expected = path.stat().st_size, HEADER_BYTES + 2 * count
    if size != expected:
        raise UserError(f"{path}: a shard of {count} tokens must have {expected} bytes, this file has {size}: "
                        f"it was cut off or altered. Copy or make it again")
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def find_shards(pattern):
    """Return the paths that match the glob `pattern` (or the one file of that name), sorted by name.

    Raises UserError if there is none.
    """
    if Path(pattern).is_file():  # a plain name wins, so that a file called "a[1].bin" can be given as it is
        return [Path(pattern)]
    paths = sorted(Path(match) for match in glob.glob(str(pattern)))
    if not paths:
        raise UserError(f"token shards: a pattern must match at least one file, '{pattern}' matches none (looked from "
                        f"{Path.cwd()}). Check the path, or make shards: python -m dev.data.tokenize_text --help")
    return paths


def _read_header(path):
    """The first 256 int32 of the file, fewer if it is shorter."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(f"{path}: a token shard must be a readable file: {error.strerror}. Check the path") from error
    return np.frombuffer(start[:len(start) // 4 * 4], dtype="<i4")


def _kind(header):
    """What the file is, for the sentence 'this file ...'."""
    if header.size < HEADER_INTS:
        return f"is shorter than the header of {HEADER_BYTES} bytes"
    magic = int(header[0])
    if magic in FILE_KINDS:
        return f"is {FILE_KINDS[magic]} (it begins with {magic})"
    return f"begins with {magic}, so it is something else"
