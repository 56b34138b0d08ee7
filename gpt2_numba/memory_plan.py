"""Which arrays a model in training has: their names, shapes and types, planned before anything is allocated (memory_fit.py: do they fit?).

All arrays lie in one arena (gpu/arena.py), allocated once. N = B * T; an activation is an (N, channels) array, one row per token.

What forward computes, backward needs again. Recomputing part of it saves memory: with options.recompute = 1 the GELUs are computed a second
time, with 2 the LayerNorms as well. All blocks then share one array for what is recomputed.
"""

import math
from types import SimpleNamespace

import numpy as np

from gpt2_numba.config import count_parameters
from gpt2_numba.float8_memory import plan_float8, shared_level
from gpt2_numba.gpu.arena import Arena
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32
from gpt2_numba.integers import round_up
from gpt2_numba.layers.fast.attention import attention_scratch_size
from gpt2_numba.layers.fast.encoder import encoder_scratch_size, most_pieces
from gpt2_numba.layers.fast.gelu import gelu_scratch_size
from gpt2_numba.layers.fast.global_norm import BLOCKS as FAST_PARTIALS
from gpt2_numba.layers.fast.layernorm import layernorm_scratch_size
from gpt2_numba.layers.fast.matmul import matmul_scratch_size
from gpt2_numba.layers.global_norm import PARTIALS
from gpt2_numba.parallel.gradients import BUFFERS
from gpt2_numba.parallel.shards import Sharing

STEP_RESULTS = 4  # numbers that a step sends to the host: gradient norm, the scale that clips it, mean loss, requests to stop
STATISTICS = ("ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd", "lse")  # activations that are float32 in any precision
SHARED_BY_BLOCKS = {0: (), 1: ("fch_gelu",), 2: ("fch_gelu", "ln1", "ln2")}  # by options.recompute
ALIGNMENT = 128  # elements: 256 bytes of bfloat16


def activation_shapes(config, B, T):
    """What every block keeps for backward, name -> shape. STATISTICS are float32, the others have the type of the parameters."""
    N, C, NH = B * T, config.C, config.NH
    return {
        "ln1": (N, C),  # LayerNorm's output
        "ln1_mean": (N,),
        "ln1_rstd": (N,),
        "qkv": (N, 3 * C),  # queries, keys, values
        "lse": (B, NH, T),  # log-sum-exp of each query's scores
        "atty": (N, C),  # attention's output
        "residual2": (N, C),  # the residual stream after attention
        "ln2": (N, C),
        "ln2_mean": (N,),
        "ln2_rstd": (N,),
        "fch": (N, 4 * C),  # the MLP's hidden layer before the GELU
        "fch_gelu": (N, 4 * C),  # and after it
        "residual3": (N, C),  # the residual stream after the MLP
    }


def transient_shapes(config, B, T, fused):
    """Short-lived arrays. The dictionaries share one piece of memory, since no two of them are in use at the same time."""
    N, C = B * T, config.C
    in_forward = {"branch": (N, C)}
    at_the_end = {"logits": (N, config.Vp)}
    if fused:
        return in_forward, at_the_end, {"dfch": (N, 4 * C), "dqkv": (N, 3 * C)}
    return in_forward, at_the_end, {"dfch": (N, 4 * C)}, {"dqkv": (N, 3 * C), "datty": (N, C)}


def plan_memory(config, B, T, options, sharing=None):
    """All arrays of a model in training, as an Arena that has not been allocated yet.

    options  Options        sharing  which part of the state this process keeps (parallel/shards.py); None: all of it
    """
    real = FLOAT32 if options.precision == "fp32" else BFLOAT16_BITS
    sharing, fused = sharing or Sharing(config), options.kernel_set.fused
    N, C, count, own = B * T, config.C, count_parameters(config), sharing.state.local_count()
    arena = Arena(options.guards)
    arena.add("parameters", "params", (count,), real)
    arena.add("gradients", "grads", (sharing.grads.local_count(),), real)
    if sharing.stage == 2:
        arena.add("gradients", "layer_grads", (BUFFERS, sum(segment.length for segment in sharing.layer_matrices(0))), real)
    arena.add("AdamW's m and v", "m", (own,), FLOAT32)
    arena.add("AdamW's m and v", "v", (own,), FLOAT32)
    if options.precision == "bf16" and options.master_weights:
        arena.add("master weights", "master", (own,), FLOAT32)
    for name, shape in activation_shapes(config, B, T).items():
        copies = 1 if name in SHARED_BY_BLOCKS[shared_level(options)] else config.L
        arena.add("activations", name, (copies, math.prod(shape)), FLOAT32 if name in STATISTICS else real, apart=True)
    for name in ("encoded", "lnf"):
        arena.add("activations", name, (N * C,), real)
    for name in ("lnf_mean", "lnf_rstd", "losses"):
        arena.add("activations", name, (N,), FLOAT32)
    transient = max(
        sum(round_up(math.prod(shape), ALIGNMENT) for shape in shapes.values()) for shapes in transient_shapes(config, B, T, fused)
    )
    arena.add("logits and scratch", "transient", (transient,), real)
    arena.add("logits and scratch", "dresidual", (N * C,), real)
    arena.add("logits and scratch", "dbranch", (N * C,), real)
    for name in ("inputs", "targets"):
        arena.add("tokens", name, (N,), np.int32)
    arena.add("update", "step_results", (STEP_RESULTS,), FLOAT32)
    arena.add("update", "norm_partials", (FAST_PARTIALS if fused else PARTIALS,), FLOAT32)
    if fused:
        _plan_for_fast_kernels(arena, config, B, T, real, sharing)
    if options.float8:
        plan_float8(arena, config, N, options)
    return arena


def _plan_for_fast_kernels(arena, config, B, T, real, sharing):
    """Scratch, the positions of each token, and whatever a recorded step reads from memory because it changes from step to step."""
    N, C = B * T, config.C
    of_biases = (matmul_scratch_size(columns) for columns in (C, 3 * C, 4 * C))  # more columns may need less
    sums = max(layernorm_scratch_size(C), gelu_scratch_size(4 * C), encoder_scratch_size(N, C), *of_biases)
    arena.add("logits and scratch", "sums", (sums,), FLOAT32)
    arena.add("logits and scratch", "att_scratch", (attention_scratch_size(B, T, config.NH, config.HS, real),), FLOAT32)
    arena.add("tokens", "places", (N,), np.int32)
    arena.add("tokens", "pieces", (most_pieces(N, config.V) + 1, 3), np.int32)
    arena.add("update", "step_values", (3,), FLOAT32)
    arena.add("update", "rounding_seed", (1,), np.uint32)
    arena.add("update", "ranges", sharing.update_ranges().shape, np.int64)
    arena.add("update", "norm_ranges", sharing.norm_ranges().shape, np.int64)


def activation_views(memory, config, B, T, fused):
    """The activations of a batch of (B, T) tokens, shaped: attributes by name, each a view of the front of an arena's array.

    Those of activation_shapes are lists of L arrays, one for each block; a block's entry may be the same array as another's.
    """
    acts, N, C = SimpleNamespace(), B * T, config.C
    for name, shape in activation_shapes(config, B, T).items():
        buffer, size = memory[name], math.prod(shape)
        copies = [buffer[layer][:size].reshape(shape) for layer in range(buffer.shape[0])]
        setattr(acts, name, [copies[layer % len(copies)] for layer in range(config.L)])
    for name in ("encoded", "lnf", "dresidual", "dbranch"):
        setattr(acts, name, memory[name][: N * C].reshape((N, C)))
    for name in ("lnf_mean", "lnf_rstd", "losses", "targets"):
        setattr(acts, name, memory[name][:N])
    acts.inputs = memory["inputs"][:N].reshape((B, T))
    if fused:
        acts.places = memory["places"][:N]
        acts.pieces = memory["pieces"][: most_pieces(N, config.V) + 1]
    for shapes in transient_shapes(config, B, T, fused):
        start = 0
        for name, shape in shapes.items():
            setattr(acts, name, memory["transient"][start : start + math.prod(shape)].reshape(shape))
            start += round_up(math.prod(shape), ALIGNMENT)
    return acts
