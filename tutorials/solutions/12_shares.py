"""Who owns which numbers of the model?

A model's matrices lie one after the other in memory; `lengths` says how many numbers each has. All lengths are multiples of 8: a matrix is
made of *units* of 8 numbers, which are never cut. ZeRO cuts each matrix by itself. In a matrix of `units` units, process r has those from
units * r / ranks, rounded down, up to, but without, units * (r + 1) / ranks, rounded down. So parts differ by one unit at most, and a part
may be empty.

A process keeps m and v of its own parts only, packed one after the other, without gaps. Return the parts of process `rank`, a list with one
tuple (local, start, length) for each matrix, in their order, empty parts too: `local` is the position in the packed array, `start` the
position among all numbers of the model, `length` the number of elements. All plain ints. On paper: lengths [48, 16], 4 processes. The first
matrix has 6 units, cut at units 0, 1, 3, 4, 6; the second one has 2, cut at 0, 0, 1, 1, 2. So

    rank 1 has  [(0, 8, 16), (16, 48, 8)]        rank 2 has  [(0, 24, 8), (8, 56, 0)]

    python -m tutorials.check 12_shares
"""

UNIT = 8


def shares(lengths, rank, ranks):
    """lengths: a list of ints -> a list of (local, start, length)."""
    parts = []
    # your lines:
    local = matrix_start = 0
    for matrix_length in lengths:
        units = matrix_length // UNIT
        first, last = (UNIT * (units * r // ranks) for r in (rank, rank + 1))
        parts.append((local, matrix_start + first, last - first))
        local += last - first
        matrix_start += matrix_length
    # end of your lines
    return parts
