"""The ladder: slower, simpler ancestors of the package's fast kernels, to be read before them. README.md tells how to climb it.

A rung is a function that takes the place of a layer's launcher: same arguments, same answer. Each file here has the rungs of one layer
and a table LADDER: name of the launcher -> its rungs, slowest first. So layer_checks checks them as it checks the package's own.
"""

import functools
import importlib
import inspect
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
from numba import cuda

from gpt2_numba.layer_checks import kernel_calls

LAYERS = ("encoder", "layernorm", "attention", "gelu", "classifier")


def ladder(layer):
    """Name of a launcher -> its rungs, slowest first."""
    return importlib.import_module(f"dev.kernels.{layer}").LADDER


def rungs(layer, sizes, storage):
    """Yield (launcher's name, rung or None for the package, a Call that is made with it) for all rungs of a layer, slowest first."""
    module = importlib.import_module(f"gpt2_numba.layers.fast.{layer}")
    for call in kernel_calls(layer, sizes, storage):
        launcher = call.name.replace(" ", "_")
        if launcher in ladder(layer):
            for rung in ladder(layer)[launcher]:
                yield launcher, rung, replace(call, launch=_with(rung, module, launcher, call))
            yield launcher, None, call


def _with(rung, module, launcher, call):
    """call.launch, but with `rung` where it names the launcher."""

    def launch(arrays):
        with mock.patch.object(module, launcher, rung):
            call.launch(arrays)

    return launch


def arguments_of(layer, launcher, package_call, arrays):
    """The launcher's arguments by name, as the package's own call of it gives them. Nothing is launched."""
    module, given = importlib.import_module(f"gpt2_numba.layers.fast.{layer}"), {}
    signature = inspect.signature(getattr(module, launcher))
    with mock.patch.object(module, launcher, lambda *args, **more: given.update(signature.bind(*args, **more).arguments)):
        package_call.launch(arrays)
    return SimpleNamespace(name=launcher, arguments=given)


@functools.cache
def buffer(*shape, dtype=np.float32):
    """A device array for what an ancestor keeps and the package's kernel does not."""
    return cuda.device_array(shape, dtype)
