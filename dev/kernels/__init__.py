"""The ladder: from the plain kernel of each layer to the fast one, one mechanism per rung. README.md says how to climb it.

A rung is a function with the signature of a layer function (docs/kernels.md), so layer_checks checks it as it checks the package's own
kernels. Each file has the rungs of one layer and a table LADDER: name of the layer function -> its rungs, slowest first. The first is the
plain launcher, the last the fast one.
"""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32
from gpt2_numba.gpu.gemm import allow_tf32, tf32_allowed
from gpt2_numba.kernel_sets import FUNCTIONS, on_any_stream
from gpt2_numba.layer_checks import GuardedArray, check_call, kernel_calls
from gpt2_numba.own_kernels import reporting_errors, watching_for_races

LAYERS = ("residual", "gelu", "layernorm", "encoder", "matmul", "attention", "classifier", "global_norm", "adamw")
CHECKS = {"classifier": ("classifier", "mean loss"), "global_norm": ("global norm",)}  # a layer's names in layer_checks, if different
# tf32: float32 arrays; products may round their factors to 10 bits of mantissa, for tensor cores.
PRECISIONS = {"fp32": FLOAT32, "tf32": FLOAT32, "bf16": BFLOAT16_BITS}


def in_both_precisions(rung):
    """Mark a rung that takes float32 and bfloat16 arrays. An unmarked rung takes float32."""
    rung.precisions = ("fp32", "bf16")
    return rung


def in_all_precisions(rung):
    """Mark a rung that takes float32 and bfloat16 arrays, and whose float32 products differ if TF32 is allowed."""
    rung.precisions = tuple(PRECISIONS)
    return rung


@functools.cache
def buffer(name, *shape, dtype=np.float32):
    """A device array for data that a rung passes between its kernels: the same array for the same name, shape and type."""
    return cuda.device_array(shape, dtype)


def ladder(layer):
    """Name of a layer function -> its rungs, slowest first. Includes functions that fuse two layers."""
    module = importlib.import_module(f"dev.kernels.{layer}")
    return module.LADDER | getattr(module, "FUSED", {})


@contextlib.contextmanager
def products_in(precision):
    """Within this context TF32 is allowed if the precision is tf32, otherwise forbidden."""
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
    name: str  # plain, fast, yours, or the name of the rung
    launch: Callable  # with the function's signature
    precision: str

    def check(self, sizes):
        """Check the rung. Returns Rows of layer_checks."""
        storage = PRECISIONS[self.precision]
        launch, watching = self.launch, contextlib.nullcontext()
        if self.name == "yours":
            launch, watching = reporting_errors(self.function, on_any_stream(self.function, self.launch)), watching_for_races()
        with products_in(self.precision), watching:
            calls = _calls(self.layer, self.function, launch, sizes, storage)
            return [row for call in calls for row in (call.check or check_call)(call, storage)]


def rungs(layer, precisions=tuple(PRECISIONS), own=None):
    """Yield a Rung for every rung of a layer, slowest first, in each precision that it takes.

    own   a user's own functions, name -> function: each comes last in its function's ladder, under the name "yours"
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
    """Call a function with the arrays that its parameters name."""
    launch(*(getattr(arrays, name) for name in inspect.signature(launch).parameters))


def check_arguments(layer, function, sizes, storage):
    """The arguments of a layer function in its first check, by name: device arrays and scalars. Nothing is launched."""
    signature, recorded = inspect.signature(ladder(layer)[function][0]), {}

    def record(*arguments):
        recorded.update(zip(signature.parameters, arguments))

    record.__signature__ = signature
    call = next(_calls(layer, function, record, sizes, storage))
    call.launch(SimpleNamespace(**{name: GuardedArray(tensor, storage).array for name, tensor in call.tensors.items()}))
    return recorded
