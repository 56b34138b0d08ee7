"""The ladder: from the plain kernel of each layer to the fast one, one mechanism a rung. README.md says how to climb it.

A rung is a function with the signature of a layer function (docs/kernels.md). Each file here has the rungs of one layer and a table LADDER: name of
the layer function -> its rungs, slowest first. The first is the plain launcher, the last the fast one. So layer_checks checks them all as it
checks the package's own kernels.
"""

import functools
import importlib
import inspect
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numba import cuda

from gpt2_numba.kernel_sets import FUNCTIONS
from gpt2_numba.layer_checks import check_call, kernel_calls
from gpt2_numba.layer_checks.all_layers import STORAGE

LAYERS = ("residual", "gelu", "layernorm", "encoder", "matmul", "attention", "classifier", "global_norm", "adamw")
CHECKS = {"classifier": ("classifier", "mean loss"), "global_norm": ("global norm",)}  # a layer's names in layer_checks, if others


def in_both_precisions(rung):
    """Mark a rung that takes float32 and bfloat16 arrays. One that is not marked takes float32."""
    rung.precisions = tuple(STORAGE)
    return rung


@functools.cache
def buffer(*shape, dtype=np.float32):
    """A device array for what a rung keeps between its kernels."""
    return cuda.device_array(shape, dtype)


def ladder(layer):
    """Name of a layer function -> its rungs, slowest first; functions that fuse two layers are among them."""
    module = importlib.import_module(f"dev.kernels.{layer}")
    return module.LADDER | getattr(module, "FUSED", {})


@dataclass(frozen=True)
class Rung:
    """One function in one precision, and the calls that check and time it."""

    function: str  # name of the layer function
    name: str  # plain, fast, or the rung's own
    precision: str
    calls: list  # of layer_checks; the first is the one to be timed

    def check(self):
        """Rows of layer_checks."""
        return [row for call in self.calls for row in (call.check or check_call)(call, STORAGE[self.precision])]


def rungs(layer, sizes, precisions=tuple(STORAGE), own=None):
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
                    yield Rung(function, name, precision, list(_calls(layer, function, step, sizes, precision)))


def _name(step, index, steps, function):
    if step is FUNCTIONS.get(function):
        return "plain"
    return "fast" if index + 1 == len(steps) else step.__name__


def _calls(layer, function, step, sizes, precision):
    """The Calls of layer_checks that use a function, with `step` in its place."""
    for check in CHECKS.get(layer, (layer,)):
        if function in FUNCTIONS:
            yield from kernel_calls(check, sizes, STORAGE[precision], SimpleNamespace(**{function: step}))
            continue
        for call in kernel_calls(check, sizes, STORAGE[precision]):
            if call.function == function:
                yield replace(call, launch=functools.partial(_launch_by_name, step))


def _launch_by_name(step, arrays):
    """Call a function with the arrays that have its parameters' names."""
    step(*(getattr(arrays, name) for name in inspect.signature(step).parameters))


def arguments_of(layer, rung, sizes, arrays):
    """The arguments of a rung's function by name, as its first call gives them: what its cost is counted from. Nothing is launched."""
    signature, given = inspect.signature(ladder(layer)[rung.function][0]), {}

    def note(*arguments):
        given.update(zip(signature.parameters, arguments))

    note.__signature__ = signature
    first, *_ = _calls(layer, rung.function, note, sizes, rung.precision)
    first.launch(arrays)
    return given
