"""The header of llm.c's file formats: 256 int32, little-endian; the first identifies the format, the second is its version."""

import numpy as np

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS

# The first int32 of each format, so that an error can say what a file is instead.
FILE_KINDS = {
    20240326: "a model checkpoint",
    20240327: "a debug state",
    20240328: "a tokenizer",
    20240520: "a token shard",
    20240522: "a multiple-choice evaluation",
    20240527: "an optimizer state",
}


def read_header(path, kind, magic, versions, remedy):
    """Return the header of the file at `path`, int32 (256,).

    kind      what the file must be, such as "a model file"
    magic     its first int32
    versions  those that can be read
    remedy    what to do about a wrong file, a sentence without its full stop
    Raises UserError if the file cannot be read, is not a regular file, or has another header.
    """
    try:
        with open_regular(path) as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(f"{path}: {kind} must be a readable file: {error.strerror}. Check the path. {remedy}") from error
    if len(start) < HEADER_BYTES:
        raise UserError(f"{path}: {kind} must have a header of {HEADER_BYTES} bytes, this file has {len(start)} in total. {remedy}")
    header = np.frombuffer(start, dtype="<i4")
    found, version = int(header[0]), int(header[1])
    if found != magic:
        raise UserError(
            f"{path}: {kind} begins with the number {magic}; this file begins with {found}, so it is "
            f"{FILE_KINDS.get(found, 'something else')}. {remedy}"
        )
    if version not in versions:
        raise UserError(f"{path}: {kind} must have version {' or '.join(map(str, versions))}, this one has {version}. {remedy}")
    return header
