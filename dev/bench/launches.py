"""Records every launch of the trainer while the real model runs. Nothing here depends on which layers there are.

There are two levels. A *launch* is the model's call of a layer function, such as `layernorm_backward` with certain arrays; a *part* is
what it launches on the device: a kernel, a matrix product, a fill with zeros.

    with watch_launches(mark) as log:
        model.forward(inputs)
    log.launches[0].name, .arguments, .parts[0].start, ...

Each can be repeated later with the same arrays (`call`), for timing.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

from gpt2_numba.gpu.backend import SIMULATING

# Where launchers are called. layer_order takes them from the model: see _watch_model_functions.
CALLERS = "gpt2_numba.fused_layer_order", "gpt2_numba.layer_order", "gpt2_numba.model", "gpt2_numba.parallel.gradients"
ORDER = "gpt2_numba.layer_order"
LAYERS, ZERO, PRODUCTS = "gpt2_numba.layers", "gpt2_numba.gpu.arena", "gpt2_numba.gpu.gemm"


@dataclass
class Part:
    """A kernel or matrix product: its name, its arguments by name, a function that repeats it, and the marks before and after it."""

    name: str
    arguments: dict
    call: Callable
    start: Any = None
    stop: Any = None


@dataclass
class Launch(Part):
    """One call of a layer function by the model."""

    layer: str = ""  # its file in layers/ or layers/fast/; "" for a fill with zeros
    phase: str = ""
    parts: list = field(default_factory=list)


@dataclass
class LaunchLog:
    """The recorded launches. `phase` is stored in the launches that follow; before_part is called before each part."""

    mark: Callable
    phase: str = ""
    before_part: Callable = lambda: None
    launches: list = field(default_factory=list)
    open: list = field(default_factory=list)  # launches and parts in progress, outermost first

    def run_launch(self, function, positional, named):
        """Make the model's call of a layer function."""
        if self.open:
            return function(*positional, **named)
        launch = Launch(function.__name__, _by_name(function, positional, named), lambda: function(*positional, **named))
        launch.phase, (_, package, *rest) = self.phase, function.__module__.split(".")
        launch.layer = rest[rest[0] == "fast"] if package == "layers" else ""
        self.launches.append(launch)
        result = self._run(launch)
        if result is not None:  # a launcher writes into its arguments; a function that returns something only computes on the host
            self.launches.pop()
        return result

    def run_part(self, name, arguments, call):
        """Launch a part on the device. Anything launched within it is not recorded."""
        if len(self.open) != 1:
            return call()
        self.before_part()
        part = Part(name, arguments, call)
        self.open[0].parts.append(part)
        return self._run(part)

    def _run(self, part):
        self.open.append(part)
        try:
            part.start = self.mark()
            result = part.call()
            part.stop = self.mark()
        finally:
            self.open.pop()
        return result


def _by_name(function, positional, named):
    bound = inspect.signature(function).bind(*positional, **named)
    bound.apply_defaults()
    return dict(bound.arguments)


@contextmanager
def watch_launches(mark=lambda: None):
    """A LaunchLog of everything the model launches in the `with` block, launch by launch (replaying a graph launches nothing).

    mark: called before and after every launch and part; its results are kept as start and stop.
    """
    log = LaunchLog(mark)
    with ExitStack() as stack:
        for caller in map(import_module, CALLERS):
            modules = [value for value in vars(caller).values() if inspect.ismodule(value) and value.__name__.startswith(LAYERS + ".")]
            for module in (caller, *modules):
                for name, function in _functions_from(module, LAYERS, ZERO):
                    stack.enter_context(patch.object(module, name, _launch_wrapper(log, function)))
        stack.enter_context(_watch_model_functions(log))
        for module in [module for name, module in sys.modules.items() if name.startswith(LAYERS)]:
            for name, function in _functions_from(module, PRODUCTS):
                stack.enter_context(patch.object(module, name, _product_wrapper(log, function)))
        stack.enter_context(_watch_kernels(log))
        yield log


def _functions_from(module, *homes):
    """Yield (name, function) for a module's functions defined in one of `homes`, or below it."""
    for name, value in list(vars(module).items()):
        if inspect.isfunction(value) and any(value.__module__ == home or value.__module__.startswith(home + ".") for home in homes):
            yield name, value


@contextmanager
def _watch_model_functions(log):
    """A context in which functions that layer_order takes from a model go through the log while one of its own functions runs."""
    order = import_module(ORDER)

    def wrapper(step, model, *arguments):
        with ExitStack() as stack:
            for name, function in list(vars(model.kernels.functions).items()):
                stack.enter_context(patch.object(model.kernels.functions, name, _launch_wrapper(log, function)))
            return step(model, *arguments)

    with ExitStack() as stack:
        for name, step in list(_functions_from(order, ORDER)):
            if next(iter(inspect.signature(step).parameters), None) == "model":
                stack.enter_context(patch.object(order, name, partial(wrapper, step)))
        yield


def _launch_wrapper(log, function):
    return lambda *positional, **named: log.run_launch(function, positional, named)


def _product_wrapper(log, function):
    def wrapper(*positional, **named):
        arguments = _by_name(function, positional, named)
        return log.run_part(function.__name__, arguments, lambda: function(*positional, **named))

    return wrapper


def _watch_kernels(log):
    """A context in which every launch of a Numba kernel from the host goes through the log."""
    if SIMULATING:
        from numba.cuda.simulator import kernel as simulated

        launch = simulated.FakeCUDAKernel.__call__

        def watched(self, *arguments):
            if self._device or simulated._kernel_context:  # a device function, called by a kernel
                return launch(self, *arguments)
            grid, block, shared = self.grid_dim, self.block_dim, self.dynshared_size

            def again():
                launch(self[grid, block, 0, shared], *arguments)

            return log.run_part(self.fn.__name__, _by_name(self.fn, arguments, {}), again)

        return patch.object(simulated.FakeCUDAKernel, "__call__", watched)

    from numba.cuda.dispatcher import _LaunchConfiguration

    start = _LaunchConfiguration.__call__

    def watched(self, *arguments):
        function = self.dispatcher.py_func
        return log.run_part(function.__name__, _by_name(function, arguments, {}), lambda: start(self, *arguments))

    return patch.object(_LaunchConfiguration, "__call__", watched)


def work_key(part):
    """A key, equal for parts that do the same work: the name, and the shapes, types and integers of the arguments."""

    def describe(value):
        if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape != ():
            return (*value.shape, str(value.dtype))
        return value if isinstance(value, (bool, int, tuple, type(None))) and not hasattr(value, "dtype") else "number"

    return (part.name, *((name, describe(value)) for name, value in part.arguments.items()))
