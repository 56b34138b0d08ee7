"""Causal multi-head self-attention: every token looks back at the tokens before it and takes a weighted mean of their values.

For each of the NH heads, of size HS = C / NH, with its own query q, key k and value v for every token:

    score[t, s] = q[t] · k[s] / sqrt(HS)   for s <= t        att[t] = softmax(score[t])        out[t] = Σ_s att[t, s] v[s]

Backward, from dout:

    dv[s] = Σ_t att[t, s] dout[t]                    datt[t, s] = dout[t] · v[s]
    dscore[t, s] = att[t, s] (datt[t, s] - Σ_r att[t, r] datt[t, r])      (softmax)
    dq[t] = Σ_s dscore[t, s] k[s] / sqrt(HS)         dk[s] = Σ_t dscore[t, s] q[t] / sqrt(HS)

Vaswani et al. 2017, "Attention Is All You Need", section 3.2 (arXiv:1706.03762).

This version follows the mathematics: it brings q, k and v into one matrix a head, multiplies matrices (five products in backward
for two in forward), and keeps the whole (T, T) matrix of weights of every head for backward. That is 2 T² bytes a head in bfloat16.

    | array           | shape             | forward | backward                                                   |
    | --------------- | ----------------- | ------- | ---------------------------------------------------------- |
    | qkv, dqkv       | (N, 3C)           | [r]     | dqkv [w]. A row: q of all heads, then k, then v            |
    | heads, dheads   | (3, B, NH, T, HS) | [w]     | heads [r] saved by forward; dheads [w] scratch             |
    | att, datt       | (B, NH, T, Tp)    | [w]     | att [r] saved by forward; datt [w] scratch                 |
    | out_heads       | (B, NH, T, HS)    | [w]     | [w] scratch: out or dout, one matrix a head                |
    | out, dout       | (N, C)            | [w]     | [r]                                                        |

Tp is T rounded up to a multiple of 8, so that every row of weights starts at a multiple of 16 bytes; the weights of keys after the
query are zero, as are those in the padding.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.float32_math import exp
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import LOWEST, WARP_SIZE, warp_max, warp_sum

ZERO, ONE = np.float32(0.0), np.float32(1.0)
THREADS = 32 if SIMULATING else 256
ROWS_PER_BLOCK = 1 if SIMULATING else 4  # softmax: one warp a row
KEYS_PER_WARP = WARP_SIZE * WIDTH


def padded_keys(T):
    """Tp: the length of a stored row of attention weights."""
    return -(-T // WIDTH) * WIDTH


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def attention_forward_ref(out, heads, att, out_heads, qkv):
    """The definition. Arguments as in the table above; float32 or float64."""
    _, B, NH, T, HS = heads.shape
    heads[:] = qkv.reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)
    q, k, v = heads
    weights = att[..., :T]
    att[..., T:] = 0
    np.matmul(q, k.swapaxes(2, 3), out=weights)
    weights *= 1 / np.sqrt(weights.dtype.type(HS))
    weights += np.triu(np.full((T, T), -np.inf, weights.dtype), 1)  # a key after the query gets the weight exp(-inf) = 0
    weights -= weights.max(axis=3, keepdims=True)  # so that exp cannot overflow; softmax stays the same
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=3, keepdims=True)
    np.matmul(weights, v, out=out_heads)
    out.reshape(B, T, NH, HS)[:] = out_heads.transpose(0, 2, 1, 3)


def attention_backward_ref(dqkv, dheads, datt, out_heads, dout, heads, att):
    """The chain rule. Arguments as in the table above."""
    _, B, NH, T, HS = heads.shape
    (q, k, v), (dq, dk, dv) = heads, dheads
    weights, dscores = att[..., :T], datt[..., :T]
    out_heads[:] = dout.reshape(B, T, NH, HS).transpose(0, 2, 1, 3)
    np.matmul(weights.swapaxes(2, 3), out_heads, out=dv)
    np.matmul(out_heads, v.swapaxes(2, 3), out=dscores)
    dscores -= np.einsum("bhts,bhts->bht", weights, dscores)[..., None]
    dscores *= weights
    dscores *= 1 / np.sqrt(weights.dtype.type(HS))
    np.matmul(dscores, k, out=dq)
    np.matmul(dscores.swapaxes(2, 3), q, out=dk)
    dqkv.reshape(B, T, 3, NH, HS)[:] = dheads.transpose(1, 3, 0, 2, 4)


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def place_in_heads(i, shape):
    """Where element i of rows (B, T, P, NH, HS) stands in heads (P, B, NH, T, HS). P counts q, k, v, or is 1 for one of them."""
    P, B, NH, T, HS = shape
    e = i % HS
    h = i // HS % NH
    p = i // (HS * NH) % P
    bt = i // (HS * NH * P)
    b, t = bt // T, bt % T
    return (((p * B + b) * NH + h) * T + t) * HS + e


@cuda.jit
def split_heads_kernel(heads, rows):
    """heads[p, b, h, t] = rows[b, t, p, h]: one matrix a head. One thread moves eight numbers."""
    i = cuda.grid(1) * WIDTH
    if i >= heads.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(rows, i, x)
    store8(heads, place_in_heads(i, heads.shape), x)


@cuda.jit
def join_heads_kernel(rows, heads):
    """rows[b, t, p, h] = heads[p, b, h, t]: the way back. One thread moves eight numbers."""
    i = cuda.grid(1) * WIDTH
    if i >= heads.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(heads, place_in_heads(i, heads.shape), x)
    store8(rows, i, x)


@cuda.jit
def causal_softmax_forward_kernel(att):
    """att[t, s <= t] = softmax of the scores that stand there; att[t, s > t] = 0. In place, one warp a row.

    Two passes: the largest score and the sum of the exponentials at once, rescaling the sum whenever a larger score comes
    (Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", arXiv:1805.02867); then the weights.
    """
    B, NH, T, Tp = att.shape
    row = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE
    lane = cuda.threadIdx.x % WARP_SIZE
    if row >= B * NH * T:  # the whole warp leaves together
        return
    t = row % T
    x = cuda.local.array(WIDTH, float32)

    largest, total = LOWEST, ZERO
    for s in range(lane * WIDTH, t + 1, KEYS_PER_WARP):
        load8(att, row * Tp + s, x)
        before = largest
        for k in range(WIDTH):
            if s + k <= t:
                largest = max(largest, x[k])
        total *= exp(before - largest)
        for k in range(WIDTH):
            if s + k <= t:
                total += exp(x[k] - largest)
    of_row = warp_max(largest)
    one_over_total = ONE / warp_sum(total * exp(largest - of_row))

    for s in range(lane * WIDTH, Tp, KEYS_PER_WARP):
        load8(att, row * Tp + s, x)
        for k in range(WIDTH):
            x[k] = exp(x[k] - of_row) * one_over_total if s + k <= t else ZERO
        store8(att, row * Tp + s, x)


@cuda.jit
def causal_softmax_backward_kernel(datt, att):
    """datt becomes dscore = att (datt - Σ att datt), 0 after the query. In place, one warp a row, two passes."""
    B, NH, T, Tp = att.shape
    row = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE
    lane = cuda.threadIdx.x % WARP_SIZE
    if row >= B * NH * T:
        return
    t = row % T
    a = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)

    total = ZERO
    for s in range(lane * WIDTH, t + 1, KEYS_PER_WARP):
        load8(att, row * Tp + s, a)
        load8(datt, row * Tp + s, d)
        for k in range(WIDTH):
            if s + k <= t:  # what stands after the query in datt may be anything, and 0 * NaN is NaN
                total += a[k] * d[k]
    total = warp_sum(total)

    for s in range(lane * WIDTH, Tp, KEYS_PER_WARP):
        load8(att, row * Tp + s, a)
        load8(datt, row * Tp + s, d)
        for k in range(WIDTH):
            d[k] = a[k] * (d[k] - total) if s + k <= t else ZERO
        store8(datt, row * Tp + s, d)


# -------------------------------------------------------------------------------------------------------- launchers


def attention_forward(out, heads, att, out_heads, qkv):
    """Attention over the packed queries, keys and values. The arrays decide: NumPy runs the reference, device arrays kernels.

    out [w] (N, C)   heads [w] (3, B, NH, T, HS) and att [w] (B, NH, T, Tp), kept for backward
    out_heads [w] (B, NH, T, HS) scratch   qkv [r] (N, 3C)
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    sizes = _sizes(heads)
    check_arrays(
        "attention_forward", sizes, "C is NH * HS; att has Tp = padded_keys(T) columns.",
        out=(out, "N C"), heads=(heads, "3 B NH T HS"), att=(att, "B NH T Tp"),
        out_heads=(out_heads, "B NH T HS"), qkv=(qkv, "N 3C"),
    )  # fmt: skip
    if on_host(qkv):
        return attention_forward_ref(out, heads, att, out_heads, qkv)
    check_width("attention_forward", HS=sizes["HS"])
    stream, T, HS = compute_stream(), sizes["T"], sizes["HS"]
    split_heads_kernel[-(-heads.size // (THREADS * WIDTH)), THREADS, stream](heads, qkv)
    q, k, v = _matrices(heads)
    weights, result = _matrices_of(att), _matrices_of(out_heads)
    gemm(weights, q, k, T, T, HS, transpose_b=True, alpha=1 / np.sqrt(HS))
    rows = weights.shape[0] * T
    causal_softmax_forward_kernel[-(-rows // ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP_SIZE, stream](att)
    gemm(result, weights, v, T, HS, T)
    join_heads_kernel[-(-out.size // (THREADS * WIDTH)), THREADS, stream](out, out_heads.reshape(1, *out_heads.shape))


def attention_backward(dqkv, dheads, datt, out_heads, dout, heads, att):
    """Gradient of attention_forward.

    dqkv [w] (N, 3C)   dheads [w] (3, B, NH, T, HS), datt [w] (B, NH, T, Tp), out_heads [w] (B, NH, T, HS): scratch
    dout [r] (N, C)   heads, att [r] as forward left them
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    sizes = _sizes(heads)
    check_arrays(
        "attention_backward", sizes, "C is NH * HS; att has Tp = padded_keys(T) columns.",
        dqkv=(dqkv, "N 3C"), dheads=(dheads, "3 B NH T HS"), datt=(datt, "B NH T Tp"), out_heads=(out_heads, "B NH T HS"),
        dout=(dout, "N C"), heads=(heads, "3 B NH T HS"), att=(att, "B NH T Tp"),
    )  # fmt: skip
    if on_host(dout):
        return attention_backward_ref(dqkv, dheads, datt, out_heads, dout, heads, att)
    check_width("attention_backward", HS=sizes["HS"])
    stream, T, HS = compute_stream(), sizes["T"], sizes["HS"]
    scale = 1 / np.sqrt(HS)
    split_heads_kernel[-(-dout.size // (THREADS * WIDTH)), THREADS, stream](out_heads.reshape(1, *out_heads.shape), dout)
    (q, k, v), (dq, dk, dv) = _matrices(heads), _matrices(dheads)
    weights, dscores, dresult = _matrices_of(att), _matrices_of(datt), _matrices_of(out_heads)
    gemm(dv, weights, dresult, T, HS, T, transpose_a=True)
    gemm(dscores, dresult, v, T, T, HS, transpose_b=True)
    rows = weights.shape[0] * T
    causal_softmax_backward_kernel[-(-rows // ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP_SIZE, stream](datt, att)
    gemm(dq, dscores, k, T, HS, T, alpha=scale)
    gemm(dk, dscores, q, T, HS, T, transpose_a=True, alpha=scale)
    join_heads_kernel[-(-dqkv.size // (THREADS * WIDTH)), THREADS, stream](dqkv, dheads)


def _sizes(heads):
    _, B, NH, T, HS = heads.shape
    return {"B": B, "NH": NH, "T": T, "HS": HS, "C": NH * HS, "N": B * T, "Tp": padded_keys(T)}


def _matrices_of(per_head):
    """(B, NH, rows, cols) as a batch of B * NH matrices."""
    B, NH, rows, cols = per_head.shape
    return per_head.reshape(B * NH, rows, cols)


def _matrices(heads):
    """q, k and v as batches of matrices."""
    return [_matrices_of(heads[p]) for p in range(3)]
