"""Makes a call on the device, with traps, and on the host with the reference.

Every array lies between guard cells, which hold NaN, so that a kernel that reads past an end is caught, and must not change. Outputs hold
NaN before the call. Inputs must not change. The call is made twice and must produce the same bits.
"""

import math
from types import SimpleNamespace

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import BFLOAT16_BITS, bfloat16_bits, compute_stream, synchronize, to_storage
from gpt2_numba.layer_checks.calls import INTEGERS
from gpt2_numba.layer_checks.rows import Row, as_float, compare

GUARD = 128  # cells on either side of every device array: at least 256 bytes, so that arrays are aligned as cudaMalloc aligns them


class GuardedArray:
    """A device array between guard cells."""

    def __init__(self, tensor, storage):
        self.tensor, self.size = tensor, math.prod(tensor.shape)
        dtype = tensor.dtype(storage)
        fill = 0 if tensor.kind in INTEGERS else bfloat16_bits(np.nan) if dtype == BFLOAT16_BITS else np.nan
        self.before = np.full(self.size + 2 * GUARD, fill, dtype)
        if tensor.values is not None:
            self.before[GUARD:-GUARD] = to_storage(tensor.values, dtype).reshape(-1)
        self.memory = cuda.device_array(self.before.shape, dtype)
        self.array = self.memory[GUARD : GUARD + self.size].reshape(tensor.shape)
        self.fill()

    def fill(self):
        """Restore the contents before the call."""
        self.memory.copy_to_device(self.before, stream=compute_stream())

    def fetch(self):
        """All cells, guards included, as stored."""
        stored = self.memory.copy_to_host(stream=compute_stream())
        synchronize()
        return stored

    def problem(self, stored):
        """Describe a change that must not happen, "" if there is none."""
        untouched = np.ones(stored.size, bool)
        untouched[GUARD:-GUARD] = self.tensor.access == "r"
        bits = f"u{stored.dtype.itemsize}"
        differs = np.flatnonzero((stored.view(bits) != self.before.view(bits)) & untouched)
        if not differs.size:
            return ""
        position, value = int(differs[0]) - GUARD, as_float(stored[differs[:1]])[0]
        if not 0 <= position < self.size:
            return f"guard cell at {position} of {self.size} elements has been overwritten with {value:.9g}"
        index = tuple(int(i) for i in np.unravel_index(position, self.tensor.shape))
        return f"is an input, but at {index} has been overwritten with {value:.9g}"


def run_on_device(call, storage):
    """Make a call on the device, twice. Returns name -> stored values of the tensors to compare, and Rows for what went wrong."""
    arrays = {name: GuardedArray(tensor, storage) for name, tensor in call.tensors.items()}
    views = SimpleNamespace(**{name: guarded.array for name, guarded in arrays.items()})
    call.launch(views)
    results, rows = {}, []

    def report(name, problem):
        rows.append(Row(call.name, name, call.tensors[name].shape, math.inf, 0.0, (), math.nan, math.nan, problem))

    for name, guarded in arrays.items():
        stored = guarded.fetch()
        if problem := guarded.problem(stored):
            report(name, problem)
        if guarded.tensor.access == "w":
            results[name] = stored[GUARD:-GUARD].reshape(guarded.tensor.shape)
        if guarded.tensor.access != "r":
            guarded.fill()
    call.launch(views)
    for name, first in results.items():
        second = arrays[name].fetch()[GUARD:-GUARD].reshape(first.shape)
        bits = f"u{first.dtype.itemsize}"
        differs = first.view(bits) != second.view(bits)
        if differs.any():
            index = tuple(int(i) for i in np.unravel_index(np.argmax(differs), first.shape))
            one, other = as_float(first[index][None])[0], as_float(second[index][None])[0]
            report(name, f"at {index} the first run gave {one:.9g}, the second {other:.9g}: results must be bit-identical")
    return results, rows


def run_on_host(call, storage):
    """Make a call with the reference in float64, on the values that the device gets. Returns namespaces: after, before."""
    before, after = SimpleNamespace(), SimpleNamespace()
    for name, tensor in call.tensors.items():
        values = None
        if tensor.access != "scratch":
            values = np.full(tensor.shape, np.nan)
            if tensor.values is not None:
                values = as_float(to_storage(tensor.values, tensor.dtype(storage)))
                values = values if tensor.kind in INTEGERS else values.astype(np.float64)
        setattr(before, name, values)
        setattr(after, name, values.copy() if tensor.access == "w" else values)
    (call.reference or call.launch)(after)
    return after, before


def check_call(call, storage):
    """Check the device against the reference. Returns a list of Rows: one for each tensor compared, more if anything else went wrong."""
    results, rows = run_on_device(call, storage)
    after, before = run_on_host(call, storage)
    if call.from_stored is not None:
        call.from_stored(after, before, results)
    errors = call.errors(after, before, storage)
    compared = []
    for name, got in results.items():
        expected, bound, dtype = getattr(after, name), errors.get(name, 0.0), call.tensors[name].dtype(storage)
        if name not in errors:  # a copy or one addition, determined by IEEE 754: float64 rounded once has the same bits
            expected = as_float(to_storage(expected.astype(np.float32), dtype))
        compared.append(compare(call.name, name, got, expected, bound, dtype))
    return compared + rows
