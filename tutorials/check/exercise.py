"""The description of an exercise: what the learner's function must do, and what helps someone who is stuck.

    EXERCISE = Exercise(
        function="double",
        arrays=lambda random, N: {"out": written(N), "inp": read(random.standard_normal(N))},
        reference=lambda inp: {"out": 2 * inp},
        sizes=({"N": 1}, {"N": 33}),
        ...
    )

One file of check/exercises/chapter_NN/ describes one exercise; `exercises.find` gives it its name, NN_FILE.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gpt2_numba.layer_checks.calls import changed, read, written
from tutorials.check.counting import Counts

__all__ = ["Counts", "Exercise", "Mistake", "Wrong", "accumulated", "read", "written"]


def accumulated(*shape):
    """An array that is accumulated into: ones before the call, to which the reference's result is added."""
    return changed(np.ones(shape, np.float32))


@dataclass(frozen=True)
class Mistake:
    """A usual wrong answer that computes something else: whoever's output is `result` is shown `hint`."""

    result: Callable  # as Exercise.reference
    hint: str


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that the check must refuse, for the tests: the solution with some of its text replaced."""

    what: str  # is wrong, in words
    changes: dict  # text of the solution -> what stands there instead
    kind: str  # of the failure, one of failures.KINDS
    hint: str = ""  # a part of the hint that is shown first


@dataclass(frozen=True)
class Exercise:
    """What an exercise asks for. `size` are keyword arguments such as N=33, one set for each time that the function is called."""

    function: str  # the name that the learner's file defines; its parameters are the keys of `arrays`, in that order
    arrays: Callable  # (random, **size) -> {parameter: read(values), written(*shape) or accumulated(*shape)}, float32
    reference: Callable  # (**inputs in float64) -> {output: values in float64}
    sizes: tuple  # of dicts. Accesses are counted and drawn at the last one
    hints: dict  # kind of failure -> hints, one a failure, the first one first; "" -> those for every other kind, and after these
    least: Counts  # the least possible accesses of the busiest thread, at the last size
    error: Callable | None = None  # (**inputs) -> bound on the rounding error of each output element. None: the bits must agree
    mistakes: tuple = ()  # Mistakes, tried when an element is wrong
    wrong: tuple = ()  # Wrong answers, for the tests
    least_transactions: int | None = None  # of 32 bytes, that all warps need at the last size; half as many again is refused
    most_barriers: int | None = None  # that a thread may pass, at the last size; more is refused
    float64_refused: bool = True  # False: only noted, in exercises that come before 00_float32
    drawn: tuple = ()  # the arrays of which a pass shows who touches what
    name: str = field(default="", compare=False)

    @property
    def parameters(self):
        """The names of the function's parameters."""
        return tuple(self.arrays(np.random.default_rng(0), **self.sizes[0]))

    def inputs(self, tensors):
        """The inputs of a call in float64, for the reference."""
        return {name: tensor.values.astype(np.float32).astype(np.float64) for name, tensor in tensors.items() if tensor.access == "r"}
