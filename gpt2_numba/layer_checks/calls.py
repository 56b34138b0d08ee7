"""Describes a call of a layer function, so that it can be made on the host and on the device with identical inputs.

    Call(
        "residual_forward",
        "residual forward",
        dict(out=written(*shape), inp=read(values), branch=read(more_values)),
        lambda a: fast.residual_forward(a.out, a.inp, a.branch),
        reference=lambda a: textbook.residual_forward(a.out, a.inp, a.branch),
    )

The error bounds are a function of the reference's results; without it the bits must agree. `running` makes the call.

A textbook function takes the same arguments on both sides: `textbook_call` writes them once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32
from gpt2_numba.layer_checks.rows import column_sums

INTEGERS = {"i32": np.dtype(np.int32), "i64": np.dtype(np.int64), "u32": np.dtype(np.uint32), "u8": np.dtype(np.uint8)}


@dataclass(frozen=True)
class Tensor:
    """An array argument of a layer function: its shape, its values before the call, and whether it is compared afterwards."""

    shape: tuple
    kind: str = "real"  # "real": the precision's storage type; "f32"; or one of INTEGERS
    values: np.ndarray | None = None  # None: NaN
    access: str = "w"  # "r": must not change; "w": compared with the reference, whatever it held before; "scratch": neither

    def dtype(self, storage):
        return {"real": storage, "f32": FLOAT32, **INTEGERS}[self.kind]


def read(values, kind="real"):
    """An input: must not change."""
    return Tensor(values.shape, kind, values, "r")


def written(*shape, kind="real"):
    """An output: NaN before the call."""
    return Tensor(shape, kind)


def changed(values, kind="real"):
    """Accumulated into, or updated in place."""
    return Tensor(values.shape, kind, values)


def scratch(*shape, kind="real"):
    """Scratch memory: NaN before, not compared afterwards. For kernels only: the reference gets None."""
    return Tensor(shape, kind, None, "scratch")


def no_error(after, before, storage):
    """Bounds for a call whose every element is a copy or one operation, determined by IEEE 754: the bits must agree."""
    return {}


@dataclass(frozen=True)
class Call:
    """One call of a layer function, to be made on the host and on the device."""

    function: str  # name of the function under test
    name: str  # for tables
    tensors: dict  # name -> Tensor
    launch: Callable  # takes a namespace of device arrays
    errors: Callable = no_error  # (after, before, storage) -> {name: error bound of the arithmetic}, see `compare`. Missing names: 0
    reference: Callable | None = None  # takes a namespace of NumPy arrays; None: `launch` takes these too
    check: Callable | None = None  # (call, storage) -> rows, where `check_call` does not fit
    # (after, before, results): sets in `after` what is defined by another result as stored on the device, such as its column sums.
    from_stored: Callable | None = None


def adds_up(sums, matrix):
    """A Call's from_stored: `sums` has the column sums of `matrix`, as stored, added to it. Both are names of tensors."""

    def from_stored(after, before, results):
        setattr(after, sums, getattr(before, sums) + column_sums(results[matrix]))

    return from_stored


def textbook_call(functions, textbook, function, tensors, arguments, errors=no_error, name=None, check=None):
    """The Call of a textbook function: on the device the one in `functions`, on the host the one in `textbook`.

    functions, textbook  namespaces with a function named `function`; in `functions` it is looked up when the call is made
    arguments            takes a namespace of arrays and returns the function's arguments, a tuple
    """
    return Call(
        function, name or function.replace("_", " "), tensors,
        lambda a: getattr(functions, function)(*arguments(a)), errors, lambda a: getattr(textbook, function)(*arguments(a)), check,
    )  # fmt: skip
