"""How ZeRO partitions the parameters: each matrix of each layer is cut into one part per rank.

    all parameters     | wte                     | wpe   | ln1w, ln1b | qkvw of layer 0 | qkvw of layer 1 | ...
    rank 1 of 4        |      |xxxxx|            | |x|   |xxxxxxxxxxxx|    |xxx|        |    |xxx|        |
    its local arrays   |xxxxx|x|xxxxxxxxxxxx|xxx|xxx| ...

A rank keeps AdamW's m and v and the master weights of its own parts only, packed one after the other in local arrays. A position among all
parameters is called global, a position in a local array local.

Vectors (biases, LayerNorms) stay whole: every rank has their gradients and applies the same update. They are many and short; cutting them
would take thousands of small messages and save next to nothing. In files they are cut too, as llm.c does (training/state_file.py).

The parts are equal, and laid out as in llm.c, if the number of ranks divides the tensor into multiples of 8 elements (16 bytes of bfloat16:
what a thread loads at once). Otherwise some ranks get 8 elements more than others.

Rajbhandari et al. 2019, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv:1910.02054).
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from gpt2_numba.config import MATRICES, ONCE, parameter_shapes

WIDTH = 8  # elements that a thread loads at once: the length of every part is a multiple of it


class Segment(NamedTuple):
    """One tensor of one layer, at the global positions [start, stop)."""

    name: str
    layer: int
    start: int
    stop: int

    @property
    def length(self):
        return self.stop - self.start


def segments_of(config):
    """All Segments of a model, ascending: the tensors in the order of parameter_shapes, each layer by layer."""
    segments, start = [], 0
    for name, shape in parameter_shapes(config).items():
        layers = 1 if name in ONCE else config.L
        length = math.prod(shape) // layers
        for layer in range(layers):
            segments.append(Segment(name, layer, start, start + length))
            start += length
    return segments


class Shards:
    """The parts of all ranks, as one of them sees them.

    config  GPT2Config        rank, ranks  this process, and the number of processes
    cut     names of the tensors that are cut, by default all of them; every rank's local arrays hold the others whole
    exact   True: cut as llm.c does, even into parts that are not multiples of 8 elements, to read its files
    Raises ValueError if exact is set and the number of ranks does not divide every tensor.
    """

    def __init__(self, config, rank=0, ranks=1, cut=None, exact=False):
        self.config, self.rank, self.ranks = config, rank, ranks
        self.cut = () if ranks == 1 else tuple(parameter_shapes(config)) if cut is None else cut
        self.segments = segments_of(config)
        if exact and any(s.length % ranks for s in self.segments):
            raise ValueError(f"{config} is not cut into {ranks} equal parts: {ranks} does not divide every tensor")
        self._unit = 1 if exact else WIDTH
        self.global_count = self.segments[-1].stop

    @property
    def whole(self):
        """True if nothing is cut: every rank's local arrays hold everything."""
        return not self.cut

    def bounds(self, segment):
        """The parts of a cut segment: ranks + 1 ascending global positions; rank r has [bounds[r], bounds[r + 1])."""
        return [self._bound(segment, rank) for rank in range(self.ranks + 1)]

    def _bound(self, segment, rank):
        units = segment.length // self._unit
        return segment.start + self._unit * (units * rank // self.ranks)

    def bounds_within(self, segment):
        """The same, relative to the start of the segment."""
        return [bound - segment.start for bound in self.bounds(segment)]

    def parts(self, rank=None):
        """What a rank's local arrays hold, in order: a list of (local start, global start, length, segment)."""
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
        """How many elements each of a rank's local arrays holds."""
        local, _, length, _ = self.parts(rank)[-1]
        return local + length

    def local_position(self, segment, position):
        """The position in this rank's local arrays of a global position in its part of a segment."""
        local, start = self._part_starts[segment]
        return local + position - start

    @functools.cached_property
    def _part_starts(self):
        return {segment: (local, start) for local, start, _, segment in self.parts()}

    @property
    def even(self):
        """True if each segment that is cut has equal parts. If all segments are cut, this is the layout of llm.c's files."""
        all_bounds = (self.bounds(segment) for segment in self.segments if segment.name in self.cut)
        return all(len({stop - start for start, stop in zip(bounds, bounds[1:])}) == 1 for bounds in all_bounds)


class Sharing:
    """What this rank keeps at a stage of ZeRO: 0 everything, 1 only its parts of the optimizer state, 2 of the gradients too.

    stage    0 for a single process, whatever stage was requested
    state    Shards of AdamW's m and v and of the master weights: what this rank updates
    grads    Shards of the gradients once they are summed. At stage 2 only the layers' matrices are cut, not the embeddings
    counted  Shards of the gradients that this rank counts towards the norm: each element is counted by one rank, those of vectors too
    """

    def __init__(self, config, rank=0, ranks=1, stage=0):
        self.stage = stage if ranks > 1 else 0
        layer_matrices = tuple(name for name in MATRICES if name not in ONCE)
        self.state = Shards(config, rank, ranks, cut=MATRICES if self.stage else ())
        self.grads = Shards(config, rank, ranks, cut=layer_matrices if self.stage == 2 else ())
        self.counted = Shards(config, rank, ranks, cut=None if self.stage else ())

    def layer_matrices(self, layer):
        """The segments of a layer's matrices."""
        return [s for s in self.grads.segments if s.layer == layer and s.name in MATRICES and s.name not in ONCE]

    def embeddings(self):
        """The segments of the matrices outside the layers."""
        return [s for s in self.grads.segments if s.name in MATRICES and s.name in ONCE]

    def vector_runs(self):
        """Where the gradients of vectors are contiguous: a list of (start, stop), positions in the gradients' local array."""
        runs = []
        for local, _, length, segment in self.grads.parts():
            if segment.name not in MATRICES:
                start = runs.pop()[0] if runs and runs[-1][1] == local else local
                runs.append((start, local + length))
        return runs

    def update_ranges(self):
        """The positions of the parameters that this rank updates, and of their gradients: a table of gpu/ranges.py. Matrices decay."""
        return ranges_of(self.state.parts(), self.grads, lambda segment: segment.name in MATRICES)

    def norm_ranges(self):
        """The same for what this rank counts towards the norm, where decay does not matter."""
        return ranges_of(self.counted.parts(), self.grads, lambda segment: False)


def ranges_of(parts, grads, decays):
    """The table that maps a rank's local positions to global ones: see gpu/ranges.py. int64 (K + 1, 4), a host array.

    parts   from Shards.parts
    grads   Shards of the gradients
    decays  function of a segment: does weight decay apply to it?
    Parts that are contiguous in all three arrays and agree in `decays` are merged into one range; empty parts are left out.
    """
    rows = []
    for local, start, length, segment in parts:
        row = (local, start, grads.local_position(segment, start), int(decays(segment)))
        continues = rows and rows[-1][3] == row[3] and len({now - before for now, before in zip(row[:3], rows[-1][:3])}) == 1
        if length and not continues:
            rows.append(row)
    end = max(local + length for local, _, length, _ in parts)
    return np.array([*rows, (end, end, end, 0)], np.int64)
