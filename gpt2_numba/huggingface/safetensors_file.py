"""The safetensors format, in which Hugging Face keeps weights:

    8 bytes       n, the length of the header, little-endian
    n bytes       JSON: name of a tensor -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [start, stop]}, bytes after the header;
                  under "__metadata__" a dictionary of texts. Spaces at its end align what follows
    the tensors   little-endian, each in C order, one after the other

https://github.com/huggingface/safetensors, "Format"
"""

import json
import math
import os
import struct

import ml_dtypes
import numpy as np

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
ALIGNMENT = 8  # bytes


def read_safetensors(path):
    """All tensors of a file: name -> read-only array, part of a memory map; bfloat16 is ml_dtypes'.

    Raises UserError if the file cannot be read, is not exactly of this format, or has a tensor of another type.
    """
    try:
        with open_regular(path) as file:
            size, length = os.fstat(file.fileno()).st_size, file.read(8)
            header_bytes = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
                raise _damaged(path, f"its first 8 bytes are not the length of a header, the file has {size} bytes")
            header = json.loads(file.read(header_bytes))
            file_bytes = np.memmap(file, np.uint8, "r")
    except OSError as error:
        raise UserError(f"{path} must be a file that can be read, and is not: {error.strerror or error}. Check the path") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a dictionary")
    data = file_bytes[8 + header_bytes :]
    return {name: _tensor(path, name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def _tensor(path, name, entry, data):
    """The array of one entry of the header. data: (bytes after the header,) uint8."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes_fit = all(type(number) is int and number >= 0 for number in (*shape, start, stop)) and start <= stop <= len(data)
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"its header does not say what {name!r} is") from error
    name = name[:200]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{path}: the tensors of a GPT-2 are of type {', '.join(DTYPES)}, and {name!r} is {str(dtype)[:80]!r}: convert it")
    if not sizes_fit or stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _damaged(path, f"{name!r}, {dtype} {shape}, is not in bytes {start} to {stop} of {len(data)}")
    return data[start:stop].view(DTYPES[dtype]).reshape(shape)


def _damaged(path, what):
    return UserError(f"{path} must be a safetensors file, and is not: {what}. It was cut off or altered: copy or download it again")


def safetensors_header(shapes, dtype):
    """The bytes before the tensors of a file.

    shapes  name -> shape, in the order in which the tensors follow        dtype  of all of them, a key of DTYPES
    """
    header, start = {"__metadata__": {"format": "pt"}}, 0  # transformers asks for this: weights as PyTorch names and shapes them
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
