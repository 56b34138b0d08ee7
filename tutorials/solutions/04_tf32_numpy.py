"""Rounding to TF32, as the hardware does it: on the bits.

A float32 has 1 bit of sign, 8 of exponent and 23 of mantissa, in this order, the sign first. A TF32 is a float32 whose last 13 bits are 0.
`values` is a float32 array of any shape, only read [r]. Return a float32 array of the same shape with each value rounded to the nearest
TF32; in the middle between two, to the one that is farther from 0. Infinity stays infinity, and NaN stays NaN. `values.view(np.uint32)`
gives the bits as unsigned integers, and `bits.view(np.float32)` leads back. Numbers of the same sign are in the same order as their bits,
read as integers: so to round is to add half of a step, and to cut off what is below a step. No loop is needed. (The check appends ten
special values to N random ones: ties, the largest float32, infinities, a NaN all of whose bits but the sign are 1.)

    python -m tutorials.check 04_tf32_numpy
"""

import numpy as np

UNUSED = np.uint32(0x1FFF)  # the last 13 bits are 1


def round_to_tf32(values):
    """values float32 -> float32, the same shape."""
    # your lines:
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & ~UNUSED
    return np.where(np.isnan(values), values, rounded.view(np.float32))
    # end of your lines
