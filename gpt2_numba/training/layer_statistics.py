"""Statistics of every layer's gradients and activations, every N steps: where do numbers grow, vanish, or stop being finite?

Gradients are those of the whole step, before clipping. Activations are what the last micro-batch has left for backward: those that all
blocks share, since backward recomputes them (-r), are missing. Nothing of the training is changed. Memory is read once, which takes a few
per cent of one step; the host waits for the GPU once.
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.float8_memory import shared_level
from gpt2_numba.gpu.backend import copy_to_host, on_host
from gpt2_numba.gpu.tensor_statistics import BLOCKS, RESULTS, combine, tensor_statistics
from gpt2_numba.memory_plan import SHARED_BY_BLOCKS

# What forward keeps of each block, in order of computation.
_BLOCK_ACTIVATIONS = ("ln1", "qkv", "atty", "residual2", "ln2", "fch", "fch_gelu", "residual3")
STATISTICS = ("largest", "rms", "zeros", "not_finite")


class LayerStatistics:
    """Examines the gradients and activations of a model in training."""

    def __init__(self, model):
        """model: GPT2. Allocates what it needs, about a MB on the GPU."""
        self._model = model
        self._tensors = [*self._gradients(), *self._activations()]  # (kind, name, layer, flat array)
        shape = (len(self._tensors), BLOCKS, len(RESULTS))
        on_cpu = on_host(model.raw("grads"))
        self._partials = np.zeros(shape) if on_cpu else cuda.device_array(shape, np.float32)
        self._rows = [self._partials[row] for row in range(len(self._tensors))]

    def _gradients(self):
        """What this process counts towards the norm: with ZeRO its parts only. The vocabulary's padding, all zeros, is left out."""
        flat, sharing, config = self._model.raw("grads"), self._model.sharing, self._model.config
        for _, start, length, segment in sharing.counted.parts():
            stop = min(start + length, segment.start + config.V * config.C) if segment.name == "wte" else start + length
            local = sharing.grads.local_position(segment, start)
            yield "gradients", segment.name, segment.layer, flat[local : local + max(0, stop - start)]

    def _activations(self):
        model = self._model
        acts = model.activations(model.B, model.T)
        yield "activations", "encoded", 0, _flat(acts.encoded)
        for name in _BLOCK_ACTIVATIONS:
            if name not in SHARED_BY_BLOCKS[shared_level(model.options)]:
                yield from (("activations", name, layer, _flat(array)) for layer, array in enumerate(getattr(acts, name)))
        yield "activations", "lnf", 0, _flat(acts.lnf)

    def collect(self):
        """The statistics of the step whose last backward pass has been queued and whose update has not. Waits for the device.

        All processes of the model's group call it. Returns {"gradients" or "activations": {name: {statistic: [a value for each layer]}}}
        with the STATISTICS: the largest |x|, the root mean square, the share of zeros and of values that are not finite. The first three
        are of finite values only.
        """
        for partials, (*_, array) in zip(self._rows, self._tensors):
            if array.shape[0]:
                tensor_statistics(partials, array)
        found = combine(self._partials if on_host(self._partials) else copy_to_host(self._partials))
        counts = np.array([[array.shape[0]] for *_, array in self._tensors], np.float64)
        found[counts[:, 0] == 0] = 0  # a tensor of which this process has no part
        found = np.concatenate([found, counts], axis=1)
        group = self._model.group
        if group.ranks > 1:
            by_rank = np.array(group.gather(found.tolist()), np.float64)
            together = combine(by_rank.swapaxes(0, 1))
            # Without ZeRO every process has all gradients, the same; the batches differ.
            same = [kind == "gradients" and self._model.sharing.stage == 0 for kind, *_ in self._tensors]
            found = np.where(np.array(same)[:, None], by_rank[0], together)
        return self._by_name(found)

    def _by_name(self, found):
        result = {}
        for (kind, name, _, _), (largest, squares, zeros, not_finite, count) in zip(self._tensors, found):
            values = largest, _root_mean(squares, count - not_finite), zeros / count, not_finite / count
            by_statistic = result.setdefault(kind, {}).setdefault(name, {statistic: [] for statistic in STATISTICS})
            for statistic, value in zip(STATISTICS, values):
                by_statistic[statistic].append(float(value))
        return result


def _root_mean(squares, count):
    return math.sqrt(squares / count) if count else 0.0


def _flat(array):
    return array.reshape((math.prod(array.shape),))
