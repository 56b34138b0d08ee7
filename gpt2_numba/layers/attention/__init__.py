"""Causal multi-head self-attention: every token takes a weighted mean of its own value and those of the tokens before it.

Each of the NH heads, of HS = C / NH channels, has a query q, a key k and a value v for every token, HS numbers each. For the query at
position t and the key at position s <= t:

    score[t, s] = q[t] · k[s] / sqrt(HS)
    att[t, s]   = exp(score[t, s]) / Σ_r exp(score[t, r])             the weights: softmax, positive, adding up to 1 over s
    out[t]      = Σ_s att[t, s] v[s]

Sums over keys s or r run up to t, sums over queries t over t >= s.

The weights are T² numbers for each head of each sequence, too many to keep. So for each query forward goes over the keys once and keeps two
running numbers and a running vector: the largest score so far; total = Σ exp(score - largest); weighted = Σ exp(score - largest) v[s]. When
a larger score comes, total and weighted are multiplied by exp(largest before - largest now), which makes them what they would be had the
new largest been subtracted from the start: "online softmax" (Milakov, Gimelshein 2018, arXiv:1805.02867). Subtracting the largest keeps exp
from overflowing, and it cancels at the end: out = weighted / total. Backward can compute any weight again from one number that is saved for
each query, the log of the sum of the exponentials (Dao et al. 2022, "FlashAttention", arXiv:2205.14135; one number since FlashAttention-2):

    lse[t] = log Σ_s exp(score[t, s]) = largest + log(total)          att[t, s] = exp(score[t, s] - lse[t])

Backward. Raise one number by a tiny ε, see how much each number of out moves, multiply by its dout, add up, divide by ε.

    (1) Raise one channel v[s, e]. For every query t >= s, out[t, e] rises by ε att[t, s]:

            dv[s] = Σ_t att[t, s] dout[t]

    (2) Raise score[t, s]. exp(score[t, s]) grows by the factor 1 + ε, and so the sum of all exponentials by the factor 1 + ε att[t, s]. By the
        first, att[t, s] rises by ε att[t, s]; by the second, every att[t, r] falls by ε att[t, s] att[t, r]. So out[t] moves by
        ε att[t, s] (v[s] - Σ_r att[t, r] v[r]) = ε att[t, s] (v[s] - out[t]): from the weighted mean out[t] towards v[s].

            dscore[t, s] = att[t, s] (dout[t] · (v[s] - out[t]))

    (3) Raise one channel q[t, e]. Every score[t, s] rises by ε k[s, e] / sqrt(HS): multiply by dscore[t, s], add up over s. Likewise for k[s, e]:

            dq[t] = Σ_s dscore[t, s] k[s] / sqrt(HS)                  dk[s] = Σ_t dscore[t, s] q[t] / sqrt(HS)

The sum for dq runs over keys, those for dk and dv over queries. So there are two kernels, a block for each query and a block for each key:
every sum belongs to one block, and is made in a fixed order without atomics.

Vaswani et al. 2017, "Attention Is All You Need", section 3.2 (arXiv:1706.03762).

    | array           | shape             | forward | backward                                                              |
    | --------------- | ----------------- | ------- | --------------------------------------------------------------------- |
    | qkv, dqkv       | (N, 3C)           | [r]     | qkv [r], dqkv [w]. A row: q of all heads, then k, then v              |
    | out, dout       | (N, C)            | [w]     | [r], out as forward left it. A row: the heads side by side            |
    | lse             | (B, NH, T) float32| [w]     | [r] as forward left it                                                |

N = B * T rows, one for each token. [r] read, [w] overwritten. The kernels get reshaped views: qkv as
(B, T, 3, NH, HS), out as (B, T, NH, HS).
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import block_sum
from gpt2_numba.layers.attention.on_cpu import attention_backward_on_cpu, attention_forward_on_cpu, by_head

ZERO, MINUS_INFINITY = np.float32(0), np.float32(-np.inf)
QUERY, KEY, VALUE = 0, 1, 2  # third index of qkv (B, T, 3, NH, HS)
SHAPE_HINT = "lse is (B, NH, T), and C is NH * HS."


# ---------------------------------------------------------------------------------------------- reference, in NumPy
#
# by_head(rows, lse, parts) views contiguous rows (N, parts * C) as (parts, B, NH, T, HS): q, k, v (parts = 3), or one array (parts = 1).


def scores_ref(q, k):
    """score[t, s], minus infinity for keys after the query. q, k (B, NH, T, HS)."""
    T, HS = q.shape[2:]
    return np.where(np.tri(T, dtype=bool), q @ k.swapaxes(2, 3) / math.sqrt(HS), -np.inf)


def attention_forward_ref(out, lse, qkv):
    """The definition, with whole (T, T) matrices. Arguments as in the table above; float32 or float64."""
    (q, k, v), (out,) = by_head(qkv, lse, 3), by_head(out, lse, 1)
    scores = scores_ref(q, k)
    largest = scores.max(axis=3)
    lse[:] = largest + np.log(np.exp(scores - largest[..., None]).sum(axis=3))
    out[:] = np.exp(scores - lse[..., None]) @ v


def attention_backward_ref(dqkv, dout, out, lse, qkv):
    """The derivation's three steps. Arguments as in the table above."""
    (q, k, v), (dq, dk, dv) = by_head(qkv, lse, 3), by_head(dqkv, lse, 3)
    (dout,), (out,) = by_head(dout, lse, 1), by_head(out, lse, 1)
    att = np.exp(scores_ref(q, k) - lse[..., None])
    dv[:] = att.swapaxes(2, 3) @ dout  # (1)
    dscores = att * (dout @ v.swapaxes(2, 3) - (dout * out).sum(axis=3)[..., None])  # (2): dout · v[s] - dout · out[t]
    dq[:] = dscores @ k / math.sqrt(q.shape[3])  # (3)
    dk[:] = dscores.swapaxes(2, 3) @ q / math.sqrt(q.shape[3])


# ---------------------------------------------------------------------------------------------------- plain kernels
#
# One block per query (or key) of one head, one thread per channel: here block_sum is the dot product of two vectors of HS channels, and the
# sums over tokens are the loops. block_sum needs a power of two threads, so a head of 80 gets 128. The 48 spare threads must not return
# early, since they have to reach every barrier: they read the last channel, to stay within the arrays, but hold 0 for one factor of every
# dot product (q or k, and dout), and write nothing. The loops are equally long for all threads of a block, so all call block_sum equally
# often.


@cuda.jit(cache=True)
def attention_forward_kernel(out, lse, qkv, scale):
    """out and lse of one query: position t = blockIdx.x, head h = blockIdx.y, sequence b = blockIdx.z.

    Every thread computes the same score, largest and total; only `weighted` is its own channel's.
    """
    t, h, b = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    HS = qkv.shape[4]
    has_channel = cuda.threadIdx.x < HS
    e = min(cuda.threadIdx.x, HS - 1)
    q = qkv[b, t, QUERY, h, e] if has_channel else ZERO

    largest, total, weighted = MINUS_INFINITY, ZERO, ZERO
    for s in range(t + 1):
        score = block_sum(q * qkv[b, s, KEY, h, e]) * scale
        previous = largest
        largest = max(previous, score)
        rescale = math.exp(previous - largest)  # 0 the first time, 1 as long as the largest score stays the same
        exponential = math.exp(score - largest)
        total = total * rescale + exponential
        weighted = weighted * rescale + exponential * qkv[b, s, VALUE, h, e]

    if has_channel:
        out[b, t, h, e] = weighted / total
    if cuda.threadIdx.x == 0:
        lse[b, h, t] = largest + math.log(total)


@cuda.jit(cache=True)
def attention_backward_queries_kernel(dqkv, dout, out, lse, qkv, scale):
    """dq of the query at position t = blockIdx.x: a loop over the keys 0 ... t."""
    t, h, b = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    HS = qkv.shape[4]
    has_channel = cuda.threadIdx.x < HS
    e = min(cuda.threadIdx.x, HS - 1)
    q = qkv[b, t, QUERY, h, e] if has_channel else ZERO
    dout_t = dout[b, t, h, e] if has_channel else ZERO

    dq = ZERO
    for s in range(t + 1):
        k = qkv[b, s, KEY, h, e]
        v = qkv[b, s, VALUE, h, e]
        att = math.exp(block_sum(q * k) * scale - lse[b, h, t])
        dscore = att * block_sum(dout_t * (v - out[b, t, h, e]))
        dq += dscore * k
    if has_channel:
        dqkv[b, t, QUERY, h, e] = dq * scale


@cuda.jit(cache=True)
def attention_backward_keys_kernel(dqkv, dout, out, lse, qkv, scale):
    """dk and dv of the key at position s = blockIdx.x: a loop over the queries s ... T - 1, which look back at it."""
    s, h, b = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    T, HS = qkv.shape[1], qkv.shape[4]
    has_channel = cuda.threadIdx.x < HS
    e = min(cuda.threadIdx.x, HS - 1)
    k = qkv[b, s, KEY, h, e] if has_channel else ZERO
    v = qkv[b, s, VALUE, h, e]

    dk, dv = ZERO, ZERO
    for t in range(s, T):
        q = qkv[b, t, QUERY, h, e]
        dout_t = dout[b, t, h, e] if has_channel else ZERO
        att = math.exp(block_sum(q * k) * scale - lse[b, h, t])
        dscore = att * block_sum(dout_t * (v - out[b, t, h, e]))
        dv += att * dout_t
        dk += dscore * q
    if has_channel:
        dqkv[b, s, KEY, h, e] = dk * scale
        dqkv[b, s, VALUE, h, e] = dv


# -------------------------------------------------------------------------------------------------------- launchers


def attention_forward(out, lse, qkv):
    """Attention over the packed queries, keys and values. NumPy arrays go to on_cpu.py, device arrays to the kernel.

    out [w] (N, C)   lse [w] (B, NH, T), float32   qkv [r] (N, 3C).   Raises ValueError or TypeError if a shape or type does not fit.
    """
    sizes = sizes_of("attention_forward", out, lse)
    check_arrays("attention_forward", sizes, SHAPE_HINT, out=(out, "N C"), lse=(lse, "f32 B NH T"), qkv=(qkv, "N 3C"))
    if on_host(qkv):
        return attention_forward_on_cpu(out, lse, qkv)
    check_float32("attention_forward", qkv)
    configured = _configured(attention_forward_kernel, sizes)
    configured(_heads(out, sizes), lse, _heads(qkv, sizes, 3), _scale(sizes))


def attention_backward(dqkv, dout, out, lse, qkv):
    """Gradient of attention_forward.

    dqkv [w] (N, 3C)   dout [r] (N, C)   out, lse [r] as forward left them   qkv [r] (N, 3C)
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    sizes = sizes_of("attention_backward", out, lse)
    check_arrays(
        "attention_backward", sizes, SHAPE_HINT,
        dqkv=(dqkv, "N 3C"), dout=(dout, "N C"), out=(out, "N C"), lse=(lse, "f32 B NH T"), qkv=(qkv, "N 3C"),
    )  # fmt: skip
    if on_host(qkv):
        return attention_backward_on_cpu(dqkv, dout, out, lse, qkv)
    check_float32("attention_backward", qkv)
    arrays = _heads(dqkv, sizes, 3), _heads(dout, sizes), _heads(out, sizes), lse, _heads(qkv, sizes, 3), _scale(sizes)
    for kernel in attention_backward_queries_kernel, attention_backward_keys_kernel:
        _configured(kernel, sizes)(*arrays)


def sizes_of(function, out, lse):
    """Letter -> size, from the shapes of out and lse. Raises ValueError if NH does not divide C."""
    (B, NH, T), C = lse.shape, out.shape[1]
    if C % NH:
        raise ValueError(f"{function}: C must be a multiple of NH, got C={C} (of out) and NH={NH} (of lse). {SHAPE_HINT}")
    return {"B": B, "NH": NH, "T": T, "HS": C // NH, "C": C, "N": B * T}


def _configured(kernel, sizes):
    """The kernel with its launch shape: one block per position, head and sequence, HS threads each, rounded up to a power of two."""
    threads = 1 << (sizes["HS"] - 1).bit_length()
    return kernel[(sizes["T"], sizes["NH"], sizes["B"]), threads, compute_stream()]


def _heads(array, sizes, *parts):
    """Rows (N, C) or (N, 3C) as the kernels see them: (B, T, NH, HS) or (B, T, 3, NH, HS)."""
    return array.reshape(sizes["B"], sizes["T"], *parts, sizes["NH"], sizes["HS"])


def _scale(sizes):
    return np.float32(1 / math.sqrt(sizes["HS"]))
