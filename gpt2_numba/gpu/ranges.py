"""Ranges: where the numbers that one process updates lie in larger arrays.

With ZeRO a process updates a part of each matrix only. The parts lie one after the other in the process's own arrays, which are called local,
and far from each other in the arrays of all parameters. A table of ranges, ascending, tells a kernel the second place from the first:

    | column      | meaning                                                                                 |
    | ----------- | --------------------------------------------------------------------------------------- |
    | START       | where the range begins in local arrays; it ends where the next begins                   |
    | IN_PARAMS   | where it begins in the array of the parameters                                          |
    | IN_GRADS    | where it begins in the array of the gradients                                           |
    | DECAYS      | 1 if weight decay applies to it, else 0                                                 |

int64 (K + 1, 4); the last row is only the end of the last range. All numbers are multiples of 8, so that a 16-byte load lies in one range. A
process that updates everything has ranges, too, in which all three places are the same.
"""

from numba import cuda

START, IN_PARAMS, IN_GRADS, DECAYS = range(4)


@cuda.jit(device=True)
def find_range(ranges, i):
    """Which range the local position i lies in: the last that begins at or before it, by bisection."""
    low, high = 0, ranges.shape[0] - 1
    while high - low > 1:
        middle = (low + high) // 2
        if ranges[middle, START] <= i:
            low = middle
        else:
            high = middle
    return low
