"""The arrays that a training with factors of eight bits has beyond those of memory_plan.py (layers/fast/float8.py: what they are for)."""

import math
from types import SimpleNamespace

import numpy as np

from gpt2_numba.config import parameter_shapes
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.float8 import FLOAT8_BITS
from gpt2_numba.gpu.quantize import MULTIPLE
from gpt2_numba.layers.fast.float8 import Factors, front

LINEAR_LAYERS = "qkv", "attproj", "fc", "fcproj"
FACTORS = 3  # of a layer: inp, dout, weight
SCALE_ALIGNMENT = 4  # elements: cuBLASLt refuses a scale whose address is not a multiple of 16 bytes
ROUNDED_AGAIN = {0: (), 1: ("fcproj",), 2: ("fcproj", "qkv", "fc")}  # by options.recompute: whose inp is not kept, but rounded again


def shared_level(options):
    """The key of memory_plan.SHARED_BY_BLOCKS. With eight bits the outputs of GELU and LayerNorms are never kept, whatever is recomputed."""
    return 2 if options.float8 else options.recompute


def weight_shapes(config):
    """Linear layer -> (OC, C)."""
    return {name: parameter_shapes(config)[f"{name}w"][1:] for name in LINEAR_LAYERS}


def plan_float8(arena, config, N, options):
    """Add the arrays to an Arena. N: B * T, the most rows of a batch. Raises UserError if sizes or other Options do not go with float8."""
    if options.precision != "bf16" or options.gelu_fusion or not options.kernel_set.fused:
        raise UserError("float8 needs the fast kernels, the precision bf16, and gelu_fusion 0: the GELU has a kernel of its own (-ge 0)")
    L, C, shapes = config.L, config.C, weight_shapes(config)
    if C % MULTIPLE or N % MULTIPLE:
        raise UserError(f"fp8 needs channels and tokens of a micro-batch (-b times -t) in multiples of {MULTIPLE}, got {C} and {N}")
    for name in ("weights8", "weights8_transposed"):
        arena.add("eight-bit weights", name, (L, sum(map(math.prod, shapes.values()))), FLOAT8_BITS, apart=True)
    for name, (_, columns) in shapes.items():
        copies = 1 if name in ROUNDED_AGAIN[options.recompute] else L
        arena.add("activations", f"{name}_inp8", (copies, columns * N), FLOAT8_BITS, apart=True)
    for name in ("scratch8", "scratch8_transposed"):
        arena.add("logits and scratch", name, (4 * C * N,), FLOAT8_BITS)
    for name in ("largest", "inverse_scales"):
        arena.add("logits and scratch", name, (FACTORS, L * len(LINEAR_LAYERS), SCALE_ALIGNMENT), np.float32)


def factor_views(memory, config, N):
    """The Factors for a batch of N rows: attributes by linear layer, each a list with an entry for each block.

    memory: name -> array, those of plan_float8; N at most what it was planned for
    """
    views, start = SimpleNamespace(), 0
    for number, (name, (OC, C)) in enumerate(weight_shapes(config).items()):
        stop, kept, layers = start + OC * C, memory[f"{name}_inp8"], []
        for l in range(config.L):
            place = l * len(LINEAR_LAYERS) + number
            layers.append(
                Factors(
                    weight=memory["weights8"][l][start:stop].reshape((OC, C)),
                    weight_transposed=memory["weights8_transposed"][l][start:stop].reshape((C, OC)),
                    inp_transposed=front(kept[l % kept.shape[0]], (C, N)),
                    scratch=memory["scratch8"],
                    scratch_transposed=memory["scratch8_transposed"],
                    largest=_places(memory["largest"], place),
                    inverse_scales=_places(memory["inverse_scales"], place),
                )
            )
        setattr(views, name, layers)
        start = stop
    return views


def _places(array, place):
    """The entries of inp, dout and weight, each (1,), of an array (3, 4 L, SCALE_ALIGNMENT)."""
    return tuple(array[factor, place][:1] for factor in range(FACTORS))
