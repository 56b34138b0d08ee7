"""What a rank keeps of a model, as parallel/shards.py partitions it, in the time of one layer: all layers are cut alike.

A model of ten thousand layers has 120,000 segments, and a plan asks for the memory of many micro-batches and numbers of GPUs.
"""

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

from gpt2_numba.config import MATRICES, ONCE
from gpt2_numba.parallel.shards import Sharing

FEW = 3  # layers: from here on each further layer adds the same number of ranges


class Tensor(NamedTuple):
    """Elements of one layer's tensor, or of one that exists once: in this rank's part and in all. copies: layers that have it."""

    name: str
    own: int
    whole: int
    copies: int


class PlannedShards:
    """Shards of rank 0, tensor by tensor. of_one_layer: the Shards of the same model with one layer."""

    def __init__(self, of_one_layer, layers):
        self.ranks = of_one_layer.ranks
        self.tensors = [
            Tensor(segment.name, own, segment.length, 1 if segment.name in ONCE else layers) for _, _, own, segment in of_one_layer.parts(0)
        ]
        self.global_count = sum(tensor.whole * tensor.copies for tensor in self.tensors)

    def local_count(self):
        """How many elements each of the rank's local arrays holds."""
        return sum(tensor.own * tensor.copies for tensor in self.tensors)


class PlannedSharing:
    """What plan_memory and many_gpus.py ask of a Sharing of rank 0, in numbers."""

    def __init__(self, config, ranks, stage):
        one = Sharing(replace(config, L=1), 0, ranks, stage)
        self.config, self.ranks, self.stage = config, ranks, one.stage
        self.state, self.grads, self.counted = (PlannedShards(shards, config.L) for shards in (one.state, one.grads, one.counted))
        self.layer_matrices, self.embeddings = one.layer_matrices, one.embeddings

    def vectors(self):
        """Elements of all vectors."""
        return sum(tensor.whole * tensor.copies for tensor in self.grads.tensors if tensor.name not in MATRICES)

    def update_ranges(self):
        """Only the shape of Sharing.update_ranges."""
        return SimpleNamespace(shape=(self._rows()[0], 4))

    def norm_ranges(self):
        """Only the shape of Sharing.norm_ranges."""
        return SimpleNamespace(shape=(self._rows()[1], 4))

    def _rows(self):
        few = [_range_rows(replace(self.config, L=min(self.config.L, layers)), self.ranks, self.stage) for layers in (FEW, FEW + 1)]
        more = max(0, self.config.L - FEW)
        return [first + more * (second - first) for first, second in zip(*few)]


@functools.lru_cache(64)
def _range_rows(config, ranks, stage):
    sharing = Sharing(config, 0, ranks, stage)
    return len(sharing.update_ranges()), len(sharing.norm_ranges())
