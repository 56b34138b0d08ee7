"""Collectives by MPI, on host arrays: for training on CPUs, and for tests without a GPU.

This program adds, in rank order. MPI's own MPI_Allreduce and MPI_Reduce_scatter may add in any order (the standard only recommends the same
result for the same arguments: MPI 4.1, 6.9.1) and do not know bfloat16, so MPI only moves data: MPI_Alltoallv takes every part to the rank
that adds it up, MPI_Allgatherv brings the sums back. Each sum is made at one rank and copied to the others, so all ranks have the same
bits, which do not depend on how an array is cut into parts. A ring that adds along the way moves as many bytes.
"""

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_bits, bfloat16_values
from gpt2_numba.gpu.simulator import elements_of
from gpt2_numba.parallel.group import Group


class MpiGroup(Group):
    """See Group. NumPy arrays or, in Numba's simulator, device arrays; those of one call have the same type and go as one message."""

    def __init__(self, meeting, device_label, communicator):
        """communicator: mpi4py's, with the same ranks as the meeting."""
        super().__init__(meeting, device_label)
        self._communicator = communicator

    def all_reduce(self, arrays):
        pieces = [(array, [array.size * rank // self.ranks for rank in range(self.ranks + 1)]) for array in arrays]
        self.reduce_scatter(pieces)
        self.all_gather(pieces)

    def reduce_scatter(self, pieces):
        self._enter_collective()
        parts = self._parts(pieces)
        sent, counts = _joined(_flat(parts)), _counts(parts)
        mpi_type = _mpi_type(sent.dtype)
        received = np.empty((self.ranks, counts[self.rank]), sent.dtype)  # row r: rank r's values of this rank's parts
        self._communicator.Alltoallv([sent, counts, mpi_type], [received, [counts[self.rank]] * self.ranks, mpi_type])
        _write(parts[self.rank], _sum_in_order(received))

    def all_gather(self, pieces):
        self._enter_collective()
        parts = self._parts(pieces)
        sent, counts = _joined(parts[self.rank]), _counts(parts)
        mpi_type = _mpi_type(sent.dtype)
        received = np.empty(sum(counts), sent.dtype)
        self._communicator.Allgatherv([sent, mpi_type], [received, counts, mpi_type])
        _write(_flat(parts), received)

    def _parts(self, pieces):
        """Each rank's parts of all arrays, by rank: lists of NumPy views."""
        return [[elements_of(array)[bounds[rank] : bounds[rank + 1]] for array, bounds in pieces] for rank in range(self.ranks)]


def _flat(parts):
    """The parts of all ranks, rank by rank."""
    return [part for rank_parts in parts for part in rank_parts]


def _joined(parts):
    """The parts, which must have the same type, concatenated."""
    return np.concatenate(parts, dtype=parts[0].dtype, casting="no")


def _counts(parts):
    """How many elements each rank's parts have."""
    return [sum(part.size for part in rank_parts) for rank_parts in parts]


def _write(parts, values):
    """Fill one part after the other."""
    for part in parts:
        part[:], values = values[: part.size], values[part.size :]


def _sum_in_order(rows):
    """The sum of the rows, in order, in float32; bfloat16 is rounded once, at the end."""
    is_bfloat16 = rows.dtype == BFLOAT16_BITS
    total, *others = bfloat16_values(rows) if is_bfloat16 else rows
    for row in others:
        total += row
    return bfloat16_bits(total) if is_bfloat16 else total


def _mpi_type(dtype):
    from mpi4py import MPI

    return {FLOAT32: MPI.FLOAT, BFLOAT16_BITS: MPI.UINT16_T}[dtype]
