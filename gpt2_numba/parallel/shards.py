"""How ZeRO shares out the parameters: each matrix of each layer is cut into as many parts as there are ranks, one for each.

    all parameters     | wte                     | wpe   | ln1w, ln1b | qkvw of layer 0 | qkvw of layer 1 | ...
    of rank 1, of 4    |      |xxxxx|            | |x|   |xxxxxxxxxxxx|    |xxx|        |    |xxx|        |
    its local arrays   |xxxxx|x|xxxxxxxxxxxx|xxx|xxx| ...

A rank keeps AdamW's m and v and the master weights for its own parts only, one part after the other: a local array. Positions among all
parameters are called global, positions in a local array local.

Vectors (biases, LayerNorms) stay whole: all ranks have their gradients and update them, each in the same way. They are many and short: cut, they
would be thousands of small messages and save next to nothing. In files they are cut as well, as llm.c does (training/state_file.py).

The parts are equal where the ranks divide the tensor into multiples of 8 numbers (16 bytes of bfloat16: what a thread loads at once), which is
how llm.c shares out as well. Where they do not, some ranks get 8 numbers more than others.

Rajbhandari et al. 2019, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv:1910.02054).
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from gpt2_numba.config import MATRICES, ONCE, parameter_shapes

WIDTH = 8  # numbers that a thread of a kernel loads at once: no part ends between them


class Segment(NamedTuple):
    """One tensor of one layer: its global positions [start, stop)."""

    name: str
    layer: int
    start: int
    stop: int

    @property
    def length(self):
        return self.stop - self.start


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
    cut     names of the tensors that are shared out, by default all of them; of the others every rank's local arrays hold everything
    exact   True: parts as llm.c cuts them even where they are no multiples of 8 numbers, to read its files
    Raises ValueError if exact parts do not exist, since the ranks do not divide a tensor.
    """

    def __init__(self, config, rank=0, ranks=1, cut=None, exact=False):
        self.config, self.rank, self.ranks = config, rank, ranks
        self.cut = () if ranks == 1 else tuple(parameter_shapes(config)) if cut is None else cut
        self.segments = segments_of(config)
        if exact and any((s.stop - s.start) % ranks for s in self.segments):
            raise ValueError(f"{config} is not cut into {ranks} equal parts: {ranks} does not divide every tensor")
        self._unit = 1 if exact else WIDTH
        self.global_count = self.segments[-1].stop

    @property
    def whole(self):
        """True if nothing is shared out: every rank's local arrays hold everything."""
        return not self.cut

    def bounds(self, segment):
        """Where the parts of a segment that is cut begin and end: ranks + 1 ascending global positions; rank r has [bounds[r], bounds[r + 1])."""
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
            if segment.name in self.cut:
                start, stop = self._bound(segment, rank), self._bound(segment, rank + 1)
            parts.append((local, start, stop - start, segment))
            local += stop - start
        return parts

    def local_count(self, rank=None):
        """How many numbers a rank's local arrays hold."""
        local, _, length, _ = self.parts(rank)[-1]
        return local + length

    def place(self, segment, position):
        """The local position, in this rank's arrays, of a global position in a segment's part."""
        local, start = self._begins[segment]
        return local + position - start

    @functools.cached_property
    def _begins(self):
        return {segment: (local, start) for local, start, _, segment in self.parts()}

    @property
    def even(self):
        """True if all parts of each segment that is cut are equal. If all are cut, this is the layout of llm.c's files."""
        bounds = (self.bounds(segment) for segment in self.segments if segment.name in self.cut)
        return all(len({b - a for a, b in zip(one, one[1:])}) == 1 for one in bounds)


class Sharing:
    """What this rank keeps by a stage of ZeRO: 0 everything, 1 its parts of the optimizer's state, 2 of the layers' gradients as well.

    stage    0 for a single process, whatever was asked for
    state    Shards of AdamW's m and v and of the master weights: of what this rank updates
    grads    Shards of the gradients when they are summed
    counted  Shards of the gradients that this rank counts for their norm: each is counted by one rank, those of vectors, too
    """

    def __init__(self, config, rank=0, ranks=1, stage=0):
        self.stage = stage if ranks > 1 else 0
        of_layers = tuple(name for name in MATRICES if name not in ONCE)
        self.state = Shards(config, rank, ranks, cut=MATRICES if self.stage else ())
        self.grads = Shards(config, rank, ranks, cut=of_layers if self.stage == 2 else ())
        self.counted = Shards(config, rank, ranks, cut=None if self.stage else ())

    def layer_matrices(self, layer):
        """The segments of a layer's matrices."""
        return [s for s in self.grads.segments if s.layer == layer and s.name in MATRICES and s.name not in ONCE]

    def embeddings(self):
        """The segments of the matrices that are not a layer's."""
        return [s for s in self.grads.segments if s.name in MATRICES and s.name in ONCE]

    def runs_of_vectors(self):
        """Where the gradients of vectors lie side by side: a list of (start, stop), positions in the gradients' local array."""
        runs = []
        for local, _, length, segment in self.grads.parts():
            if segment.name not in MATRICES:
                start = runs.pop()[0] if runs and runs[-1][1] == local else local
                runs.append((start, local + length))
        return runs

    def update_ranges(self):
        """Where the parameters lie that this rank updates, and their gradients: the table of gpu/ranges.py. The matrices decay."""
        return ranges_of(self.state.parts(), self.grads, lambda segment: segment.name in MATRICES)

    def norm_ranges(self):
        """The same for the norm, which does not care what decays."""
        return ranges_of(self.counted.parts(), self.grads, lambda segment: False)


def ranges_of(parts, grads, decays):
    """The table by which kernels find a rank's parts among all parameters: see gpu/ranges.py. int64 (K + 1, 4), a host array.

    parts   as Shards.parts gives them
    grads   Shards: where the gradients lie
    decays  function of a segment: does weight decay apply to it?
    Parts that continue each other, in gradients as well, and agree in `decays` are one range; empty ones are left out.
    """
    rows = []
    for local, start, length, segment in parts:
        row = (local, start, grads.place(segment, start), int(decays(segment)))
        goes_on = rows and rows[-1][3] == row[3] and len({now - before for now, before in zip(row[:3], rows[-1][:3])}) == 1
        if length and not goes_on:
            rows.append(row)
    end = max(local + length for local, _, length, _ in parts)
    return np.array([*rows, (end, end, end, 0)], np.int64)
