"""Where does a step whose loss or gradient norm is not finite leave the finite numbers?

The step is made again, its arrays are read in the order in which they are computed, and the first value that is infinite or NaN is told.
Parameters come first, then what every layer keeps for the backward pass, then the gradients, from the last layer to the first.
"""

import math

import numpy as np

from gpt2_numba.config import ONCE
from gpt2_numba.gpu.backend import copy_to_host, on_host
from gpt2_numba.memory_plan import SHARED_BY_BLOCKS
from gpt2_numba.training.finite import first_not_finite

PIECE = 1 << 24  # numbers copied to the host at a time

_BLOCK = ("ln1", "qkv", "atty", "residual2", "ln2", "fch", "fch_gelu", "residual3")  # a block's activations, in order of computation
_BLOCK_GRADIENTS = (
    "fcprojw", "fcprojb", "fcw", "fcb", "ln2w", "ln2b", "attprojw", "attprojb", "qkvw", "qkvb", "ln1w", "ln1b",
)  # fmt: skip


def explain(model, micro_batches):
    """Make a step again and return one line of text about the first value that is not finite.

    model          GPT2 with the parameters of that step; its gradients are overwritten, its parameters are not changed
    micro_batches  [(inputs, targets), ...] of the step, those of this process
    All processes of the group call it; all return the finding of the first that has one.
    """
    finding = _first([("parameter", *named) for named in _parameters(model)])
    model.zero_grad()
    for inputs, targets in micro_batches:  # to the end, whatever is found: ZeRO's stage 2 exchanges gradients in every micro-step
        model.forward(inputs)
        finding = finding or _first([("activation", *named) for named in _activations(model, inputs.shape)])
        model.backward(targets, len(micro_batches), last=False)
        losses = model.activations(*inputs.shape).losses
        finding = finding or _first([("activation", "losses", None, losses)])
        finding = finding or _first([("gradient", *named) for named in _gradients(model)])
    model.discard_losses()
    findings = [f"{name}: {found}" for name, found in zip(model.group.names, model.group.gather(finding)) if found]
    if not findings:
        return "every parameter, activation and gradient is finite: it is the sum of the losses or of the squares that overflows"
    return findings[0] if model.group.ranks > 1 else finding


def first_in(array):
    """(flat index, value) of the first infinity or NaN in an array on the host or the device; None if there is none."""
    flat = array.reshape((math.prod(array.shape),))
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        found = first_not_finite(piece if on_host(piece) else copy_to_host(piece))
        if found:
            return start + found[0], found[1]
    return None


def _first(named_arrays):
    """Text about the first value that is not finite in (kind, name, block or None, array) tuples; None if there is none."""
    for kind, name, block, array in named_arrays:
        found = first_in(array)
        if found:
            at, value = found
            index = ", ".join(str(int(i)) for i in np.unravel_index(at, array.shape))
            where = "" if block is None else f" of block {block}"
            return f"the first is {kind} {name}{where}, which is {value} at [{index}]"
    return None


def _parameters(model):
    """(name, block, array) of every parameter tensor."""
    for name, tensors in vars(model.params).items():
        yield from [(name, None, tensors)] if name in ONCE else [(name, block, tensor) for block, tensor in enumerate(tensors)]


def _activations(model, shape):
    """(name, block, array) of what the forward pass has kept of a batch of that shape, in order of computation."""
    acts = model.activations(*shape)
    kept = [name for name in _BLOCK if name not in SHARED_BY_BLOCKS[model.options.recompute]]
    yield "encoded", None, acts.encoded
    for block in range(model.config.L):
        yield from ((name, block, getattr(acts, name)[block]) for name in kept)
    yield "lnf", None, acts.lnf
    yield "logits", None, acts.logits


def _gradients(model):
    """(name, block, array) of this process's gradients, in the order in which the backward pass reaches them."""
    flat, shards = model.raw("grads"), model.sharing.grads
    arrays = {(part.name, part.layer): flat[local : local + length] for local, _, length, part in shards.parts() if length}
    order = [("lnfw", 0), ("lnfb", 0)]
    order += [(name, block) for block in reversed(range(model.config.L)) for name in _BLOCK_GRADIENTS]
    for name, block in [*order, ("wpe", 0), ("wte", 0)]:
        if (name, block) in arrays:
            yield name, None if name in ONCE else block, arrays[name, block]
