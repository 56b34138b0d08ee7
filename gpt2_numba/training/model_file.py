"""Model files: the parameters of a GPT-2 in llm.c's format, so that either program can read the other's.

    256 int32, little-endian   [0] = 20240326, [1] = 3 (float32) or 5 (bfloat16), [2] = longest context, [3] = V,
                               [4] = L, [5] = NH, [6] = C, [7] = Vp, the rest 0
    the 16 tensors, one after the other in the order of config.parameter_shapes, float32 or bfloat16, little-endian

The file's size is exactly 1024 bytes plus that of the tensors. bfloat16 is represented by its 16 bits, in uint16. All numbers are finite,
those in the padding of the vocabulary too.
"""

from pathlib import Path

import numpy as np

from gpt2_numba.config import count_parameters, parse_descriptor
from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.errors import UserError
from gpt2_numba.training.finite import NotFinite, complaint, first_not_finite

MAGIC = 20240326
DTYPES = {3: np.dtype("<f4"), 5: np.dtype("<u2")}  # version in the header -> dtype
PIECE = 1 << 24  # elements written at a time: 64 MiB of float32

_REMEDY = "Give a model file written by llm.c or this program, or a descriptor such as d12"


def write_model_file(path, config, flat):
    """Write the parameters `flat` of a GPT2Config to `path`; an older file is replaced.

    flat  [r] (parameters,) float32, or uint16 with the bits of bfloat16: all tensors in the table's order. On the host or on a device: it
          is read in pieces.
    Raises ValueError if dtype or size is wrong, NotFinite if a parameter is NaN or infinite, OSError if the file cannot be written.
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
        write_array(file, flat, DTYPES[versions[0]], lambda index, value: complaint("the parameters", config, index, value))


def read_model_file(path, share=(0, 1)):
    """Return (GPT2Config, flat) of the model file at `path`.

    share  the part of the parameters that is checked to be finite, see first_not_finite: by default all. None: nothing is checked, since
           checksums show that the file is as it was written
    flat   read-only memory map (parameters,): float32, or uint16 with the bits of bfloat16; all tensors in the table's order
    Raises UserError if the file is missing, is not exactly a model file, or if a parameter is NaN or infinite.
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
    flat = map_array(path, dtype, count)
    bad = share and first_not_finite(flat, share)
    if bad:
        raise UserError(
            f"{path}: {complaint('the parameters', config, *bad)}: the file was altered, or its training had diverged. Use an older one"
        )
    return config, flat


def map_array(path, dtype, count):
    """A read-only memory map of the `count` numbers that follow the header of the file at `path`. Raises UserError if there can be none."""
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(count,))
    except (OSError, ValueError) as error:  # too many open files; a file that became shorter meanwhile
        raise UserError(
            f"{path} must be a file that can be mapped into memory, and cannot: {error}. Check the file, and ulimit -n"
        ) from error


def write_array(file, array, dtype, describe):
    """Append `array` to an open binary file as `dtype`, in pieces, so that a device array is never copied to the host as a whole.

    array     [r] 1-D, a NumPy array, or any kind whose slices NumPy can convert, such as a device array. The device must have finished
              writing it: the copies do not wait for the model's stream.
    describe  function of (index in the array, value): text about a value that is not finite
    Raises NotFinite with that text, before the piece with the value is written.
    """
    for start in range(0, array.shape[0], PIECE):
        piece = np.ascontiguousarray(array[start : start + PIECE], dtype=dtype)
        bad = first_not_finite(piece)
        if bad:
            index, value = bad
            raise NotFinite(describe(start + index, value))
        file.write(memoryview(piece))
