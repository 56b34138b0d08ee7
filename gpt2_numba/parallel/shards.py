"""How ZeRO shares out the parameters: each tensor of each layer is cut into as many parts as there are ranks, one for each.

    all parameters     | wte                     | wpe   | ln1w of layer 0 | ln1w of layer 1 | ...
    of rank 1, of 4    |      |xxxxx|            | |x|   |    |xxx|        |    |xxx|        |
    its local arrays   |xxxxx|x|xxx|xxx| ...

A rank keeps AdamW's m and v and the master weights for its own parts only, one part after the other: a local array. Positions among all
parameters are called global, positions in a local array local.

The parts are equal where the ranks divide the tensor into multiples of 8 numbers (16 bytes of bfloat16: what a thread loads at once), which is
how llm.c shares out as well. Where they do not, some ranks get 8 numbers more than others.

Rajbhandari et al. 2019, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv:1910.02054).
"""

import math
from typing import NamedTuple

import numpy as np

from gpt2_numba.config import ONCE, parameter_shapes

WIDTH = 8  # numbers that a thread of a kernel loads at once: no part ends between them


class Segment(NamedTuple):
    """One tensor of one layer: its global positions [start, stop)."""

    name: str
    layer: int
    start: int
    stop: int


def segments_of(config):
    """All Segments of a model, ascending: tensors in the table's order, of each its layers."""
    segments, start = [], 0
    for name, shape in parameter_shapes(config).items():
        layers = 1 if name in ONCE else config.L
        length = math.prod(shape) // layers
        for layer in range(layers):
            segments.append(Segment(name, layer, start, start + length))
            start += length
    return segments


class Shards:
    """The parts of all `ranks`, seen by one of them.

    config  GPT2Config        rank, ranks  this process, and how many there are
    whole   True: nothing is shared out, every rank's local arrays hold everything (-z 0, or a single process)
    exact   True: parts as llm.c cuts them even where they are no multiples of 8 numbers, to read its files
    Raises ValueError if exact parts do not exist, since the ranks do not divide a tensor.
    """

    def __init__(self, config, rank=0, ranks=1, whole=False, exact=False):
        self.config, self.rank, self.ranks, self.whole = config, rank, ranks, whole or ranks == 1
        self.segments = segments_of(config)
        if exact and any((s.stop - s.start) % ranks for s in self.segments):
            raise ValueError(f"{config} is not cut into {ranks} equal parts: {ranks} does not divide every tensor")
        self._unit = 1 if exact else WIDTH
        self.global_count = self.segments[-1].stop

    def bounds(self, segment):
        """Where the parts of a segment begin and end: ranks + 1 ascending global positions; rank r has [bounds[r], bounds[r + 1])."""
        return [self._bound(segment, rank) for rank in range(self.ranks + 1)]

    def _bound(self, segment, rank):
        units = (segment.stop - segment.start) // self._unit
        return segment.start + self._unit * (units * rank // self.ranks)

    def bounds_within(self, segment):
        """The same, counted from the beginning of the segment."""
        return [bound - segment.start for bound in self.bounds(segment)]

    def parts(self, rank=None):
        """What a rank's local arrays hold, in their order: a list of (local start, global start, length, segment)."""
        rank = self.rank if rank is None else rank
        parts, local = [], 0
        for segment in self.segments:
            start, stop = segment.start, segment.stop
            if not self.whole:
                start, stop = self._bound(segment, rank), self._bound(segment, rank + 1)
            parts.append((local, start, stop - start, segment))
            local += stop - start
        return parts

    def local_count(self, rank=None):
        """How many numbers a rank's local arrays hold."""
        local, _, length, _ = self.parts(rank)[-1]
        return local + length

    @property
    def even(self):
        """True if all parts of each segment are equal: the layout of llm.c's files."""
        return self.whole or all(len({b - a for a, b in zip(bounds, bounds[1:])}) == 1 for bounds in map(self.bounds, self.segments))


def ranges_of(parts, decays, grads_local=False):
    """The table by which kernels find a rank's parts among all parameters: see gpu/ranges.py. int64 (K + 1, 4), a host array.

    parts        as Shards.parts gives them
    decays       function of a segment: does weight decay apply to it?
    grads_local  the gradients lie as the local arrays do, not as the parameters
    Parts that continue each other and agree in `decays` are one range; empty ones are left out.
    """
    rows = []
    for local, start, length, segment in parts:
        row = (local, start, local if grads_local else start, int(decays(segment)))
        goes_on = rows and rows[-1][3] == row[3] and local - rows[-1][0] == start - rows[-1][1]
        if length and not goes_on:
            rows.append(row)
    end = max(local + length for local, _, length, _ in parts)
    return np.array([*rows, (end, end, end, 0)], np.int64)
