"""Statistics of all that a step computes, and the first number in it that is not finite.

Parameters' gradients are those of the whole step, before clipping. Everything else is computed once in each micro-batch, and the statistics
are of all of them together. So are the gradients of activations, which are on the scale of the step: of the mean loss over all its tokens.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING, copy_to_host, on_host
from gpt2_numba.gpu.tensor_statistics import BLOCKS, RESULTS, combine, tensor_statistics
from gpt2_numba.replaying.watching import ACCUMULATED, WRITES, TensorNames
from gpt2_numba.training.not_finite import first_in

_KINDS = {True: "gradients", False: "activations"}


class Tensor(NamedTuple):
    """Which tensor: its name, d... for a gradient, and its block or None."""

    name: str
    block: int | None

    def __str__(self):
        return self.name if self.block is None else f"{self.name} of block {self.block}"

    @property
    def kind(self):
        return _KINDS[self.name.startswith("d")]


class Numbers(NamedTuple):
    """What a tensor's numbers look like. largest |x| and root mean square of those that are finite; shares of zeros, of not finite."""

    largest: float
    rms: float
    zeros: float
    not_finite: float


class StepStatistics:
    """Watches a step (watching.py): call begin_micro_batch before each forward pass.

    found        Tensor -> Numbers, in the order of computation (valid after `finish`)
    not_finite   text about the first number that is not finite, or None; `born` is its Tensor
    """

    def __init__(self, model):
        self._model, self._sums, self._names = model, {}, None
        self._partials = None
        self.not_finite = self.born = None

    def begin_micro_batch(self, inputs, targets):
        self._names, self._seen = TensorNames(self._model, inputs.shape), set()

    def __call__(self, function, compute, arguments):
        compute(**arguments)
        if function in ("residual_backward", "accumulate_mean"):  # copies, and the mean that the step reports anyway
            return
        for parameter, name, block in self._names.written(function, arguments):
            tensor, array = Tensor(name, block), arguments[parameter]
            is_sum = parameter in ACCUMULATED
            if tensor in self._seen and not is_sum:
                continue  # recomputed by backward
            self._seen.add(tensor)
            row = self._examine(tensor, array)
            together = row if is_sum or tensor not in self._sums else combine([self._sums[tensor], row])
            self._sums[tensor] = together
            if row[RESULTS.index("not_finite")] and self.not_finite is None:
                self._explain(function, tensor, array, arguments)

    def _examine(self, tensor, array):
        """[largest, squares, zeros, not finite, count] of an array; the vocabulary's padding is left out."""
        config, flat = self._model.config, array.reshape((math.prod(array.shape),))
        padding = 0
        if tensor.name == "dwte":
            flat = flat[: config.V * config.C]
        elif tensor.name in ("logits", "dlogits"):  # exactly zero
            padding = array.shape[0] * (config.Vp - config.V)
        if on_host(flat) or SIMULATING:
            row = np.zeros((1, len(RESULTS)))
            tensor_statistics(row, flat if on_host(flat) else copy_to_host(flat))
        else:
            if self._partials is None:
                self._partials = cuda.device_array((BLOCKS, len(RESULTS)), np.float32)
            tensor_statistics(self._partials, flat)
            row = copy_to_host(self._partials)
        largest, squares, zeros, not_finite = combine(row)
        return np.array([largest, squares, max(0.0, zeros - padding), not_finite, flat.shape[0] - padding])

    def _explain(self, function, tensor, array, arguments):
        """Say where the first number that is not finite is, and whether the layer has got it or made it."""
        self.born, (at, value) = tensor, first_in(array)
        bad, sizes = [], []
        for parameter, argument in arguments.items():
            known = self._names.of(argument)
            if known is None or parameter in WRITES[function] or argument.dtype.kind == "i":
                continue
            numbers, found = self._examine(Tensor(*known), argument), first_in(argument)
            sizes.append(f"{Tensor(*known)} up to {numbers[0]:.3g}")
            bad += [f"{Tensor(*known)} has {found[1]} at {_index(found[0], argument.shape)}"] if found else []
        source = "; ".join(bad) if bad else f"from finite numbers{': ' * bool(sizes)}{', '.join(sizes)}"
        self.not_finite = f"the first number that is not finite: {value} in {tensor} at {_index(at, array.shape)}, by {function}, {source}"

    def finish(self):
        """Call at the end of the step. Returns `found`."""
        self.found = {}
        for tensor, (largest, squares, zeros, not_finite, count) in self._sums.items():
            finite = count - not_finite
            rms = math.sqrt(squares / finite) if finite else 0.0
            self.found[tensor] = Numbers(float(largest), rms, float(zeros / count), float(not_finite / count))
        return self.found


def _index(at, shape):
    return f"[{', '.join(str(int(i)) for i in np.unravel_index(at, shape))}]"


def by_layer(found):
    """The statistics as run.jsonl has them: {"gradients" or "activations": {name: {statistic: [a value for each layer]}}}.

    Parameters' gradients have the names of their parameters there.
    """
    result = {}
    for tensor, numbers in sorted(found.items(), key=lambda item: item[0].block or 0):
        names = result.setdefault(tensor.kind, {})
        for name in {tensor.name, tensor.name[1:] if tensor.kind == "gradients" else tensor.name}:
            for statistic, value in numbers._asdict().items():
                names.setdefault(name, {}).setdefault(statistic, []).append(value)
    return result
