"""Attention: from barriers for every key to a weight matrix that never reaches memory.

forward    plain                 a block per query, a thread per channel: a sum over the block for every key, some eight barriers long
           warp_per_query        a warp per query: the sum passes from register to register, five shuffles and no barrier
           whole_matrices        the library's matrix products: a key is read once for many queries. But 4 T² bytes per head in memory
           sequence_at_a_time    the same for a few sequences at a time: 1 / B of the memory, and the weights stay in the cache
           fast                  tile by tile on tensor cores, weights in registers: layers/fast/attention (tf32.py; bfloat16: mma.py, wgmma.py)
backward   plain                 a block per query, then a block per key; two sums over the block for every pair
           warp_per_token        a warp instead of a block, and out · dout once per query instead of once per pair
           sequence_at_a_time    five matrix products by the library, with weights recomputed from lse instead of read
           fast                  as in forward

B=4, NH=12, T=1,024, HS=64 in float32 (one H100, 2026-11-28), ms: plain 11.4 forward, 42.2 backward; a warp per token 3.7, 9.7;
whole_matrices 0.56; sequence_at_a_time 0.76, 1.7. In bfloat16 at B=8: sequence_at_a_time 1.56, 3.9; fast 0.06, 0.16.
"""

import math

import numpy as np
from numba import cuda, float32

from dev.kernels import buffer, in_all_precisions, in_both_precisions
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import exp, log, maximum
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.gpu.reductions import LOWEST, WARP_SIZE, warp_sum
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers import attention
from gpt2_numba.layers.attention import KEY, QUERY, VALUE
from gpt2_numba.layers.fast import attention as fast
from gpt2_numba.layers.fast.attention import matmuls
from gpt2_numba.layers.fast.attention.delta import compute_delta

ZERO, ONE = np.float32(0), np.float32(1)
WARPS = 1 if SIMULATING else 4  # per block: neighbouring queries of one head, which read the same keys at about the same time
CHANNELS = 4  # of a head, per lane: a lane's channel i is the head's channel lane + 32 i, of at most 128


# ---------------------------------------------------------------------------------------------------- a warp per token
#
# A vector of HS channels is spread over the lanes of a warp, CHANNELS per lane, in registers. All lanes get the dot product of two vectors.


@cuda.jit(device=True)
def load_vector(x, vector):
    """The lane's channels of a vector in memory; 0 beyond its end, which adds nothing to a dot product."""
    for i in range(CHANNELS):
        e = cuda.threadIdx.x + i * WARP_SIZE
        x[i] = vector[e] if e < vector.shape[0] else ZERO


@cuda.jit(device=True)
def store_vector(vector, x, factor):
    """vector = factor x."""
    for i in range(CHANNELS):
        e = cuda.threadIdx.x + i * WARP_SIZE
        if e < vector.shape[0]:
            vector[e] = x[i] * factor


@cuda.jit(device=True)
def dot(x, y):
    """x · y, in all lanes. No barrier: the threads of a warp exchange registers."""
    total = ZERO
    for i in range(CHANNELS):
        total += x[i] * y[i]
    return warp_sum(total)


@cuda.jit
def warp_per_query_kernel(out, lse, qkv, scale):
    """The plain kernel with a warp in place of a block: lane = threadIdx.x, query = blockIdx.x * WARPS + threadIdx.y."""
    t, h, b = cuda.blockIdx.x * WARPS + cuda.threadIdx.y, cuda.blockIdx.y, cuda.blockIdx.z
    if t >= qkv.shape[1]:  # the whole warp returns together
        return
    q, k, v = cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32)
    weighted = cuda.local.array(CHANNELS, float32)
    load_vector(q, qkv[b, t, QUERY, h])
    for i in range(CHANNELS):
        weighted[i] = ZERO
    largest, total = LOWEST, ZERO
    for s in range(t + 1):
        load_vector(k, qkv[b, s, KEY, h])
        load_vector(v, qkv[b, s, VALUE, h])
        score = dot(q, k) * scale
        previous = largest
        largest = maximum(previous, score)
        rescale, exponential = exp(previous - largest), exp(score - largest)
        total = total * rescale + exponential
        for i in range(CHANNELS):
            weighted[i] = weighted[i] * rescale + exponential * v[i]
    store_vector(out[b, t, h], weighted, ONE / total)
    if cuda.threadIdx.x == 0:
        lse[b, h, t] = largest + log(total)


@cuda.jit
def warp_per_query_backward_kernel(dqkv, dout, delta, lse, qkv, scale):
    """dq of the warp's query: dscore[t, s] = att[t, s] (dout[t] · v[s] - delta[t])."""
    t, h, b = cuda.blockIdx.x * WARPS + cuda.threadIdx.y, cuda.blockIdx.y, cuda.blockIdx.z
    if t >= qkv.shape[1]:
        return
    q, k, v = cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32)
    dq, dout_t = cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32)
    load_vector(q, qkv[b, t, QUERY, h])
    load_vector(dout_t, dout[b, t, h])
    for i in range(CHANNELS):
        dq[i] = ZERO
    for s in range(t + 1):
        load_vector(k, qkv[b, s, KEY, h])
        load_vector(v, qkv[b, s, VALUE, h])
        att = exp(dot(q, k) * scale - lse[b, h, t])
        dscore = att * (dot(dout_t, v) - delta[b, h, t])
        for i in range(CHANNELS):
            dq[i] += dscore * k[i]
    store_vector(dqkv[b, t, QUERY, h], dq, scale)


@cuda.jit
def warp_per_key_backward_kernel(dqkv, dout, delta, lse, qkv, scale):
    """dk and dv of the warp's key."""
    s, h, b = cuda.blockIdx.x * WARPS + cuda.threadIdx.y, cuda.blockIdx.y, cuda.blockIdx.z
    if s >= qkv.shape[1]:
        return
    q, k, v = cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32)
    dk, dv, dout_t = cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32), cuda.local.array(CHANNELS, float32)
    load_vector(k, qkv[b, s, KEY, h])
    load_vector(v, qkv[b, s, VALUE, h])
    for i in range(CHANNELS):
        dk[i] = dv[i] = ZERO
    for t in range(s, qkv.shape[1]):
        load_vector(q, qkv[b, t, QUERY, h])
        load_vector(dout_t, dout[b, t, h])
        att = exp(dot(q, k) * scale - lse[b, h, t])
        dscore = att * (dot(dout_t, v) - delta[b, h, t])
        for i in range(CHANNELS):
            dv[i] += att * dout_t[i]
            dk[i] += dscore * q[i]
    store_vector(dqkv[b, s, KEY, h], dk, scale)
    store_vector(dqkv[b, s, VALUE, h], dv, ONE)


def warp_per_query(out, lse, qkv):
    """A warp per query. The plain kernel is bound by waiting: the block passes some eight barriers per key to add up HS values."""
    kernel, scale, by_head = _by_head(warp_per_query_kernel, out, lse)
    kernel(by_head(out), lse, by_head(qkv, 3), scale)


def warp_per_token(dqkv, dout, out, lse, qkv):
    """Warps as in warp_per_query, and delta[t] = out[t] · dout[t] computed beforehand. The plain kernel waits twice per pair of query and
    key, and reads out for each pair to recompute dout[t] · out[t], which is the same for all keys.
    """
    delta = compute_delta(buffer("delta", lse.size), dout, out, lse)
    for kernel in warp_per_query_backward_kernel, warp_per_key_backward_kernel:
        configured, scale, by_head = _by_head(kernel, out, lse)
        configured(by_head(dqkv, 3), by_head(dout), delta, lse, by_head(qkv, 3), scale)


def _by_head(kernel, out, lse):
    """The kernel with its launch shape, the scale of the scores, and a function that views rows as (B, T, NH, HS) or (B, T, 3, NH, HS)."""
    (B, NH, T), HS = lse.shape, out.shape[1] // lse.shape[1]
    if HS > CHANNELS * WARP_SIZE:
        raise ValueError(f"heads of this rung have at most {CHANNELS * WARP_SIZE} channels, got {HS}")
    configured = kernel[(ceil_div(T, WARPS), NH, B), (WARP_SIZE, WARPS), compute_stream()]
    return configured, np.float32(1 / math.sqrt(HS)), lambda rows, *parts: rows.reshape(B, T, *parts, NH, HS)


# --------------------------------------------------------------------------------------------------- matrix products


@in_both_precisions
def whole_matrices(out, lse, qkv):
    """All weights in memory, one matrix per head, so that the library can multiply them. A warp per query is bound by its loads: it reads
    all keys and values for one query, whereas a matrix product uses each value it reads for a tile of queries.
    """
    (B, NH, T), HS = lse.shape, out.shape[1] // lse.shape[1]
    heads, result, att = (buffer(name, *matmuls.matrix_shapes(B, T, NH, HS)[name]) for name in ("heads", "result", "att"))
    matmuls._split(heads, qkv)
    q, k, v = matmuls._three_batches(heads)
    weights = matmuls._as_batch(att)
    gemm(weights, q, k, rows=T, columns=T, inner=HS, transpose_b=True, alpha=1 / math.sqrt(HS))
    matmuls._launch_softmax(matmuls.causal_softmax_forward_kernel, att, lse)
    gemm(matmuls._as_batch(result), weights, v, rows=T, columns=HS, inner=T)
    matmuls._join(out, result)


@in_both_precisions
def sequence_at_a_time(out, lse, qkv):
    """As many sequences at a time as the cache holds: one at T = 1,024. whole_matrices is limited by the memory that it needs: 1.6 GB of
    weights at B=32, NH=12, and twice that in backward. If there is room for them it is faster, since its few launches fill the GPU.
    """
    matmuls.attention_forward(out, lse, qkv, _scratch(matmuls.scratch_size, lse, out))


@in_both_precisions
def sequence_at_a_time_backward(dqkv, dout, out, lse, qkv):
    """The gradients as matrix products, a few sequences at a time. A warp per token is bound by its loads: a whole head for one token."""
    matmuls.attention_backward(dqkv, dout, out, lse, qkv, _scratch(matmuls.scratch_size, lse, out))


@in_all_precisions
def fast_forward(out, lse, qkv):
    """Tile by tile: the weights are computed, used and discarded in registers. Before, they went through the cache for every product, and
    the softmax waited for the products. In float32 without TF32 this is sequence_at_a_time itself.
    """
    fast.attention_forward(out, lse, qkv, _scratch(fast.attention_scratch_size, lse, out, qkv.dtype))


@in_all_precisions
def fast_backward(dqkv, dout, out, lse, qkv):
    """The weights are recomputed from lse, tile by tile, in registers. In float32 without TF32 this is sequence_at_a_time_backward."""
    fast.attention_backward(dqkv, dout, out, lse, qkv, _scratch(fast.attention_scratch_size, lse, out, qkv.dtype))


def _scratch(size, lse, out, *dtype):
    (B, NH, T), C = lse.shape, out.shape[1]
    return buffer("scratch", size(B, T, NH, C // NH, *dtype))


LADDER = {
    "attention_forward": (attention.attention_forward, warp_per_query, whole_matrices, sequence_at_a_time, fast_forward),
    "attention_backward": (attention.attention_backward, warp_per_token, sequence_at_a_time_backward, fast_backward),
}
