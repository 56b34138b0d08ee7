"""Exercises that are layer functions of GPT-2: what the learner writes is what their own model calls.

    EXERCISE = layer_exercise(
        function="residual_forward",
        layers=("residual",),
        sizes=(ONES, ODD),
        least=Counts(global_reads=2, global_writes=1),
        hints={...},
        mistakes=(Mistake(lambda inp, **_: {"out": inp}, "The branch has been forgotten."),),
        wrong=(...),
    )

Arrays, expected values and error bounds come from gpt2_numba.layer_checks, as for the package's own kernels; the function has the name and
the parameters of the package's. A Mistake's `result` gets all arrays by name, as they were before the call (outputs hold NaN), in float64,
and the Sizes as `s`; it returns what the outputs hold after the mistake, accumulators included.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32
from gpt2_numba.kernel_sets import FUNCTIONS
from gpt2_numba.layer_checks import kernel_calls
from tutorials.check.exercise import Exercise, signature_of
from tutorials.check.failures import Failure
from tutorials.orders import shuffled

# The sizes that matter to each layer.
LETTERS = {
    "encoder": "B T C Vp", "layernorm": "N C", "matmul": "N C OC", "matmul without bias": "N C Vp", "attention": "B T C NH", "gelu": "N C",
    "residual": "N C", "classifier": "N V Vp", "mean loss": "N", "adamw": "C", "global norm": "Vp C",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerExercise(Exercise):
    """An exercise whose function is one of kernel_sets.FUNCTIONS. A size is a layer_checks.Sizes."""

    layers: tuple  # of layer_checks.LAYERS, those that call the function

    @property
    def parameters(self):
        return signature_of(FUNCTIONS[self.function])

    def calls(self, function, size):
        for layer in self.layers:
            yield from kernel_calls(layer, size, FLOAT32, SimpleNamespace(**{self.function: function}))

    def format_size(self, size):
        return ", ".join(f"{letter} = {getattr(size, letter)}" for letter in LETTERS[self.layers[0]].split())

    def mistaken(self, mistake, call, before, size):
        return mistake.result(**vars(before), s=size)


def layer_exercise(**fields):
    """A LayerExercise."""
    return LayerExercise(**fields)


def in_several_orders(call, output):
    """A Call that is launched with the threads in several orders, and fails if the bits of one of its arrays, by name, differ."""

    def launch(a):
        array, results = getattr(a, output), []
        before = array.copy_to_host()
        for seed in range(4):
            array.copy_to_device(before)
            with shuffled(seed):
                call.launch(a)
            results.append(array.copy_to_host())
            if (other := np.flatnonzero(results[0] != results[-1])).size:
                one, two = (float(result[other[0]]) for result in (results[0], results[-1]))
                raise Failure("race", f"{output}[{other[0]}] is {one:.9g} or {two:.9g}: it depends on which thread comes first")

    return replace(call, launch=launch)
