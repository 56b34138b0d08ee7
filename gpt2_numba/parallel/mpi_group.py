"""Processes that share numbers by MPI, on the host: for training on CPUs, and to test without a GPU what GPUs do together.

Sums are made in rank order, by this program. MPI's own MPI_Allreduce and MPI_Reduce_scatter may add in any order (the standard only advises
the same result for the same arguments: MPI 4.1, 6.9.1), and know no bfloat16. So MPI only moves: MPI_Alltoallv takes every part to the rank
that adds it up, MPI_Allgatherv brings it back. Thus each sum is made at one rank and copied to the others, all have its bits, and they do
not depend on how an array is cut into parts. A ring of processes that adds on the way moves as many bytes.
"""

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_bits, bfloat16_values
from gpt2_numba.gpu.simulator import elements_of
from gpt2_numba.parallel.group import Group


class MpiGroup(Group):
    """See Group. Arrays are NumPy's or, with Numba's simulator, device arrays; those of one call have one type and go as one message."""

    def __init__(self, meeting, place, communicator):
        """communicator: mpi4py's, whose ranks are those of the meeting."""
        super().__init__(meeting, place)
        self._communicator = communicator

    def all_reduce(self, arrays):
        pieces = [(array, [array.size * rank // self.ranks for rank in range(self.ranks + 1)]) for array in arrays]
        self.reduce_scatter(pieces)
        self.all_gather(pieces)

    def reduce_scatter(self, pieces):
        self._come_together()
        parts = self._parts(pieces)
        to_all, counts = _joined([part for of_rank in parts for part in of_rank]), _counts(parts)
        kind = _mpi_type(to_all.dtype)
        from_all = np.empty((self.ranks, counts[self.rank]), to_all.dtype)  # my parts, as each rank has them
        self._communicator.Alltoallv([to_all, counts, kind], [from_all, [counts[self.rank]] * self.ranks, kind])
        _write(parts[self.rank], _sum_in_order(from_all))

    def all_gather(self, pieces):
        self._come_together()
        parts = self._parts(pieces)
        mine, counts = _joined(parts[self.rank]), _counts(parts)
        kind = _mpi_type(mine.dtype)
        from_all = np.empty(sum(counts), mine.dtype)
        self._communicator.Allgatherv([mine, kind], [from_all, counts, kind])
        _write([part for of_rank in parts for part in of_rank], from_all)

    def _parts(self, pieces):
        """By rank, the parts that belong to it: lists of NumPy views."""
        return [[elements_of(array)[bounds[rank] : bounds[rank + 1]] for array, bounds in pieces] for rank in range(self.ranks)]


def _joined(parts):
    """One array with all numbers of the parts, whose type must be the same."""
    return np.concatenate(parts, dtype=parts[0].dtype, casting="no")


def _counts(parts):
    return [sum(part.size for part in of_rank) for of_rank in parts]


def _write(parts, numbers):
    """Fill one part after the other."""
    for part in parts:
        part[:], numbers = numbers[: part.size], numbers[part.size :]


def _sum_in_order(rows):
    """The sum of all rows, the first first, in float32; bfloat16 is rounded once, at the end."""
    is_bfloat16 = rows.dtype == BFLOAT16_BITS
    total, *others = bfloat16_values(rows) if is_bfloat16 else rows
    for row in others:
        total += row
    return bfloat16_bits(total) if is_bfloat16 else total


def _mpi_type(dtype):
    from mpi4py import MPI

    return {FLOAT32: MPI.FLOAT, BFLOAT16_BITS: MPI.UINT16_T}[dtype]
