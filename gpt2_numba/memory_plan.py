"""Which arrays a model in training has, and how much memory they take: planned first, so that what does not fit is refused at once.

Everything lies in one arena (gpu/arena.py), allocated once. N = B * T; an activation is an (N, channels) array, one row a token.

Recompute levels save memory: 0 keeps everything for backward, 1 computes the GELU again, 2 the LayerNorms as well. Then all blocks share one
array for what is computed again.
"""

import math

import numpy as np

from gpt2_numba.config import count_parameters
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import Arena
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32
from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.layers.fast.attention import attention_scratch_size
from gpt2_numba.layers.fast.encoder import encoder_scratch_size, most_pieces
from gpt2_numba.layers.fast.gelu import gelu_scratch_size
from gpt2_numba.layers.fast.global_norm import BLOCKS as FAST_PARTIALS
from gpt2_numba.layers.fast.layernorm import layernorm_scratch_size
from gpt2_numba.layers.fast.matmul import matmul_scratch_size
from gpt2_numba.layers.global_norm import PARTIALS
from gpt2_numba.parallel.gradients import BUFFERS
from gpt2_numba.parallel.shards import Sharing

STEP_RESULTS = 4  # numbers that a step sends to the host: norm of the gradients, scale that clips them, mean loss, requests to stop
STATISTICS = ("ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd", "lse")  # activations that are float32 in any precision


def activation_shapes(config, B, T):
    """What a block keeps for backward, name -> shape: of the model's type, STATISTICS float32."""
    N, C, NH = B * T, config.C, config.NH
    return {
        "ln1": (N, C),  # LayerNorm's output
        "ln1_mean": (N,),
        "ln1_rstd": (N,),
        "qkv": (N, 3 * C),  # queries, keys, values
        "lse": (B, NH, T),  # logarithm of the sum by which a query's attention weights are divided
        "atty": (N, C),  # attention's output
        "residual2": (N, C),  # the residual stream after attention
        "ln2": (N, C),
        "ln2_mean": (N,),
        "ln2_rstd": (N,),
        "fch": (N, 4 * C),  # before the GELU
        "fch_gelu": (N, 4 * C),  # after it
        "residual3": (N, C),  # the residual stream after the MLP
    }


def transient_shapes(config, B, T, fused):
    """Arrays that are needed briefly, as sets that share one piece of memory, since no two of them are needed at the same time."""
    N, C = B * T, config.C
    in_forward = {"branch": (N, C)}
    at_the_end = {"logits": (N, config.Vp)}
    if fused:
        return in_forward, at_the_end, {"dfch": (N, 4 * C), "dqkv": (N, 3 * C)}
    return in_forward, at_the_end, {"dfch": (N, 4 * C)}, {"dqkv": (N, 3 * C), "datty": (N, C)}


def aligned(count):
    """`count` elements, rounded up to 256 bytes of bfloat16."""
    return -(-count // 128) * 128


def plan_memory(config, B, T, precision="fp32", recompute=1, master_weights=True, sharing=None, fused=True):
    """All arrays of a model in training, as an Arena that has not been allocated yet.

    sharing  a Sharing, by default nothing is shared out        fused  the fast kernels in the fused order, which need scratch
    """
    real = FLOAT32 if precision == "fp32" else BFLOAT16_BITS
    sharing = sharing or Sharing(config)
    N, C, count, own = B * T, config.C, count_parameters(config), sharing.state.local_count()
    arena = Arena()
    arena.add("parameters", "params", (count,), real)
    arena.add("gradients", "grads", (sharing.grads.local_count(),), real)
    if sharing.stage == 2:
        arena.add("gradients", "layer_grads", (BUFFERS, sum(segment.length for segment in sharing.layer_matrices(0))), real)
    arena.add("AdamW's m and v", "m", (own,), FLOAT32)
    arena.add("AdamW's m and v", "v", (own,), FLOAT32)
    if precision == "bf16" and master_weights:
        arena.add("master weights", "master", (own,), FLOAT32)
    shared_by_blocks = {1: ("fch_gelu",), 2: ("fch_gelu", "ln1", "ln2")}.get(recompute, ())
    for name, shape in activation_shapes(config, B, T).items():
        copies = 1 if name in shared_by_blocks else config.L
        arena.add("activations", name, (copies, math.prod(shape)), FLOAT32 if name in STATISTICS else real)
    arena.add("activations", "encoded", (N * C,), real)
    arena.add("activations", "lnf", (N * C,), real)
    arena.add("activations", "lnf_mean", (N,), FLOAT32)
    arena.add("activations", "lnf_rstd", (N,), FLOAT32)
    arena.add("activations", "losses", (N,), FLOAT32)
    transient = max(sum(aligned(math.prod(s)) for s in shapes.values()) for shapes in transient_shapes(config, B, T, fused))
    arena.add("logits and scratch", "transient", (transient,), real)
    arena.add("logits and scratch", "dresidual", (N * C,), real)
    arena.add("logits and scratch", "dbranch", (N * C,), real)
    for name in ("inputs", "targets"):
        arena.add("tokens", name, (N,), np.int32)
    arena.add("update", "step_results", (STEP_RESULTS,), FLOAT32)
    arena.add("update", "norm_partials", (FAST_PARTIALS if fused else PARTIALS,), FLOAT32)
    if fused:
        _plan_for_fast_kernels(arena, config, B, T, real, sharing)
    return arena


def _plan_for_fast_kernels(arena, config, B, T, real, sharing):
    """Scratch, the places of each token, and what a recorded step reads from memory because it changes from step to step."""
    N, C = B * T, config.C
    sums = max(layernorm_scratch_size(C), matmul_scratch_size(4 * C), gelu_scratch_size(4 * C), encoder_scratch_size(N, C))
    arena.add("logits and scratch", "sums", (sums,), FLOAT32)
    arena.add("logits and scratch", "att_scratch", (attention_scratch_size(B, T, config.NH, config.HS, real),), FLOAT32)
    arena.add("tokens", "places", (N,), np.int32)
    arena.add("tokens", "pieces", (most_pieces(N, config.V) + 1, 3), np.int32)
    arena.add("update", "step_values", (3,), FLOAT32)
    arena.add("update", "rounding_seed", (1,), np.uint32)
    arena.add("update", "ranges", sharing.update_ranges().shape, np.int64)
    arena.add("update", "norm_ranges", sharing.norm_ranges().shape, np.int64)


def memory_needed(config, B, T, precision, recompute, master_weights, sharing=None, fused=True):
    """Bytes of GPU memory that a model in training takes, cuBLASLt's workspace included."""
    return plan_memory(config, B, T, precision, recompute, master_weights, sharing, fused).nbytes + WORKSPACE_BYTES


def largest_batch(config, T, precision, recompute, master_weights, free_bytes, sharing=None, fused=True):
    """The largest B for which a model in training fits into `free_bytes` of GPU memory; 0 if none does."""

    def fits(B):
        return memory_needed(config, B, T, precision, recompute, master_weights, sharing, fused) <= free_bytes

    fitting, too_large = 0, 1
    while fits(too_large):
        fitting, too_large = too_large, 2 * too_large
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def check_memory(config, B, T, precision, recompute, master_weights, free_bytes, sharing=None, fused=True):
    """Raise UserError if a model in training does not fit into `free_bytes` of GPU memory; the message says what would fit."""

    def needed(batch, level):
        return memory_needed(config, batch, T, precision, level, master_weights, sharing, fused)

    if needed(B, recompute) <= free_bytes:
        return
    message = (
        f"too little GPU memory: {config} with B={B}, T={T}, {precision}, recompute {recompute} needs "
        f"{needed(B, recompute) / 2**30:.2f} GiB, {free_bytes / 2**30:.2f} GiB are free. "
    )
    if recompute < 2 and needed(B, 2) <= free_bytes:
        raise UserError(message + "Recompute 2 (-r 2) would fit")
    fitting = largest_batch(config, T, precision, recompute, master_weights, free_bytes, sharing, fused)
    if fitting:
        raise UserError(message + f"A micro-batch of {fitting} (-b {fitting}) would fit, more of them to a step keep the total")
    raise UserError(message + "Not even a micro-batch of 1 fits: take a shorter context (-t), a smaller model (-e) or bf16")
