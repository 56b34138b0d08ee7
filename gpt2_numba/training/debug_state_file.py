"""Debug states: one batch with its expected logits, loss and gradients, in llm.c's format.

    256 int32, little-endian   [0] = 20240327, [1] = 2 (version), [2] = B, [3] = T, the rest 0
    int32                      inputs (B, T), targets (B, T)
    float32                    logits (B, T, V) without the padding, loss, then the gradients of the 16 tensors in the
                               order of config.parameter_shapes, wte with its padding

A debug state belongs to one model file. The program that made it, for instance with PyTorch, is the reference for this one.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.errors import UserError

MAGIC = 20240327
VERSION = 2

_REMEDY = "Give a debug state of this model, *_debug_state.bin"


@dataclass(eq=False)
class DebugState:
    """One batch and its results.

    inputs, targets  int32 (B, T), tokens
    logits           float32 (B, T, V)
    loss             mean over the batch, nats per token
    gradients        of that loss: name -> float32 array of the parameter's shape
    """

    inputs: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    loss: float
    gradients: dict


def write_debug_state(path, config, shapes, state):
    """Write a DebugState of a model to `path`; an older file is replaced.

    config  GPT2Config    shapes  name -> shape, from config.parameter_shapes
    Raises ValueError if the shape of an array does not match these, OSError if the file cannot be written.
    """
    B, T = state.inputs.shape
    _check(state.targets, (B, T), "targets")
    _check(state.logits, (B, T, config.V), "logits")
    if set(state.gradients) != set(shapes):
        raise ValueError(f"write_debug_state: the gradients must be {sorted(shapes)}, got {sorted(state.gradients)}")
    for name, shape in shapes.items():
        _check(state.gradients[name], shape, f"gradient of {name}")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = MAGIC, VERSION, B, T
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for tokens in (state.inputs, state.targets):
            file.write(np.asarray(tokens, dtype="<i4").tobytes())
        floats = [state.logits, state.loss, *(state.gradients[name] for name in shapes)]
        for values in floats:
            file.write(memoryview(np.ascontiguousarray(values, dtype="<f4")))


def read_debug_state(path, config, shapes):
    """Return the DebugState at `path`; its arrays are read-only memory maps.

    config  GPT2Config    shapes  name -> shape, from config.parameter_shapes
    Raises UserError if the file is missing, is not exactly a debug state, or belongs to a model of other sizes.
    """
    path = Path(path)
    header = read_header(path, "a debug state", magic=MAGIC, versions=(VERSION,), remedy=_REMEDY)
    B, T = int(header[2]), int(header[3])
    if B < 1 or not 1 <= T <= config.max_T:
        raise UserError(
            f"{path}: a debug state of {config} must hold at least one row of 1 to {config.max_T} tokens, this one has B={B}, T={T}. "
            f"{_REMEDY}"
        )
    float_shapes = [(B, T, config.V), (1,), *shapes.values()]
    count = sum(math.prod(shape) for shape in float_shapes)
    expected, size = HEADER_BYTES + 2 * 4 * B * T + 4 * count, path.stat().st_size
    if size != expected:
        raise UserError(
            f"{path}: a debug state of {config} with B={B}, T={T} must have {expected} bytes, this file has {size}: it was cut off, or "
            f"belongs to another model. {_REMEDY}"
        )
    inputs, targets = np.memmap(path, dtype="<i4", mode="r", offset=HEADER_BYTES, shape=(2, B, T))
    low, high = min(inputs.min(), targets.min()), max(inputs.max(), targets.max())
    if low < 0 or high >= config.V:
        raise UserError(f"{path}: tokens must be from 0 to V - 1 = {config.V - 1}, this file has {low} to {high}. {_REMEDY}")
    flat = np.memmap(path, dtype="<f4", mode="r", offset=HEADER_BYTES + 2 * 4 * B * T, shape=(count,))
    ends = np.cumsum([math.prod(shape) for shape in float_shapes])[:-1]
    pieces = [piece.reshape(shape) for piece, shape in zip(np.split(flat, ends), float_shapes)]
    logits, loss, *gradients = pieces
    return DebugState(inputs, targets, logits, loss=float(loss[0]), gradients=dict(zip(shapes, gradients)))


def _check(array, shape, name):
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"write_debug_state: {name} must be {tuple(shape)}, got {tuple(array.shape)}")
