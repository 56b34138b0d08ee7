"""Finds the first infinity or NaN of a step whose loss or gradient norm is not finite.

The step is recomputed, and its arrays are examined in the order in which they are computed: parameters, then what every layer keeps for the
backward pass, then the gradients, from the last layer to the first.
"""

import math

import numpy as np

from gpt2_numba.config import ONCE
from gpt2_numba.float8_memory import shared_level
from gpt2_numba.gpu.backend import copy_to_host, on_host
from gpt2_numba.memory_plan import SHARED_BY_BLOCKS
from gpt2_numba.training.finite import first_not_finite

PIECE = 1 << 24  # numbers copied to the host at a time

_BLOCK = ("ln1", "qkv", "atty", "residual2", "ln2", "fch", "fch_gelu", "residual3")  # a block's activations, in order of computation
_BLOCK_GRADIENTS = (
    "fcprojw", "fcprojb", "fcw", "fcb", "ln2w", "ln2b", "attprojw", "attprojb", "qkvw", "qkvb", "ln1w", "ln1b",
)  # fmt: skip


def explain(model, micro_batches):
    """Recompute a step and return one line of text about its first value that is not finite.

    model          GPT2 with the parameters of that step, or of the next: the GPU may be one update ahead. Its gradients are overwritten
    micro_batches  [(inputs, targets), ...] of the step, those of this process
    All processes of the group call it; all return the finding of the first that has one.
    """
    finding = _first(model, "parameter", _parameters(model))
    inputs, consequence = _first_bad_micro_batch(model, micro_batches)
    if inputs is not None and not finding:
        model.forward(inputs)  # again, since the backward pass has overwritten the logits
        finding = _first(model, "activation", _activations(model, inputs.shape)) or consequence
    findings = model.group.gather(finding)
    if not any(findings):
        return "everything is finite: a sum had overflowed, the update after it has changed that, or the machine had made an error"
    name, finding = next((name, finding) for name, finding in zip(model.group.names, findings) if finding)
    return finding if model.group.ranks == 1 else f"{name}: {finding}"


def _first_bad_micro_batch(model, micro_batches):
    """(its inputs, text about its first loss or gradient that is not finite), or (None, None)."""
    bad = None, None
    model.zero_grad()
    for inputs, targets in micro_batches:  # to the end, whatever is found: ZeRO's stage 2 exchanges gradients in every micro-step
        model.forward(inputs)
        model.backward(targets, len(micro_batches), last=False)
        if bad[0] is None:
            losses = [("losses", None, model.activations(*inputs.shape).losses)]
            consequence = _first(model, "activation", losses) or _first(model, "gradient", _gradients(model))
            bad = (inputs, consequence) if consequence else bad
    model.discard_losses()
    return bad


def first_in(array):
    """(flat index, value) of the first infinity or NaN in an array on the host or the device; None if there is none."""
    flat = array.reshape((math.prod(array.shape),))
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        found = first_not_finite(piece if on_host(piece) else copy_to_host(piece))
        if found:
            return start + found[0], found[1]
    return None


def _first(model, kind, named_arrays):
    """Text about the first value that is not finite in (name, block or None, array) tuples; None if there is none."""
    for name, block, array in named_arrays:
        where = "" if block is None else f" of block {block}"
        model.group.doing(f"looking for infinity and NaN: {kind} {name}{where}")
        found = first_in(array)
        if found:
            at, value = found
            index = ", ".join(str(int(i)) for i in np.unravel_index(at, array.shape))
            return f"the first number that is not finite is {value}, in {kind} {name}{where} at [{index}]"
    return None


def _parameters(model):
    """(name, block, array) of every parameter tensor."""
    for name, tensors in vars(model.params).items():
        yield from [(name, None, tensors)] if name in ONCE else [(name, block, tensor) for block, tensor in enumerate(tensors)]


def _activations(model, shape):
    """(name, block, array) of what the forward pass has kept of a batch of that shape, in order of computation."""
    acts = model.activations(*shape)
    kept = [name for name in _BLOCK if name not in SHARED_BY_BLOCKS[shared_level(model.options)]]
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
