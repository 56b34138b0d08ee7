"""Each layer through both sets of kernels, on the same input: the table names the layer that is wrong, and none of those that follow it.

The model goes forward and backward as it always does. At each call of a layer function its arguments are copied to the host, the call is
made, and the other set computes the same from the copies. No second model is needed: two versions of one layer exist at a time, and what
the layers share (scratch, one array for all recomputed LayerNorms) may be written over as soon as the next begins.

`accumulated` goes further: the other set also gets its own earlier results, so that the difference grows from layer to layer as it does in
a training. Those results are kept on the host: about as much memory as the activations.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32, compute_stream, copy_to_host, on_host, synchronize, to_storage
from gpt2_numba.layer_checks.rows import Row, as_float, compare
from gpt2_numba.layer_checks.tolerances import half_ulp
from gpt2_numba.replaying.bounds import bounds
from gpt2_numba.replaying.calls import add_column_sums, compute, parts_of
from gpt2_numba.replaying.other_kernels import OnHost, as_namespace, side_of
from gpt2_numba.replaying.statistics import Tensor
from gpt2_numba.replaying.watching import WRITES, TensorNames, adds_to, watched

_EXACT = OnHost()
UNDERFLOW = 2.0**-110  # what is lost where tens of thousands of terms are too small for a float32
_NOT_COPIED = ("scratch", "places", "pieces", "T")


class Compared(NamedTuple):
    """The verdict on a tensor that a call has written. accumulated: relative difference of the two walks; None if there is one walk."""

    tensor: Tensor
    function: str
    row: Row
    accumulated: float | None

    @property
    def share(self):
        """The worst element's error, as a share of its bound."""
        row = self.row
        return 0.0 if row.error == 0 else np.inf if row.problem or not row.bound > 0 else row.error / row.bound


class Comparison:
    """Watches a forward and a backward pass (watching.py). found: [Compared] in the order of computation."""

    def __init__(self, model, inputs, other, accumulated=False):
        """inputs: (b, t) int32. other: from open_other."""
        self._mine, self._other, self._inputs = side_of(model), other, inputs
        self._names, self._seen, self.found = TensorNames(model, inputs.shape), set(), []
        self._own_path = {} if accumulated and other.own is None else None  # id(array) -> the other set's value of it

    def __call__(self, function, perform, arguments):
        own = self._other.own
        compared = [part for part in parts_of(function, arguments) if own is None or part in own]
        written = self._names.written(function, arguments)
        if not compared:
            perform(**arguments)
            return
        before = self._on_host(arguments)
        perform(**arguments)
        stored = {name: _stored(arguments[name]) for name in WRITES[function] if arguments.get(name) is not None}
        by_other = self._by(self._other, function, before, stored)
        if own is None:
            results, sides = (stored, by_other, before), (self._mine, self._other)
        else:  # a reader's function is compared with the reference, which is more exact than the run's kernel
            got = {name: getattr(by_other, name).astype(np.float32) for name in stored}
            results, sides = (got, self._by(_EXACT, function, before, stored), before), (self._other, _EXACT)
        apart = self._walk_on(function, arguments, before, stored)
        for parameter, tensor, row in self._verdicts(function, written, results, sides):
            if own is not None or function != "residual_backward" or not row.ok:  # a copy need not be listed
                self.found.append(Compared(tensor, function if own is None else compared[-1], row, apart.get(parameter)))

    def _on_host(self, arguments):
        """The arguments by name, as float64 or integers on the host."""
        values = {name: _value(argument) for name, argument in arguments.items() if name not in _NOT_COPIED}
        if "places" in arguments:
            values["tokens"] = np.ascontiguousarray(self._inputs)
        return values

    def _by(self, side, function, before, stored):
        """A namespace of what a Side makes of the arguments. Column sums are those of what the model has stored."""
        after = _copies(function, before, stored)
        compute(function, after, side, self._mine.storage)
        add_column_sums(function, after, before, stored)
        return after

    def _verdicts(self, function, written, results, sides):
        """Yield (parameter, Tensor, Row) for each tensor written. results: what is judged, what is expected, what was there before."""
        got, expected, before = results
        after, before = as_namespace(vars(expected)), as_namespace(before)
        limits = {}
        for side in sides:
            with side.arithmetic():
                for name, bound in bounds(function, after, before, side).items():
                    limits[name] = limits.get(name, 0) + bound
        for name, tensor_name, block in written:
            tensor = Tensor(tensor_name, block)
            if tensor in self._seen:
                continue  # computed again by backward
            if tensor.kind == "activations":
                self._seen.add(tensor)
            wanted, bound, dtype = getattr(after, name), limits.get(name), got[name].dtype
            if bound is None:
                wanted, bound = as_float(to_storage(wanted.astype(np.float32), dtype)), 0.0
            else:
                other = sides[1].storage if dtype != FLOAT32 else FLOAT32  # its results are rounded, too
                rounding = 0.0 if sides[1].storage is None else half_ulp(np.abs(wanted) + bound, other)
                bound = np.where(np.broadcast_to(bound, wanted.shape) > 0, bound + rounding + UNDERFLOW, 0)
            yield name, tensor, compare(function, str(tensor), got[name], np.asarray(wanted, np.float64), bound, storage=dtype)

    def _walk_on(self, function, arguments, before, stored):
        """The other set's own walk: {parameter: relative difference from the model's}; empty without."""
        if self._own_path is None:
            return {}
        mine = {name: self._own_value(name, argument, before) for name, argument in arguments.items() if name in before} | {
            name: value for name, value in before.items() if name not in arguments
        }
        after = _copies(function, mine, stored)
        compute(function, after, self._other)
        add_column_sums(function, after, mine, vars(after))
        differences = {}
        for name, values in stored.items():
            theirs = getattr(after, name)
            self._own_path[id(arguments[name])] = theirs.astype(np.float32) if self._other.storage is not None else theirs
            largest = np.abs(theirs).max(initial=0)
            difference = np.abs(as_float(values) - theirs).max(initial=0)
            differences[name] = float(difference / largest) if largest else float(difference > 0)
        return differences

    def _own_value(self, name, argument, before):
        """The other set's value of an argument. An array that has been set to zero is zero in both walks."""
        kept, value = self._own_path.get(id(argument)), before[name]
        if kept is None or not isinstance(value, np.ndarray) or not value.any():
            return value
        return kept.astype(np.float64)


def compare_walks(model, batch, other, parts, accumulated=False):
    """Walk forward and backward through a batch. Returns [Compared]. The model's gradients are overwritten.

    batch  (inputs, targets), each (b, t) int32        parts  of how many such batches the step's gradient is the mean
    """
    inputs, targets = batch
    model.zero_grad()
    comparison = Comparison(model, inputs, other, accumulated)
    with watched(model, comparison):
        model.forward(inputs)
        model.backward(targets, parts, last=True)
    model.discard_losses()
    return comparison.found


def _value(argument):
    if argument is None or not hasattr(argument, "dtype"):
        return argument
    values = argument.copy() if on_host(argument) else copy_to_host(argument)
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def _stored(array):
    """An array's contents on the host, bfloat16 as its bits."""
    if on_host(array):
        return array.copy()
    stored = array.copy_to_host(stream=compute_stream())
    synchronize()
    return stored


def _copies(function, values, stored):
    """A namespace of the arguments of a call. What it writes has an array of its own, which holds NaN unless it is added to or changed."""
    fresh = {name for name in stored if not adds_to(function, name)}
    copies = {name: np.full_like(value, np.nan) if name in fresh else value.copy() for name, value in values.items() if name in stored}
    return SimpleNamespace(**values | copies)
