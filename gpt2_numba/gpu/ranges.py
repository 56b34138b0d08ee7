"""Ranges: where the parameters that one process updates lie in larger arrays.

With ZeRO a process updates only a part of each matrix. The parts are consecutive in the process's own arrays, called local, and far apart
in the arrays of all parameters. A table of ranges, in ascending order, maps a local position to its global ones:

    | column      | meaning                                                                                 |
    | ----------- | --------------------------------------------------------------------------------------- |
    | START       | where the range begins in local arrays; it ends where the next begins                   |
    | IN_PARAMS   | where it begins in the array of all parameters                                          |
    | IN_GRADS    | where it begins in the array of the gradients                                           |
    | DECAYS      | 1 if weight decay applies to it, else 0                                                 |

For n ranges the table is int64 (n + 1, 4); the last row only marks the end of the last range. All positions are multiples of 8, so that
a 16-byte load lies in one range. A process that updates everything has ranges, too, in which all three positions are the same.
"""

from numba import cuda

START, IN_PARAMS, IN_GRADS, DECAYS = range(4)


@cuda.jit(device=True)
def find_range(ranges, i):
    """Index of the range that contains the local position i: the last that begins at or before it, by bisection."""
    low, high = 0, ranges.shape[0] - 1
    while high - low > 1:
        middle = (low + high) // 2
        if ranges[middle, START] <= i:
            low = middle
        else:
            high = middle
    return low
