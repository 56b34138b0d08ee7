"""Token shards: files of training data in llm.c's format, so files are interchangeable with it.

    256 int32, little-endian   [0] = 20240520, [1] = 1 (version), [2] = number of tokens, the rest 0
    uint16 tokens, little-endian

The file's size is exactly 1024 + 2 * tokens bytes. A document begins with the end-of-text token.
"""

import glob
from pathlib import Path

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.errors import UserError

MAGIC = 20240520
VERSION = 1
LARGEST_COUNT = 2**31 - 1  # the header stores the count as int32
LARGEST_TOKEN = 2**16 - 1

HOW_TO_MAKE_ONE = "Make one from a text file: python -m dev.data.tokenize_text --help"


def write_shard(path, tokens):
    """Write `tokens` (1-D, at least one integer, all in [0, 65535]) to `path` as a shard, replacing an older file.

    Raises ValueError for any other tokens: uint16 would wrap them silently.
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
    with open(path, "wb") as file:
        file.write(header.tobytes())
        file.write(tokens.astype("<u2").tobytes())


def read_shard(path):
    """Return the tokens of the shard at `path`: a read-only uint16 memory map of shape (tokens,).

    Mapped, not read: a shard may be larger than memory, and a batch touches only its own pages.
    Raises UserError if the file is missing or is not a valid shard.
    """
    path = Path(path)
    count = int(read_header(path, "a token shard", MAGIC, (VERSION,), HOW_TO_MAKE_ONE)[2])
    if count < 1:
        raise UserError(f"{path}: a token shard must hold at least one token, its header says {count}. {HOW_TO_MAKE_ONE}")
    size, expected = path.stat().st_size, HEADER_BYTES + 2 * count
    if size != expected:
        raise UserError(
            f"{path}: a shard of {count} tokens must have {expected} bytes, this file has {size}: "
            "it was truncated or altered. Copy it again, or make a new one"
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def find_shards(pattern):
    """Return the paths that match the glob `pattern` (or the file of that name), sorted by name. Raises UserError if there is none."""
    if Path(pattern).is_file():  # a plain name wins, so that a file called "a[1].bin" can be passed as is
        return [Path(pattern)]
    paths = sorted(Path(match) for match in glob.glob(str(pattern)))
    if not paths:
        raise UserError(
            f"token shards: a pattern must match at least one file, '{pattern}' matches none (in "
            f"{Path.cwd()}). Check the path, or make shards: python -m dev.data.tokenize_text --help"
        )
    return paths
