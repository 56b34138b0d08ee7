"""Check the backward of a NumPy reference against central differences of its forward, in float64."""

import numpy as np

from gpt2_numba.layer_checks.rows import compare

STEP = 2.0**-16  # truncation and rounding errors of the central differences are about equal here, some 1e-9


def central_differences(objective, array):
    """d objective() / d array, element by element. The array is perturbed in place and restored."""
    gradient, flat = np.empty(array.size), array.reshape(-1)
    for i in range(flat.size):
        kept = flat[i]
        flat[i] = kept + STEP
        above = objective()
        flat[i] = kept - STEP
        gradient[i] = (above - objective()) / (2 * STEP)
        flat[i] = kept
    return gradient.reshape(array.shape)


def difference_error(objective_size, gradient_size):
    """Bound on the error of a central difference in float64: rounding of the objective over the step, plus a multiple of the step squared.

    The magnitudes of the objective's terms add up to objective_size: its rounding error is some 2^-53 of that. The third derivative is
    taken to be at most 32 times the largest gradient: the functions here are smooth on the scale of 1.
    """
    return 4 * 2.0**-53 * objective_size / STEP + 32 * STEP**2 * gradient_size


def check_gradients(layer, forward, out, dout, gradients, extra=0.0):
    """Return Rows for `gradients`: name -> (input array, accumulator before backward (0 if overwritten), accumulator after).

    forward() fills `out` from the input arrays; the objective is Σ out * dout. extra: a further relative error to allow.
    """

    def objective():
        forward()
        return float(np.vdot(out, dout))

    forward()
    size = float(np.abs(out * dout).sum())
    for name, (array, before, after) in gradients.items():
        expected = before + central_differences(objective, array)
        largest = np.abs(expected - before).max()
        yield compare(layer, name, after, expected, difference_error(size, largest) + extra * largest)
