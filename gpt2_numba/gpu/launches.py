"""Lets an observer make every launch: of kernels, of library calls, and of layer functions on the host.

    def observer(name, arguments, launch):     # arguments: parameter -> value, the arrays among them as the kernel gets them
        ...
        launch()
        ...

    with observed_by(observer):
        model.forward(inputs)

Kernels are caught where Numba launches them, so none needs a line of its own, not even a user's. Functions that launch what Numba does not
see are decorated with `observable`. Without an observer, which is the rule, nothing is changed.
"""

import contextlib
import functools
import inspect
import os

from gpt2_numba.gpu.backend import SIMULATING

_observer = None  # of the launches to come; None while one of them is being made, so that what it calls is a part of it


@contextlib.contextmanager
def observed_by(observer):
    """A context in which `observer(name, arguments, launch)` is called instead of each launch of this process, and must call `launch()`."""
    global _observer
    _catch_kernels()
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def observable(function):
    """Decorate a function that launches something: an observer sees its calls under its name."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments, **named):
        if _observer is None:
            return function(*arguments, **named)
        return _observed(function.__name__, signature.bind(*arguments, **named).arguments, lambda: function(*arguments, **named))

    return call


def _observed(name, arguments, launch):
    global _observer
    observer, _observer = _observer, None
    try:
        return observer(name, arguments, launch)
    finally:
        _observer = observer


@functools.cache
def _catch_kernels():
    """Replace, for good, the method with which Numba launches a kernel."""
    if SIMULATING:
        from numba.cuda.simulator.kernel import FakeCUDAKernel as kernel_class

        method = "__call__"
    else:
        from numba.cuda.dispatcher import CUDADispatcher as kernel_class

        method = "call"
    launch_kernel = getattr(kernel_class, method)

    def launch(kernel, *details):
        """details: the kernel's arguments; on a GPU they are one tuple, and the launch configuration follows."""
        if _observer is None:
            return launch_kernel(kernel, *details)
        function = kernel.py_func
        arguments = details if SIMULATING else details[0]
        by_name = dict(zip(inspect.signature(function).parameters, arguments))
        return _observed(kernel_name(function), by_name, lambda: launch_kernel(kernel, *details))

    setattr(kernel_class, method, launch)


def kernel_name(function):
    """The name of a kernel and where it is: gelu_forward_kernel (gelu.py:58)."""
    return f"{function.__name__} ({os.path.basename(function.__code__.co_filename)}:{function.__code__.co_firstlineno})"
