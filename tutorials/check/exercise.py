"""The description of an exercise: what the learner's function must do, and what helps someone who is stuck.

    EXERCISE = Exercise(
        function="double",
        arrays=lambda random, N: {"out": written(N), "inp": read(random.standard_normal(N))},
        reference=lambda inp: {"out": 2 * inp},
        sizes=({"N": 1}, {"N": 33}),
        ...
    )

One file of check/exercises/chapter_NN/ describes one exercise; `exercises.find` gives it its name, NN_FILE. There are three sorts: the
function launches a kernel of the exercise's own (Exercise), it is one of GPT-2's layer functions (layer_exercises.py), or it runs no kernel
at all (host_exercises.py).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, written
from tutorials.check.counting import Counts

__all__ = ["Counts", "Exercise", "Mistake", "Task", "Wrong", "accumulated", "read", "written"]

SEED = 14  # of the inputs


def accumulated(*shape):
    """An array that is accumulated into: ones before the call, to which the reference's result is added."""
    return changed(np.ones(shape, np.float32))


@dataclass(frozen=True)
class Mistake:
    """A usual wrong answer that computes something else: whoever's output is `result` is shown `hint`."""

    result: Callable  # as Exercise.reference; a layer exercise's and a host exercise's get all arguments, as they were before the call
    hint: str


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that the check must refuse, for the tests: the solution with some of its text replaced."""

    what: str  # is wrong, in words
    changes: dict  # text of the solution -> what stands there instead
    kind: str  # of the failure, one of failures.KINDS
    hint: str = ""  # a part of the hint that is shown first


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every exercise has."""

    function: str  # the name that the learner's file defines
    sizes: tuple  # one for each time that the function is called
    hints: dict  # kind of failure -> hints, one a failure, the first one first; "" -> those for every other kind, and after these
    mistakes: tuple = ()  # Mistakes, tried when an element is wrong
    wrong: tuple = ()  # Wrong answers, for the tests
    float64_refused: bool = True  # False: only noted, in exercises that come before 00_float32
    name: str = field(default="", compare=False)

    def format_size(self, size):
        """{"N": 3, "C": 5} -> N = 3, C = 5."""
        return ", ".join(f"{name} = {value}" for name, value in size.items())


@dataclass(frozen=True, kw_only=True)
class Exercise(Task):
    """An exercise whose function launches kernels. A size is a dict of keyword arguments such as {"N": 33}."""

    arrays: Callable | None = None  # (random, **size) -> {parameter: read(values), written(*shape) or accumulated(*shape)}, in their order
    reference: Callable | None = None  # (**inputs in float64) -> {output: values in float64}
    error: Callable | None = None  # (**inputs) -> bound on the rounding error of each output element. None: the bits must agree
    least: Counts  # the least possible accesses of the busiest thread, at the last size
    taken: Counts | None = None  # those of the solution, where it is made to be read and takes more
    least_transactions: int | None = None  # of 32 bytes, that all warps need at the last size; half as many again is refused
    most: Counts | None = None  # accesses of the busiest thread, at the last size; more is refused: one thread does the work of many
    most_barriers: int | None = None  # that a thread may pass, at the last size; more is refused
    threads: tuple = ()  # of a block, if the exercise demands it, such as (32, 1, 1)
    local_refused: bool = False  # True: what a thread keeps must be in registers; a cuda.local.array in memory is refused
    drawn: tuple = ()  # the arrays of which a pass shows who touches what

    @property
    def parameters(self):
        """The names of the function's parameters."""
        return tuple(self.arrays(np.random.default_rng(0), **self.sizes[0]))

    def calls(self, function, size):
        """The Calls of the learner's function at one size. Its accesses are counted in the first of them."""
        tensors = self.arrays(np.random.default_rng(SEED), **size)

        def reference(a):
            for name, values in self.reference(**self._inputs(tensors, a)).items():
                accumulates = tensors[name].values is not None
                setattr(a, name, values + getattr(a, name) if accumulates else np.reshape(values, tensors[name].shape))

        def errors(after, before, storage):
            return self.error(**self._inputs(tensors, before)) if self.error else {}

        yield Call(self.function, self.function, tensors, lambda a: function(*vars(a).values()), errors, reference)

    def mistaken(self, mistake, call, before, size):
        """{output: values} of a usual mistake. before: the arguments before the call, as a namespace."""
        return mistake.result(**self._inputs(call.tensors, before))

    @staticmethod
    def _inputs(tensors, arguments):
        """The inputs of a call in float64."""
        return {name: getattr(arguments, name) for name, tensor in tensors.items() if tensor.access == "r"}


def signature_of(function):
    """The names of a function's parameters."""
    return tuple(inspect.signature(function).parameters)
