"""A GPT2 whose every launch is guarded, for `--guards on`: see gpu/guards.py. The same bits, many times slower.

Two things differ from GPT2. Arrays that share memory, since they are never in use at the same time, have memory of their own, so that there
is a red zone between any two of them. And what is no longer needed is forgotten: a layer that reads what an earlier step has left is found,
too.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

from gpt2_numba.config import ONCE
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import Arena, free_gpu_bytes
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.gpu.guards import Guards
from gpt2_numba.gpu.launches import observable, observed_by
from gpt2_numba.layers.fast.attention import engine_name
from gpt2_numba.memory_plan import activation_shapes, transient_shapes
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options

_ACROSS_LAYERS = ("encoded", "lnf", "lnf_mean", "lnf_rstd")  # activations that are not of a block
_GRADIENTS = ("dresidual", "dbranch")  # of activations
_SCRATCH = ("sums", "att_scratch")


class GuardedGPT2(GPT2):
    """A GPT2 that raises GuardError as soon as a launch writes beside its arrays, or reads what nothing has written.

    Parameters and errors are GPT2's; options.guards and options.graph are set.
    """

    def __init__(self, config, B, T, options=None, group=None):
        super().__init__(config, B, T, replace(options or Options(), guards=True, graph=False), group)
        separate = Arena(red_zones=True)
        for name, shape in _merged(transient_shapes(config, B, T, self.kernels.fused)).items():
            separate.add("logits and scratch", name, (math.prod(shape),), self.memory["transient"].dtype)
        on_gpu = self.options.device == "gpu"
        if on_gpu and real_gpu() and separate.nbytes > (free := free_gpu_bytes()):
            raise UserError(
                f"--guards on needs {separate.nbytes / 2**30:.2f} GiB more GPU memory, but {free / 2**30:.2f} GiB are free: use a smaller "
                "micro-batch (-b)"
            )
        self._separate = separate.allocate(on_gpu)
        # The scale of a step that is not finite is NaN. What cuDNN keeps in its workspace need not be float32.
        is_cudnn = self.kernels.fused and engine_name(self.raw("params"), config.HS) == "cudnn"
        may_be_nan = ["step_results", *(["att_scratch"] if is_cudnn else [])]
        self.guards = Guards([self.arena, separate], self._tensor_names(), may_be_nan)
        self.graphs = _GuardedPasses(self.guards)
        if not on_gpu:  # there are no launches: the layer functions themselves are observed
            functions = {name: observable(function) for name, function in vars(self.kernels.functions).items()}
            self.kernels = replace(self.kernels, functions=SimpleNamespace(**functions))
        self._used_up = False  # whether the activations have served a backward pass

    def _tensor_names(self):
        """[(array, name)] of all tensors of parameters, and of gradients where they are kept whole."""
        kinds = {"": self.params} | ({"gradient of ": self.grads} if self.sharing.stage < 2 else {})
        for prefix, tensors in kinds.items():
            for name, tensor in vars(tensors).items():
                if name in ONCE:
                    yield tensor, f"{prefix}{name}"
                else:
                    yield from ((part, f"{prefix}{name} of block {block}") for block, part in enumerate(tensor))

    def activations(self, B, T):
        """As GPT2's, but those that share memory have their own."""
        if (B, T) not in self._views:
            acts = super().activations(B, T)
            for name, shape in _merged(transient_shapes(self.config, B, T, self.kernels.fused)).items():
                setattr(acts, name, self._separate[name][: math.prod(shape)].reshape(shape))
        return self._views[B, T]

    def forward(self, inputs):
        """As GPT2's. The first one after a backward pass forgets everything that the step before has computed."""
        if self._used_up:
            self._forget([*activation_shapes(self.config, self.B, self.T), *_ACROSS_LAYERS, *_GRADIENTS, *_SCRATCH, *self._separate])
            self._used_up = False
        super().forward(inputs)

    def evaluate(self, inputs, targets):
        """As GPT2's."""
        with observed_by(self.guards):
            super().evaluate(inputs, targets)

    def backward(self, targets, grad_accum_steps=1, last=True):
        """As GPT2's. What an earlier backward pass has left is forgotten."""
        self._forget([*_GRADIENTS, *(name for name in self._separate if name != "logits")])
        super().backward(targets, grad_accum_steps, last)
        self._used_up = True

    def update(self, *arguments, **named):
        """As GPT2's."""
        with observed_by(self.guards):
            super().update(*arguments, **named)

    def _forget(self, names):
        arrays = []
        for name in names:
            array = self._separate.get(name, self.memory.get(name))
            if array is not None:
                arrays += [array[row] for row in range(array.shape[0])] if array.ndim == 2 else [array]
        self.guards.forget(arrays)


class _GuardedPasses:
    """In the place of Graphs (gpu/graph.py): the work is done launch by launch, each guarded."""

    def __init__(self, guards):
        self._guards = guards

    def run(self, key, work):
        with observed_by(self._guards):
            work()


def _merged(dictionaries):
    """Name -> shape of all short-lived arrays."""
    return {name: shape for shapes in dictionaries for name, shape in shapes.items()}
