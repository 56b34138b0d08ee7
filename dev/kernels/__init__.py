"""The ladder: from the plain kernel of each layer to the fast one, one mechanism a rung. README.md says how to climb it.

A rung is a function with the signature of a layer function (docs/kernels.md). Each file here has the rungs of one layer and a table LADDER: name of
the layer function -> its rungs, slowest first. The first is the plain launcher, the last the fast one. So layer_checks checks them all as it
checks the package's own kernels.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32
from gpt2_numba.gpu.gemm import allow_tf32, tf32_allowed
from gpt2_numba.kernel_sets import FUNCTIONS, on_any_stream
from gpt2_numba.layer_checks import GuardedArray, check_call, kernel_calls

LAYERS = ("residual", "gelu", "layernorm", "encoder", "matmul", "attention", "classifier", "global_norm", "adamw")
CHECKS = {"classifier": ("classifier", "mean loss"), "global_norm": ("global norm",)}  # a layer's names in layer_checks, if others
# tf32: arrays of float32, whose products may round their factors to 10 bits of mantissa, so that tensor cores take them.
PRECISIONS = {"fp32": FLOAT32, "tf32": FLOAT32, "bf16": BFLOAT16_BITS}


def in_both_precisions(rung):
    """Mark a rung that takes float32 and bfloat16 arrays. One that is not marked takes float32."""
    rung.precisions = ("fp32", "bf16")
    return rung


def in_all_precisions(rung):
    """Mark a rung that takes float32 and bfloat16 arrays, and whose products of float32 are others if TF32 is allowed."""
    rung.precisions = tuple(PRECISIONS)
    return rung


@functools.cache
def buffer(name, *shape, dtype=np.float32):
    """A device array for what a rung keeps between its kernels: the same one whenever name, shape and type are the same."""
    return cuda.device_array(shape, dtype)


def ladder(layer):
    """Name of a layer function -> its rungs, slowest first; functions that fuse two layers are among them."""
    module = importlib.import_module(f"dev.kernels.{layer}")
    return module.LADDER | getattr(module, "FUSED", {})


@contextmanager
def products_in(precision):
    """Within it, TF32 is allowed if the precision is tf32, and else forbidden."""
    before = tf32_allowed()
    allow_tf32(precision == "tf32")
    try:
        yield
    finally:
        allow_tf32(before)


@dataclass(frozen=True)
class Rung:
    """One rung in one precision."""

    layer: str
    function: str  # name of the layer function
    name: str  # plain, fast, yours, or the rung's own
    launch: Callable  # with the function's signature
    precision: str

    def check(self, sizes):
        """Rows of layer_checks."""
        storage = PRECISIONS[self.precision]
        launch = on_any_stream(self.launch) if self.name == "yours" else self.launch
        with products_in(self.precision):
            calls = _calls(self.layer, self.function, launch, sizes, storage)
            return [row for call in calls for row in (call.check or check_call)(call, storage)]


def rungs(layer, precisions=tuple(PRECISIONS), own=None):
    """Yield a Rung for every function of a layer, slowest first, in the precisions that it takes.

    own   functions of a reader's own, name -> function: they come last in their function's ladder, under the name "yours"
    """
    for function, steps in ladder(layer).items():
        named = [(_name(step, index, steps, function), step) for index, step in enumerate(steps)]
        if function in (own or {}):
            named.append(("yours", own[function]))
        for name, step in named:
            for precision in getattr(step, "precisions", ("fp32",)):
                if precision in precisions:
                    yield Rung(layer, function, name, step, precision)


def _name(step, index, steps, function):
    if step is FUNCTIONS.get(function):
        return "plain"
    return "fast" if index + 1 == len(steps) else step.__name__


def _calls(layer, function, launch, sizes, storage):
    """The Calls of layer_checks that use a function, with `launch` in its place."""
    for check in CHECKS.get(layer, (layer,)):
        if function in FUNCTIONS:
            yield from kernel_calls(check, sizes, storage, SimpleNamespace(**{function: launch}))
            continue
        for call in kernel_calls(check, sizes, storage):
            if call.function == function:
                yield replace(call, launch=functools.partial(_launch_by_name, launch))


def _launch_by_name(launch, arrays):
    """Call a function with the arrays that have its parameters' names."""
    launch(*(getattr(arrays, name) for name in inspect.signature(launch).parameters))


def arguments_of(layer, function, sizes, storage):
    """Arguments of a layer function by name, as its first check has them: device arrays, and numbers. Nothing is launched."""
    signature, given = inspect.signature(ladder(layer)[function][0]), {}

    def note(*arguments):
        given.update(zip(signature.parameters, arguments))

    note.__signature__ = signature
    call = next(_calls(layer, function, note, sizes, storage))
    call.launch(SimpleNamespace(**{name: GuardedArray(tensor, storage).array for name, tensor in call.tensors.items()}))
    return given
