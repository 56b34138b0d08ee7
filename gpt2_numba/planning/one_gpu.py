"""The time of a training step on one GPU, divided as the model of several GPUs needs it."""

from typing import NamedTuple

import numpy as np


class OneGpu(NamedTuple):
    """Milliseconds of the parts of a micro-step of B rows of T tokens, and of the norm and AdamW once per step."""

    B: int
    T: int
    layers: int
    forward: float
    head: float  # backward of the classifier, before the layers
    layer: float  # backward of one layer
    tail: float  # backward of the embedding, after the layers
    norm: float
    adamw: float
    copy_rate: float  # GB/s, read plus written
    shares: tuple = ()  # sorted pairs (rows, time of their micro-step / time of one of B rows); empty: the time is proportional to the rows
    element: int = 2  # bytes of a parameter and of a gradient

    @property
    def micro_step(self):
        """Milliseconds of forward and backward of B rows."""
        return self.forward + self.head + self.layers * self.layer + self.tail

    def micro_step_share(self, rows):
        """Time of a micro-step of `rows` rows as a share of one of B; interpolated linearly between those in `shares`."""
        if not self.shares:
            return rows / self.B
        return float(np.interp(rows, *zip(*self.shares)))

    def slower(self, factor):
        """A copy with all times multiplied by a factor: for another program on this GPU, or this program on another GPU."""
        times = {name: factor * getattr(self, name) for name in ("forward", "head", "layer", "tail", "norm", "adamw")}
        return self._replace(**times)
