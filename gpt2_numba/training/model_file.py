"""Model files: the parameters of a GPT-2 in llm.c's format, so that either program can read the other's.

    256 int32, little-endian   [0] = 20240326, [1] = 3 (float32) or 5 (bfloat16), [2] = longest context, [3] = V,
                               [4] = L, [5] = NH, [6] = C, [7] = Vp, the rest 0
    the 16 tensors, one after the other in the order of config.parameter_shapes, float32 or bfloat16, little-endian

The file's size is exactly 1024 bytes plus that of the tensors. bfloat16 is represented by its 16 bits, in uint16.
"""

from pathlib import Path

import numpy as np

from gpt2_numba.config import count_parameters, parse_descriptor
from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.errors import UserError

MAGIC = 20240326
DTYPES = {3: np.dtype("<f4"), 5: np.dtype("<u2")}  # version in the header -> dtype
PIECE = 1 << 24  # elements written at a time: 64 MiB of float32

_REMEDY = "Give a model file written by llm.c or this program, or a descriptor such as d12"


def write_model_file(path, config, flat):
    """Write the parameters `flat` of a GPT2Config to `path`; an older file is replaced.

    flat  [r] (parameters,) float32, or uint16 with the bits of bfloat16: all tensors in the table's order. On the host or on a device: it
          is read in pieces.
    Raises ValueError if dtype or size is wrong, OSError if the file cannot be written.
    """
    versions = [version for version, dtype in DTYPES.items() if dtype == flat.dtype]
    if not versions or tuple(flat.shape) != (count_parameters(config),):
        raise ValueError(
            f"write_model_file: {config} has ({count_parameters(config)},) float32 or uint16 parameters, "
            f"got {flat.dtype} {tuple(flat.shape)}"
        )
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:8] = MAGIC, versions[0], config.max_T, config.V, config.L, config.NH, config.C, config.Vp
    with open(path, "wb") as file:
        file.write(header.tobytes())
        write_array(file, flat, DTYPES[versions[0]])


def read_model_file(path):
    """Return (GPT2Config, flat) of the model file at `path`.

    flat  read-only memory map (parameters,): float32, or uint16 with the bits of bfloat16; all tensors in the table's order
    Raises UserError if the file is missing or is not exactly a model file.
    """
    path = Path(path)
    header = read_header(path, "a model file", magic=MAGIC, versions=DTYPES, remedy=_REMEDY)
    max_T, V, L, NH, C, Vp = (int(size) for size in header[2:8])
    try:
        config = parse_descriptor(f"L={L},NH={NH},C={C},T={max_T},V={V}")  # it checks which sizes are compatible
    except UserError as error:
        raise UserError(f"{path}: a model file must hold the sizes of a GPT-2: {error}") from error
    if Vp != config.Vp:
        raise UserError(
            f"{path}: a vocabulary of {V} must be padded to {config.Vp} rows, the next multiple of 128; "
            f"this file has {Vp}. Write it again with {config.Vp} rows, zeros in the padding"
        )
    dtype, count = DTYPES[int(header[1])], count_parameters(config)
    expected, size = HEADER_BYTES + count * dtype.itemsize, path.stat().st_size
    if size != expected:
        raise UserError(
            f"{path}: a model file of {config} must have {expected} bytes, this file has {size}: it was cut off or altered. "
            f"Copy or create it again"
        )
    return config, np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(count,))


def write_array(file, array, dtype):
    """Append `array` to an open binary file as `dtype`, in pieces, so that a device array is never copied to the host as a whole.

    array  [r] 1-D, a NumPy array, or any kind whose slices NumPy can convert, such as a device array. The device must have finished writing
           it: the copies do not wait for the model's stream.
    """
    for start in range(0, array.shape[0], PIECE):
        file.write(memoryview(np.ascontiguousarray(array[start : start + PIECE], dtype=dtype)))
