"""How many steps apart are two numbers?

From each float32 there is a next larger one. The distance of two numbers in *units in the last place* (ulp) is the number of such steps from
one to the other: 0 if they are equal, 1 if they are neighbours. `a` and `b` are float32 arrays of the same shape, without NaN, only read
[r]. Return an int64 array of that shape with the distances, all of them >= 0. 0.0 and -0.0 are equal: their distance is 0. Infinity comes
one step after the largest finite number.

Read as an integer, `a.view(np.int32)`, the bits of the positive numbers are in the numbers' own order: a step is 1. A negative number has
the bits of its absolute value, and the first bit, the sign, is 1; so its integer is negative, and -0.0 has the lowest one, -2**31. Number
all float32 in their order, with 0 for both zeros; the distance is then a subtraction. No loop is needed.

The first elements are the same in every case, so that you can look up what goes wrong:

    0, 1    1 and its neighbours, above and below                       1 each
    2       0.0, -0.0                                                   0
    3       the smallest positive number and the largest negative one   2
    4       -0.0, the smallest positive number                          1
    5       the largest finite number, infinity                         1
    6       -1, 1                                                       2,130,706,432
    7       -2.5, -2.25                                                 1,048,576
    8       -infinity, infinity                                         4,278,190,080

    python -m tutorials.check 11_ulp
"""

import numpy as np


def ulp_distance(a, b):
    """a, b: float32, the same shape -> int64, the distances in units in the last place."""
    # your lines:
    # end of your lines
