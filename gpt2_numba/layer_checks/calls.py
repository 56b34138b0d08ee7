"""A call of a layer function, described so that it can be made on the host and on the device with the very same numbers.

    Call(
        "residual forward",
        dict(out=written(*shape), inp=read(values), branch=read(more_values)),
        lambda a: residual_forward(a.out, a.inp, a.branch),
    )

Then come the bounds of errors, as a function of what the reference gives; without them the bits must agree. `running` makes the call.
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
    """NaN before; afterwards nobody looks. A flat one is for kernels alone: the reference gets None."""
    return Tensor(shape, kind, None, "scratch")


@dataclass(frozen=True)
class Call:
    """One call of a layer function, which can be made on the host and on the device."""

    name: str
    tensors: dict  # name -> Tensor
    launch: Callable  # of a namespace of arrays
    errors: Callable = lambda after, before, storage: {}  # -> name -> bound of the arithmetic's error; see `compare`. Missing: 0
    reference: Callable | None = None  # where the host takes other arguments than the device
    check: Callable | None = None  # of (call, storage), where `check_call` will not do
    # Of (after, before, results): puts into `after` what is defined by another result as the device has stored it, such as its sums.
    from_stored: Callable | None = None
