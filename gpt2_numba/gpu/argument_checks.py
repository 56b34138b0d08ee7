"""Checks of a launcher's arguments. A kernel given a wrong shape silently reads memory outside its arrays, so every argument is checked."""

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, on_host

MOST_GRID_ROWS = 65535  # blocks in y or z; in x there may be 2**31 - 1
_KINDS = {
    "f32": np.dtype(np.float32), "i32": np.dtype(np.int32), "i64": np.dtype(np.int64), "u32": np.dtype(np.uint32), "u8": np.dtype(np.uint8),
}  # fmt: skip


def check_arrays(function, sizes, hint="", **arrays):
    """Raise ValueError for a wrong shape, TypeError for a wrong type or side (host or device).

    function  name of the layer function, for the message
    sizes     letter -> int, such as {"N": 10, "C": 40}
    hint      the likely mistake, added to the message
    arrays    name=(array, spec). A spec lists the axes, as in "N 3C": the second size is 3 * C.
              All arrays have the type of the first, float32 or bfloat16 bits (on the host also float64, for gradient checks), unless
              the spec starts with "f32", "i32", "i64", "u32" or "u8", which demands that type. Arrays that are None are skipped.
    """
    first, model_dtype = None, None
    for name, (array, spec) in arrays.items():
        if array is None:
            continue
        axes = spec.split()
        wanted_dtype = _KINDS.get(axes[0])
        if wanted_dtype is not None:
            axes = axes[1:]
        shape = tuple(_axis_size(axis, sizes) for axis in axes)
        if tuple(array.shape) != shape:
            letters = "(" + ", ".join(axes) + ("," if len(axes) == 1 else "") + ")"
            raise ValueError(f"{function}: {name} must be {letters} = {shape}, got {tuple(array.shape)}. {hint}".strip())
        if first is None:
            first = (name, on_host(array))
        elif on_host(array) != first[1]:
            raise TypeError(
                f"{function}: {first[0]} is on the {_side(first[1])}, {name} on the {_side(not first[1])}. "
                "All arrays must be on one side: gpu.backend.to_device moves one to the GPU"
            )
        if wanted_dtype is None:
            model_dtype = model_dtype or array.dtype
            wanted_dtype = model_dtype
            if not on_host(array) and model_dtype not in (FLOAT32, BFLOAT16_BITS):
                raise TypeError(f"{function}: {name} must have type float32 or uint16 (bfloat16 bits) on a GPU, got {array.dtype}")
        elif array.dtype == np.float64 and on_host(array):
            continue
        if array.dtype != wanted_dtype:
            raise TypeError(f"{function}: {name} must have type {wanted_dtype}, got {array.dtype}")


def check_on_device(function, array, layer):
    """Raise TypeError unless `array` is on the device, as the fast kernels require. layer: the file that also takes NumPy arrays."""
    if on_host(array):
        raise TypeError(f"{function}: the fast kernels take device arrays, got a NumPy array: {layer} takes both")


def check_scratch(function, scratch, count):
    """Raise ValueError or TypeError unless `scratch` is a float32 device array of at least `count` elements."""
    if scratch is None or on_host(scratch) or scratch.dtype != np.float32:
        got = "None" if scratch is None else f"{scratch.dtype} on the {_side(on_host(scratch))}"
        raise TypeError(f"{function}: scratch must be a float32 device array, got {got}")
    if scratch.size < count:
        raise ValueError(f"{function}: scratch must have at least {count} elements, got {scratch.size}")


def check_float32(function, array):
    """Raise TypeError unless a device array is float32, as the plain kernels require."""
    if array.dtype != FLOAT32:
        raise TypeError(
            f"{function}: the plain kernels take float32, got {array.dtype} (bfloat16 bits are uint16). Those of layers/fast take both"
        )


def check_width(function, **sizes):
    """Raise ValueError unless every size is a multiple of 8, the elements of a 16-byte bfloat16 load."""
    for letter, size in sizes.items():
        if size % 8:
            raise ValueError(f"{function}: {letter} must be a multiple of 8 on a GPU (16-byte loads), got {size}")


def check_grid(function, **counts):
    """Raise UserError if one of the numbers of blocks, by what they stand for, is more than a GPU's grid has in y or z."""
    for what, count in counts.items():
        if count > MOST_GRID_ROWS:
            raise UserError(
                f"{function}: {what} must be at most {MOST_GRID_ROWS:,}, the rows of a GPU's grid, got {count:,}: use a smaller micro-batch (-b)"
            )


def _axis_size(axis, sizes):
    letter = axis.lstrip("0123456789")
    factor = axis[: len(axis) - len(letter)]
    if not letter:
        return int(factor)
    return int(factor or 1) * sizes[letter]


def _side(is_host):
    return "host" if is_host else "device"
