"""Tokenizer files: the bytes of every token, in llm.c's format, for programs that only turn tokens into text.

    256 uint32, little-endian   [0] = 20240328, [1] = 2 (version), [2] = tokens, [3] = end-of-text, the rest 0
    per token                   one byte: its length, 1 to 255; then its bytes

The file cannot encode: it knows nothing of how text is cut up.
"""

from pathlib import Path

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.errors import UserError

MAGIC = 20240328
VERSION = 2

_REMEDY = "Give llm.c's gpt2_tokenizer.bin, or write one from a tokenizer"


def write_tokenizer_file(path, encoding):
    """Write the tokens of a `tiktoken.Encoding` to `path`; an older file is replaced.

    Raises ValueError if a token has more than 255 bytes, OSError if the file cannot be written.
    """
    tokens = [encoding.decode_single_token_bytes(token) for token in range(encoding.n_vocab)]
    if max(map(len, tokens)) > 255:
        raise ValueError(f"write_tokenizer_file: a token's length must fit one byte, '{encoding.name}' has longer ones")
    header = np.zeros(HEADER_INTS, dtype="<u4")
    header[:4] = MAGIC, VERSION, len(tokens), encoding.eot_token
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for token in tokens:
            file.write(bytes([len(token)]) + token)


def read_tokenizer_file(path):
    """Return (tokens, end_of_text) of the tokenizer file at `path`: a list of bytes, and a place in it.

    Raises UserError if the file is missing or is not exactly a tokenizer file.
    """
    path = Path(path)
    header = read_header(path, "a tokenizer file", MAGIC, (VERSION,), _REMEDY)
    count, end_of_text = (int(number) for number in header.view("<u4")[2:4])
    tokens, position, content = [], 0, path.read_bytes()[HEADER_BYTES:]
    while position < len(content) and len(tokens) < count:
        length = content[position]
        token = content[position + 1 : position + 1 + length]
        if length == 0 or len(token) < length:
            break
        tokens.append(token)
        position += 1 + length
    if len(tokens) < count or position < len(content):
        raise UserError(
            f"{path}: a tokenizer file of {count} tokens must hold a length from 1 to 255 and so many "
            f"bytes for each and nothing more, this file holds {len(tokens)} and {len(content) - position} "
            f"bytes after them: it was cut off or altered. Copy or make it again"
        )
    if end_of_text >= count:
        raise UserError(f"{path}: end-of-text must be one of the {count} tokens, this file says {end_of_text}. {_REMEDY}")
    return tokens, end_of_text
