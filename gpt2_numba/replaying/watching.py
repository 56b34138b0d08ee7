"""Looks over a model's shoulder: every layer function that it calls goes through a function of ours, with its arguments by name.

The order of the layers stays the model's own (layer_order.py or fused_layer_order.py), and so do the launches, their order and their bits.
Only the recorded graphs are left aside, since nothing can look into one. So a model of any size is watched in the memory it has: what a
layer has written is looked at before another layer writes over it.
"""

import contextlib
import inspect

from gpt2_numba import fused_layer_order
from gpt2_numba.config import ONCE
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.kernel_sets import FUNCTIONS
from gpt2_numba.memory_plan import SHARED_BY_BLOCKS, activation_shapes

NOT_OF_A_LAYER = ("sum_of_squares", "norm_and_scale", "adamw_update")
FUSED = ("residual_layernorm_forward", "matmul_gelu_forward")  # have no textbook function of their own
WATCHED = (*(name for name in FUNCTIONS if name not in NOT_OF_A_LAYER), *FUSED)


@contextlib.contextmanager
def watched(model, watch):
    """Inside the `with`, watch(name, function, arguments) is called in place of each layer function; it must call function(**arguments).

    arguments: the parameters of the function by name, defaults included. Textbook functions have the names of layers/NAME.py also where
    a user's own function calls them otherwise.
    """
    place = fused_layer_order if model.kernels.fused else model.kernels.functions
    own = {name: getattr(place, name) for name in WATCHED if hasattr(place, name)}
    graphs, model.graphs = model.graphs, Graphs(False)
    try:
        for name, function in own.items():
            setattr(place, name, _through(watch, name, function, inspect.signature(function if model.kernels.fused else FUNCTIONS[name])))
        yield
    finally:
        model.graphs = graphs
        for name, function in own.items():
            setattr(place, name, function)


def _through(watch, name, function, signature):
    def call(*arguments, **named):
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        names = [parameter.name for parameter in signature.parameters.values()]
        watch(name, lambda **by_name: function(*(by_name[each] for each in names)), dict(bound.arguments))

    return call


# What a function writes, parameter by parameter, in the order of computation. Scratch is left out.
WRITES = {
    "encoder_forward": ("out",),
    "layernorm_forward": ("mean", "rstd", "out"),
    "residual_layernorm_forward": ("residual", "mean", "rstd", "out"),
    "matmul_forward": ("out",),
    "matmul_gelu_forward": ("before_gelu", "out"),
    "attention_forward": ("out", "lse"),
    "gelu_forward": ("out",),
    "residual_forward": ("out",),
    "classifier_forward": ("losses",),
    "classifier_forward_backward": ("losses", "logits"),
    "accumulate_mean": ("mean",),
    "matmul_backward": ("dinp", "dweight", "dbias"),
    "layernorm_backward": ("dinp", "dinp_sums", "dweight", "dbias"),
    "gelu_backward": ("dinp", "dbias"),
    "attention_backward": ("dqkv", "dbias"),
    "residual_backward": ("dinp", "dbranch"),
    "encoder_backward": ("dwte", "dwpe"),
}
ACCUMULATED = {"dweight", "dbias", "dinp_sums", "dwte", "dwpe"}  # parameters' gradients
_CHANGED = {("layernorm_backward", "dinp"), ("accumulate_mean", "mean"), ("classifier_forward_backward", "logits")}


def adds_to(function, parameter):
    """Whether a function adds to what an array holds, or changes it, instead of writing over it."""
    return parameter in ACCUMULATED or (function, parameter) in _CHANGED


# What has no place of its own in memory is named by the weight or the activation that the function reads:
# (function, parameter) -> {that: name}.
_NAMES = {
    ("layernorm_forward", "out"): {"ln1w": "ln1", "ln2w": "ln2"},
    ("residual_layernorm_forward", "out"): {"ln1w": "ln1", "ln2w": "ln2"},
    ("matmul_forward", "out"): {"attprojw": "attproj", "fcprojw": "fcproj", "wte": "logits"},
    ("gelu_forward", "out"): {"fch": "fch_gelu"},
    ("matmul_gelu_forward", "out"): {"fcw": "fch_gelu"},
    ("matmul_backward", "dinp"): {"wte": "dlnf", "fcprojw": "dfch_gelu", "fcw": "dln2", "attprojw": "datty", "qkvw": "dln1"},
    ("layernorm_backward", "dinp"): {"ln2w": "dresidual2", "ln1w": "dresidual3", "lnfw": "dresidual3"},
    ("gelu_backward", "dinp"): {"fch": "dfch"},
    ("classifier_forward_backward", "logits"): {"": "dlogits"},
    ("attention_backward", "dqkv"): {"lse": "dqkv"},
}


class TensorNames:
    """Names of the arrays that a watched model passes to its layers, for a batch of one shape."""

    def __init__(self, model, shape):
        """model: GPT2, without ZeRO. shape: (B, T) of the batch."""
        self._L, self._known, self._copies = model.config.L, {}, 0
        for prefix, tensors in (("", model.params), ("d", model.grads)):
            for name, array in vars(tensors).items():
                self._add(f"{prefix}{name}", array if name not in ONCE else None, array)
        acts = model.activations(*shape)
        for name in activation_shapes(model.config, *shape):
            if name not in SHARED_BY_BLOCKS[model.options.recompute]:
                self._add(name, getattr(acts, name))
        for name in ("encoded", "lnf", "lnf_mean", "lnf_rstd", "losses", "inputs", "targets"):
            self._add(name, None, getattr(acts, name))
        self._add("mean_loss", None, model.memory["mean_loss"])

    def _add(self, name, by_block, once=None):
        if by_block is None:
            self._known[id(once)] = name, None
        else:
            self._known.update({id(array): (name, block) for block, array in enumerate(by_block)})

    def of(self, array):
        """(name, block or None) of an array with a place of its own; None for others."""
        return self._known.get(id(array))

    def written(self, function, arguments):
        """[(parameter, name, block or None)] of what a call writes. A gradient's name begins with d."""
        if function == "residual_backward":
            return self._copied()
        read = (self.of(arguments[name]) for name in ("weight", "lse", "inp", "out") if name in arguments)
        anchor, block = next(filter(None, read), ("", None))
        found = []
        for parameter in WRITES[function]:
            array = arguments.get(parameter)
            if array is None:
                continue
            name, at = self.of(array) or (_NAMES.get((function, parameter), {}).get(anchor, f"d{parameter}"), block)
            if name == "dresidual3":  # of the block below, which has written what this LayerNorm reads
                at = (self._L if at is None else at) - 1
                name, at = (name, at) if at >= 0 else ("dencoded", None)
            if name == "dfch_gelu" and arguments.get("before_gelu") is not None:
                name = "dfch"
            found.append((parameter, name, at))
        return found

    def _copied(self):
        """What residual_backward writes. It knows neither weights nor activations, but is called twice in each block, from the last on."""
        block, second = self._L - 1 - self._copies // 2 % self._L, self._copies % 2
        self._copies += 1
        return [("dinp", "dresidual2" if second else "dresidual3", block), ("dbranch", "dattproj" if second else "dfcproj", block)]
