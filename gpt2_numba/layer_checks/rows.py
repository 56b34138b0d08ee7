"""The verdict on one tensor, compared element by element with its expected values, and the table of all verdicts."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, bfloat16_values
from gpt2_numba.layer_checks.tolerances import half_ulp


@dataclass(frozen=True)
class Row:
    """The verdict on one tensor. error, bound, got and expected are those of the worst element, where error / bound is largest."""

    layer: str
    tensor: str
    shape: tuple
    error: float
    bound: float
    index: tuple
    got: float
    expected: float
    problem: str = ""  # other than a wrong value, such as an overwritten guard cell

    @property
    def ok(self):
        return not self.problem and self.error <= self.bound

    def __str__(self):
        if self.problem:
            return f"{self.layer}: {self.tensor} {self.shape}: {self.problem}"
        return (
            f"{self.layer}: {self.tensor} {self.shape} at {self.index}: got {self.got:.9g}, expected {self.expected:.9g}, "
            f"error {self.error:.3g}, bound {self.bound:.3g}"
        )


def format_table(rows):
    """The rows as a table: layer, tensor, error and bound of the worst element, verdict. Below it, one line for each failure."""
    width = max([30, *(len(row.layer) for row in rows)])
    lines = [f"{'layer':<{width}}  {'tensor':<12}{'largest error':>14}{'bound':>12}"]
    for row in rows:
        lines.append(f"{row.layer:<{width}}  {row.tensor:<12}{row.error:14.2e}{row.bound:12.2e}  {'ok' if row.ok else 'FAILED'}")
    return "\n".join([*lines, *(f"FAILED {row}" for row in rows if not row.ok)])


def as_float(stored):
    """The values of an array as floats: bfloat16 bits are widened. Bytes are compared as numbers."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32)
    return bfloat16_values(stored) if stored.dtype == BFLOAT16_BITS else stored


def column_sums(stored):
    """The sums of the columns of a matrix as stored, in float64."""
    return as_float(stored).sum(axis=0, dtype=np.float64)


def compare(layer, tensor, got, expected, error_bound, storage=None):
    """Compare a tensor with its expected values. Returns a Row.

    got          floats, or the bits of bfloat16 as uint16
    expected     floats of the same shape
    error_bound  bound on the error of the arithmetic, broadcastable to the shape. 0 where there is no arithmetic: the bits must agree
    storage      the type that the result was rounded to, which adds half a unit in the last place where there is arithmetic
    """
    shape = expected.shape
    as_rows = (math.prod(shape[:-1]), shape[-1])
    bounds = np.broadcast_to(error_bound, shape)
    got, expected, bounds = got.reshape(as_rows), expected.reshape(as_rows), bounds.reshape(as_rows)
    step = max(1, (1 << 18) // as_rows[1])

    def worst_element(start):
        rows = slice(start, start + step)
        values = as_float(got[rows])
        error = np.abs(values - expected[rows])
        error[~np.isfinite(error)] = np.inf
        bound = bounds[rows]
        if storage is not None:
            bound = np.where(bound > 0, bound + half_ulp(np.abs(expected[rows]) + bound, storage), 0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            share = np.where(error == 0, 0, error / bound)
        at = np.unravel_index(np.argmax(share), share.shape)
        return share[at], error[at], bound[at], (start + int(at[0])) * as_rows[1] + int(at[1]), values[at], expected[rows][at]

    with ThreadPoolExecutor() as pool:  # NumPy lets other threads run while it computes
        worst = max(pool.map(worst_element, range(0, as_rows[0], step)), key=lambda one: one[0])
    _, error, bound, flat_index, got, expected = worst
    index = tuple(int(i) for i in np.unravel_index(flat_index, shape))
    return Row(layer, tensor, shape, float(error), float(bound), index, float(got), float(expected))
