"""The real model, with random tokens and fresh weights, for measurements."""

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from gpt2_numba.config import parameter_shapes
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options

LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 6e-4, 0.1, 1.0
BATCHES = 4  # distinct ones, used in turn


class Trainer:
    """A model and its data. A step is `micro_steps` micro-batches of (B, T) tokens and the update.

    The weights are those at the start of training, since a chip at its power limit is slower on random values than on zeros.
    """

    def __init__(self, config, B, T, micro_steps, device="gpu", weights=None, seed=2, group=None, **options):
        """weights: as for GPT2.load_pieces, fresh ones by default; seed: of the tokens; options: see Options."""
        self.config, self.B, self.T, self.micro_steps = config, B, T, micro_steps
        self.model = GPT2(config, B, T, Options(device=device, **options), group)
        self.model.load_pieces(weights or draw_initial_weights(config, parameter_shapes(config)))
        random = np.random.default_rng(seed)
        self._batches = [random.integers(0, config.V, (2, B, T), dtype=np.int32) for _ in range(BATCHES)]
        self._micro_steps_done = self._steps_done = 0

    def step(self, micro_steps=None, set_phase=lambda phase: None):
        """Run one step and wait for its results. Arguments as in queue_step."""
        self.queue_step(micro_steps, set_phase).wait()

    def queue_step(self, micro_steps=None, set_phase=lambda phase: None):
        """Queue one step, as the training loop does. Returns its Measurement.

        set_phase(name) is called before the forward and the backward pass of each micro-step and before the update.
        """
        set_phase("forward")
        self.model.zero_grad()
        micro_steps = micro_steps or self.micro_steps
        for index in range(micro_steps):
            self.micro_step(set_phase, last=index + 1 == micro_steps)
        set_phase("update")
        return self.queue_update()

    def micro_step(self, set_phase=lambda phase: None, last=True):
        """Forward and backward pass of one batch. last: whether it is the last of a step."""
        inputs, targets = self._batches[self._micro_steps_done % BATCHES]
        self._micro_steps_done += 1
        set_phase("forward")
        self.model.forward(inputs)
        set_phase("backward")
        self.model.backward(targets, self.micro_steps, last)

    @contextmanager
    def launch_by_launch(self):
        """A context without CUDA graphs, so that launches can be watched. Yields whether that makes a difference."""
        if self.model.graphs is None:
            yield False
            return
        with patch.object(self.model, "graphs", Graphs(False)):
            yield True

    def update(self):
        """Run norm, clipping and AdamW, and wait for the norm."""
        self.queue_update().wait()

    def queue_update(self):
        """Queue norm, clipping and AdamW, as the training loop does. Returns the Measurement."""
        measurement = self.model.measure(MAX_NORM)
        self.model.update(self._steps_done, LEARNING_RATE, WEIGHT_DECAY, rounding_seed=self._steps_done)
        self._steps_done += 1
        return measurement
