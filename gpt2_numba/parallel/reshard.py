"""Arrays that were shared out over N processes, read by any other number of processes.

by 2 ranks  | rank 0      | rank 1      | rank 0 | rank 1 | ...     positions of all parameters, which the files hold in parts
by 3 ranks  | rank 0 | rank 1  | rank 2 | ...                       what the processes want now: slices that cross the files' parts
"""

from bisect import bisect_left, bisect_right

import numpy as np


class WholeArray:
    """All shards of an array, sliced as if they were one array of all parameters.

    shards  Shards, of any rank
    arrays  by rank, its local array, 1-D. They may be memory maps: of these, a slice reads only what it wants
    """

    def __init__(self, shards, arrays):
        self._arrays = [np.asarray(array) for array in arrays]
        self._pieces = []  # (start, stop, place in the local array, rank), ascending
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
        """The numbers of a slice start:stop of positions, both given, as a new array."""
        first = bisect_right(self._starts, wanted.start) - 1
        found = []
        for start, stop, local, rank in self._pieces[first : bisect_left(self._starts, wanted.stop)]:
            begin, end = max(start, wanted.start), min(stop, wanted.stop)
            found.append(self._arrays[rank][local + begin - start : local + end - start])
        return np.concatenate(found)
