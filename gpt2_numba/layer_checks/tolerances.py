"""How far off a correct result may be. Bounds are derived, not chosen: from the type, the length of a sum and the size of its terms.

This file has what several layers need; what is specific to a layer is in the layer's own file.
"""

import math

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32
from gpt2_numba.gpu.gemm import tf32_allowed

UNIT = 2.0**-24  # largest relative error of one rounding to float32
UNIT_TF32 = 2.0**-11  # the same for TF32
SMALLEST = 2.0**-126  # smallest normal float32; below it exp may return 0
ROOT_OF_SMALLEST = 2.0**-63  # below this, squares underflow in float32, in which the bounds are computed
SPREAD = 6.0


def half_ulp(values, storage):
    """Half the distance between neighbouring values of the storage type at `values`: the most that rounding to nearest changes.

    A float32 between 2^e and 2^(e+1) is a multiple of 2^(e-23), a bfloat16 one of 2^(e-7).
    """
    powers = (np.abs(values).astype(np.float32).view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    return powers * np.float32(2.0**-8 if storage == BFLOAT16_BITS else 2.0**-24)


def summation_error(additions, largest_partial_sum):
    """Bound on the error of float32 sums: SPREAD * sqrt(additions) * 2^-24 * largest_partial_sum.

    Each addition rounds by at most 2^-24 of the partial sum at that point. The rounding errors are nearly independent, so their sum grows
    with the square root of their count (Higham, Mary 2019, "A new approach to probabilistic rounding error analysis"). `additions` is the
    longest chain of additions that a term passes through. The largest partial sum is the total if all terms have the same sign, and about
    the root of the sum of squares for terms of random sign, as here. An error is uniformly distributed within its bound, so its standard
    deviation is 0.58 of the bound: a SPREAD of 6 is 10 standard deviations, enough for hundreds of millions of elements and for partial
    sums that wander.
    """
    return SPREAD * math.sqrt(additions) * UNIT * largest_partial_sum


def product_error(K, root_sum_squares, storage):
    """Bound on the error of one element of a matrix product, a sum of K products whose squares sum to root_sum_squares².

    A tensor core (bfloat16) adds 16 products in one step and truncates instead of rounding: an error of at most 2^-23, always in one
    direction, so these errors add up linearly (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"). In TF32 it adds 8, and both
    factors of each product are rounded first, by at most 2^-11; the errors of different products are independent.
    """
    error = summation_error(K + 1, root_sum_squares)
    if in_tf32(storage):
        error = error + (SPREAD * math.sqrt(2) * UNIT_TF32 + K / 8 * 2 * UNIT) * root_sum_squares
    if storage == BFLOAT16_BITS:
        error = error + K / 16 * 2 * UNIT * root_sum_squares
    return error


def in_tf32(storage):
    """Whether the factors of products are rounded to TF32: for float32, in a check that allows it."""
    return storage == FLOAT32 and tf32_allowed()


def typical_product(a, b, K):
    """||a|| ||b|| / sqrt(K): the root of the sum of K squared products of unrelated factors. a, b: the lengths of the two vectors."""
    return a * b / np.float32(math.sqrt(K))
