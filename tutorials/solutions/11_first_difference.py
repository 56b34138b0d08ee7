"""Where do two recordings part?

`one` and `other` are recordings of two runs: lists of (name, array), in the order in which the arrays were computed. Both have the same
names, and arrays of the same shapes and types: float32, float64 or int32, of any number of dimensions. Return the first difference as (name,
index), where index is a tuple of plain ints, one for each dimension, of the first element that differs, in the order of memory (last index
fastest); or None, if all bits agree.

Compare bits, not numbers: NaN equals a NaN with the same bits, though NaN == NaN is False, and 0.0 differs from -0.0, though 0.0 == -0.0 is
True (divide by them). `array.view("u4")` shows four bytes each as an unsigned integer, "u8" eight; `array.itemsize` says how many bytes an
element has. All arrays are contiguous.

    python -m tutorials.check 11_first_difference
"""

import numpy as np


def first_difference(one, other):
    """one, other: lists of (name, array) -> (name, index), or None."""
    # your lines:
    for (name, a), (_, b) in zip(one, other):
        bits = f"u{a.itemsize}"
        places = np.flatnonzero(a.view(bits) != b.view(bits))
        if places.size:
            return name, tuple(int(i) for i in np.unravel_index(places[0], a.shape))
    return None
    # end of your lines
