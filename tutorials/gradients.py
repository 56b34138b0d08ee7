"""Is a gradient right? Chapter 01 derives this function; the chapters after it import it."""

import numpy as np


def check_gradient(name, loss, inp, dinp, most=50, step=1e-5):
    """Compare dinp, at `most` places, with finite differences of loss(), a function that uses inp (float64)."""
    assert dinp.shape == inp.shape, f"d{name} is {dinp.shape}, but {name} is {inp.shape}"
    assert inp.dtype == np.float64, f"{name} is {inp.dtype}: too few digits"
    for place in np.random.default_rng(0).permutation(inp.size)[:most]:
        index = np.unravel_index(place, inp.shape)
        kept = inp[index]
        inp[index] = kept + step
        above = loss()
        inp[index] = kept - step
        below = loss()
        inp[index] = kept
        expected = (above - below) / (2 * step)
        found = f"d{name}[{', '.join(map(str, index))}] is {dinp[index]:.6f}"
        assert abs(dinp[index] - expected) < 1e-7, f"{found}, finite differences say {expected:.6f}"
    print(f"d{name} {inp.shape}: right")
