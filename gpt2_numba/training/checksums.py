"""Checksums of a checkpoint's files, in blocks: threads compute them side by side, and processes divide the work of comparing them.

The checksums of a file are a JSON-serialisable dictionary, which DONE holds (training/done_file.py):

    {"bytes": size of the file, "sha256": [SHA-256 of each block of BLOCK_BYTES, hexadecimal; the last block may be shorter]}
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gpt2_numba.errors import UserError
from gpt2_numba.integers import ceil_div

BLOCK_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20  # read at a time
MAX_THREADS = 8  # each hashes 0.4 to 2 GB/s, without Python's global lock


class Block(NamedTuple):
    """Block `number` of a file, with the bytes [start, stop)."""

    path: Path
    number: int
    start: int
    stop: int


def checksums_of(paths, progress=lambda path: None):
    """The checksums of files: a list of dictionaries, in the order of `paths`.

    progress  function that is called with the path of each block when its checksum is known
    Raises OSError if a file cannot be read.
    """
    files = [_blocks(path, os.stat(path).st_size, BLOCK_BYTES) for path in paths]
    digests = iter(_in_threads(digest_of, [block for blocks in files for block in blocks], progress))
    return [{"bytes": blocks[-1].stop if blocks else 0, "sha256": [next(digests) for _ in blocks]} for blocks in files]


def verify_files(directory, done, share=(0, 1), progress=lambda path: None):
    """Raise UserError if a file in `directory` is missing or is not the one whose checksums were recorded.

    done      Done (done_file.py): names and checksums of the files
    share     (rank, ranks): one of the processes that divide the work between them. Each looks at all sizes and at every ranks-th block,
              beginning with the block of its rank
    progress  see checksums_of
    """
    blocks, expected = [], {}
    for name, recorded in done.files.items():
        path = Path(directory) / name
        _check_size(path, recorded["bytes"])
        new_blocks = _blocks(path, recorded["bytes"], done.block_bytes)
        blocks += new_blocks
        expected.update(zip(new_blocks, recorded["sha256"]))
    rank, ranks = share
    _in_threads(lambda block: _check_block(block, expected[block]), blocks[rank::ranks], progress)


def well_formed(files, block_bytes):
    """Whether `files` is what it should be: name -> the checksums of all blocks of a file."""
    sizes = [block_bytes, *(recorded["bytes"] for recorded in files.values())]
    return (
        all(isinstance(size, int) and size >= 0 for size in sizes)
        and all("/" not in name for name in files)
        and all(len(recorded["sha256"]) == ceil_div(recorded["bytes"], block_bytes) for recorded in files.values())
    )


def _check_size(path, expected):
    try:
        size = os.stat(path).st_size
    except FileNotFoundError as error:
        raise UserError(f"{path}: a checkpoint must have all its files, but this one is missing. Use an older checkpoint") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if size != expected:
        raise UserError(
            f"{path}: a checkpoint's file must have the size recorded in DONE, {expected} bytes, and this one has {size}: it was cut off or "
            "altered, or is from another checkpoint. Use an older checkpoint"
        )


def _unreadable(path, error):
    return UserError(f"{path}: a checkpoint's file must be readable: {error.strerror}. Check the disk, and who may read the file")


def _blocks(path, size, block_bytes):
    return [Block(path, number, start, min(start + block_bytes, size)) for number, start in enumerate(range(0, size, block_bytes))]


def _check_block(block, expected):
    try:
        digest = digest_of(block)
    except OSError as error:
        raise _unreadable(block.path, error) from error
    if digest != expected:
        raise UserError(
            f"{block.path}: a checkpoint's file must have the checksums recorded in DONE, and block {block.number} has another (bytes "
            f"{block.start} to {block.stop - 1}): it was altered, or is from another checkpoint. Use an older checkpoint"
        )


def digest_of(block):
    """The SHA-256 of a block, hexadecimal. Raises OSError."""
    sha = hashlib.sha256()
    with open(block.path, "rb", buffering=0) as file:
        file.seek(block.start)
        left = block.stop - block.start
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            sha.update(chunk)
            left -= len(chunk)
    return sha.hexdigest()


def _in_threads(work, blocks, progress):
    """[work(block) for each block], several at the same time. The exception of the first block that has one ends it."""
    threads, results = min(MAX_THREADS, os.cpu_count() or 1, sum(block.stop - block.start for block in blocks) // BLOCK_BYTES), []
    pool = ThreadPoolExecutor(threads) if threads > 1 else None  # a small checkpoint is not worth them
    try:
        for block, result in zip(blocks, pool.map(work, blocks) if pool else map(work, blocks)):
            progress(block.path)
            results.append(result)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)  # after an exception the other blocks do not matter
    return results
