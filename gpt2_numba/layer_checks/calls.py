"""A call of a layer function, described so that it can be made on the host and on the device with the very same numbers.

    Call(
        "residual_forward",
        "residual forward",
        dict(out=written(*shape), inp=read(values), branch=read(more_values)),
        lambda a: fast.residual_forward(a.out, a.inp, a.branch),
        reference=lambda a: textbook.residual_forward(a.out, a.inp, a.branch),
    )

Then come the bounds of errors, as a function of what the reference gives; without them the bits must agree. `running` makes the call.

A textbook function has the same arguments on both sides: `textbook_call` writes them once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32

INTEGERS = {"i32": np.dtype(np.int32), "i64": np.dtype(np.int64), "u32": np.dtype(np.uint32)}


@dataclass(frozen=True)
class Tensor:
    """An argument of a layer function: its shape, what it holds before the call, and whether it is compared afterwards."""

    shape: tuple
    kind: str = "real"  # "real": the precision's storage type; "f32"; or one of INTEGERS
    values: np.ndarray | None = None  # None: NaN
    access: str = "w"  # "r" must not change; "w" compared with the reference, whatever it held; "scratch" neither

    def dtype(self, storage):
        return {"real": storage, "f32": FLOAT32, **INTEGERS}[self.kind]


def read(values, kind="real"):
    """Must not change."""
    return Tensor(values.shape, kind, values, "r")


def written(*shape, kind="real"):
    """Overwritten: NaN before."""
    return Tensor(shape, kind)


def changed(values, kind="real"):
    """Accumulated into, or computed in place."""
    return Tensor(values.shape, kind, values)


def scratch(*shape, kind="real"):
    """NaN before, and not compared afterwards. For kernels alone: the reference gets None."""
    return Tensor(shape, kind, None, "scratch")


def no_error(after, before, storage):
    """Bounds for a call whose every number is a copy, or one operation, which IEEE 754 determines: the bits must agree."""
    return {}


@dataclass(frozen=True)
class Call:
    """One call of a layer function, which can be made on the host and on the device."""

    function: str  # the name of the function that it tests
    name: str  # in tables
    tensors: dict  # name -> Tensor
    launch: Callable  # of a namespace of device arrays
    errors: Callable = no_error  # of (after, before, storage): name -> bound of the arithmetic's error; see `compare`. Missing: 0
    reference: Callable | None = None  # of a namespace of NumPy arrays; None: `launch` takes these, too
    check: Callable | None = None  # of (call, storage), where `check_call` will not do
    # Of (after, before, results): puts into `after` what is defined by another result as the device has stored it, such as its sums.
    from_stored: Callable | None = None


def textbook_call(functions, textbook, function, tensors, arguments, errors=no_error, name=None, check=None):
    """The Call of a textbook function: on the device the one in `functions`, on the host the one in `textbook`.

    functions, textbook  namespaces with a function of the name `function`; `functions` is not asked for it before the call is made
    arguments            of a namespace of arrays: the function's arguments, a tuple
    """
    return Call(
        function, name or function.replace("_", " "), tensors,
        lambda a: getattr(functions, function)(*arguments(a)), errors, lambda a: getattr(textbook, function)(*arguments(a)), check,
    )  # fmt: skip
