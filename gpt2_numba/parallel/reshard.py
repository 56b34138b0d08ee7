"""Arrays cut into parts by N processes, read by any other number of processes.

2 ranks  | rank 0      | rank 1      | rank 0 | rank 1 | ...     positions among all parameters; the files hold these parts
3 ranks  | rank 0 | rank 1  | rank 2 | ...                       the slices that the processes need now cross the files' parts
"""

from bisect import bisect_left, bisect_right

import numpy as np


class WholeArray:
    """The local arrays of all ranks, sliced as if they were one array of all parameters.

    shards  Shards, of any rank
    arrays  the local arrays by rank, 1-D. They may be memory maps, of which a slice reads only what it covers
    """

    def __init__(self, shards, arrays):
        self._arrays = [np.asarray(array) for array in arrays]
        self._pieces = []  # (start, stop, position in the local array, rank), ascending
        if shards.whole:  # each rank has everything
            self._pieces.append((0, shards.global_count, 0, 0))
        else:
            local = [0] * shards.ranks
            for segment in shards.segments:
                bounds = shards.bounds(segment)
                for rank, (start, stop) in enumerate(zip(bounds, bounds[1:])):
                    if start < stop:
                        self._pieces.append((start, stop, local[rank], rank))
                        local[rank] += stop - start
        self._starts = [start for start, *_ in self._pieces]

    def __getitem__(self, wanted):
        """The elements of a slice start:stop, with both ends given, as a new array."""
        first = bisect_right(self._starts, wanted.start) - 1
        found = []
        for start, stop, local, rank in self._pieces[first : bisect_left(self._starts, wanted.stop)]:
            begin, end = max(start, wanted.start), min(stop, wanted.stop)
            found.append(self._arrays[rank][local + begin - start : local + end - start])
        return np.concatenate(found)
