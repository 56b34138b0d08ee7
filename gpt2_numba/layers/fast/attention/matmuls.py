"""Attention as matrix products, in float32: cuBLASLt multiplies whole (T, T) matrices, for a few sequences at a time.

Compared with the plain kernels of layers/attention:

    Products run on cuBLASLt (gpu/gemm.py). Per head, forward has two and backward five: four for the gradients, and q kᵀ once more to
    recompute the weights. For this, q, k and v are copied to one matrix per head.

    Weights stay in the cache. Only as many sequences are processed together as fit in WORKING_SET, one at T = 1,024. So the matrices of
    weights, which are written and read several times, stay in the L2 cache of some tens of MB, and take 1 / B of the memory.

    The softmax works in place, one warp per row, 16 bytes at a time, and finds the largest score and the sum in one pass.

With GPT-2 124M in fp32, B=16, attention takes half of a training step this way, at 155k tokens/s (one H200, 2026-11-22); tf32.py, where
products may round to TF32, reaches 238k to 247k. Other types are converted during the copies: bfloat16 heads of a size that no other engine
supports come here, too.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import LOG2_E, exp2, log, maximum
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import LOWEST, WARP_SIZE, warp_max, warp_sum
from gpt2_numba.integers import ceil_div, round_up
from gpt2_numba.layers.fast.attention.delta import compute_delta

ZERO, ONE = np.float32(0.0), np.float32(1.0)
THREADS = 32 if SIMULATING else 256
ROWS_PER_BLOCK = 1 if SIMULATING else 4  # softmax: one warp per row
KEYS_PER_WARP = WARP_SIZE * WIDTH
WORKING_SET = 8 << 20  # elements, 32 MB: the matrices of sequences processed together must fit, unless it is a single sequence
ALIGNMENT = 64  # elements, 256 bytes: the alignment of matrices that cuBLASLt prefers


def padded_keys(T):
    """Tp: the length of a row of weights, T rounded up so that each row is aligned to 16 bytes."""
    return round_up(T, WIDTH)


def matrix_shapes(sequences, T, NH, HS):
    """Name -> shape of the working matrices: q, k, v and their gradients; out or dout; weights and their gradients. One matrix per head."""
    per_head, weights = (sequences, NH, T, HS), (sequences, NH, T, padded_keys(T))
    return {"heads": (3, *per_head), "result": per_head, "att": weights, "dheads": (3, *per_head), "datt": weights}


def elements_needed(sequences, T, NH, HS):
    """Elements that the matrices of `sequences` sequences take, including the gaps that align them."""
    return sum(round_up(np.prod(shape, dtype=int), ALIGNMENT) for shape in matrix_shapes(sequences, T, NH, HS).values())


def sequences_at_a_time(B, T, NH, HS):
    """How many sequences are processed together: as many as WORKING_SET holds, at least one."""
    return next((n for n in range(B, 1, -1) if elements_needed(n, T, NH, HS) <= WORKING_SET), 1)


def scratch_size(B, T, NH, HS):
    """Float32 values of scratch memory. Also enough for smaller batches, of which more sequences may be processed together."""
    most = min(elements_needed(B, T, NH, HS), max(WORKING_SET, elements_needed(1, T, NH, HS)))
    return round_up(B * NH * T, ALIGNMENT) + most


def carve(scratch, start, shapes):
    """Name -> array of that shape: consecutive aligned parts of scratch, from element `start` on."""
    arrays = {}
    for name, shape in shapes.items():
        start = round_up(start, ALIGNMENT)
        size = int(np.prod(shape))
        arrays[name] = scratch[start : start + size].reshape(shape)
        start += size
    return arrays


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def index_in_heads(i, shape):
    """The index in heads (P, B, NH, T, HS) of element i of rows (B, T, P, NH, HS). P is 3 for q, k, v, or 1 for a single array."""
    P, B, NH, T, HS = shape
    e = i % HS
    h = i // HS % NH
    p = i // (HS * NH) % P
    bt = i // (HS * NH * P)
    b, t = bt // T, bt % T
    return (((p * B + b) * NH + h) * T + t) * HS + e


@cuda.jit(cache=True)
def split_heads_kernel(heads, rows):
    """heads[p, b, h, t] = rows[b, t, p, h]: one matrix per head. Each thread moves eight elements."""
    i = cuda.grid(1) * WIDTH
    if i >= heads.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(rows, i, x)
    store8(heads, index_in_heads(i, heads.shape), x)


@cuda.jit(cache=True)
def join_heads_kernel(rows, heads):
    """rows[b, t, p, h] = heads[p, b, h, t], the inverse of split_heads_kernel. Each thread moves eight elements."""
    i = cuda.grid(1) * WIDTH
    if i >= heads.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(heads, index_in_heads(i, heads.shape), x)
    store8(rows, i, x)


@cuda.jit(cache=True)
def causal_softmax_forward_kernel(att, lse):
    """att[t, s <= t] = softmax of the scores that it holds; att[t, s > t] = 0. In place, one warp per row.

    Two passes. The first finds the largest score and the sum of the exponentials together, rescaling the sum whenever a larger score comes
    (Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", arXiv:1805.02867). The second writes the weights.
    """
    B, NH, T, Tp = att.shape
    row = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE
    lane = cuda.threadIdx.x % WARP_SIZE
    if row >= B * NH * T:  # the whole warp leaves together
        return
    head, t = row // T, row % T
    x = cuda.local.array(WIDTH, float32)

    largest, total = LOWEST, ZERO
    for s in range(lane * WIDTH, t + 1, KEYS_PER_WARP):
        load8(att, row * Tp + s, x)
        previous = largest
        for k in range(WIDTH):
            if s + k <= t:
                largest = maximum(largest, x[k])
        total *= exp2((previous - largest) * LOG2_E)
        for k in range(WIDTH):
            if s + k <= t:
                total += exp2((x[k] - largest) * LOG2_E)
    row_max = warp_max(largest)
    total = warp_sum(total * exp2((largest - row_max) * LOG2_E))
    one_over_total = ONE / total
    if lane == 0:
        lse[head // NH, head % NH, t] = row_max + log(total)

    for s in range(lane * WIDTH, Tp, KEYS_PER_WARP):
        load8(att, row * Tp + s, x)
        for k in range(WIDTH):
            x[k] = exp2((x[k] - row_max) * LOG2_E) * one_over_total if s + k <= t else ZERO
        store8(att, row * Tp + s, x)


@cuda.jit(cache=True)
def causal_softmax_backward_kernel(datt, att, lse, delta):
    """In place, one warp per row: the scores in att become weights, exp(score - lse); datt becomes dscore = att (datt - delta).

    For keys after the query and in the padding, both become 0, whatever they were.
    """
    B, NH, T, Tp = att.shape
    row = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE
    lane = cuda.threadIdx.x % WARP_SIZE
    if row >= B * NH * T:
        return
    head, t = row // T, row % T
    row_lse, row_delta = lse[head // NH, head % NH, t], delta[head // NH, head % NH, t]
    a = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    for s in range(lane * WIDTH, Tp, KEYS_PER_WARP):
        load8(att, row * Tp + s, a)
        load8(datt, row * Tp + s, d)
        for k in range(WIDTH):
            a[k] = exp2((a[k] - row_lse) * LOG2_E) if s + k <= t else ZERO
            d[k] = a[k] * (d[k] - row_delta) if s + k <= t else ZERO
        store8(att, row * Tp + s, a)
        store8(datt, row * Tp + s, d)


# -------------------------------------------------------------------------------------------------------- launchers


def attention_forward(out, lse, qkv, scratch):
    """Arguments as in the package's attention_forward, checked."""
    for rows, sequences, work in _sequence_groups(scratch, out, lse):
        T, HS = work["result"].shape[2:]
        _split(work["heads"], qkv[rows])
        q, k, v = _three_batches(work["heads"])
        att, result = _as_batch(work["att"]), _as_batch(work["result"])
        gemm(att, q, k, rows=T, columns=T, inner=HS, transpose_b=True, alpha=1 / np.sqrt(HS))
        _launch_softmax(causal_softmax_forward_kernel, work["att"], lse[sequences])
        gemm(result, att, v, rows=T, columns=HS, inner=T)
        _join(out[rows], work["result"])


def attention_backward(dqkv, dout, out, lse, qkv, scratch):
    """Arguments as in the package's attention_backward, checked."""
    delta = compute_delta(scratch, dout, out, lse)
    for rows, sequences, work in _sequence_groups(scratch, out, lse):
        T, HS = work["result"].shape[2:]
        scale = 1 / np.sqrt(HS)
        _split(work["heads"], qkv[rows])
        _split(work["result"], dout[rows])
        (q, k, v), (dq, dk, dv) = _three_batches(work["heads"]), _three_batches(work["dheads"])
        att, datt, dresult = _as_batch(work["att"]), _as_batch(work["datt"]), _as_batch(work["result"])
        gemm(att, q, k, rows=T, columns=T, inner=HS, transpose_b=True, alpha=scale)
        gemm(datt, dresult, v, rows=T, columns=T, inner=HS, transpose_b=True)
        _launch_softmax(causal_softmax_backward_kernel, work["datt"], work["att"], lse[sequences], delta[sequences])
        gemm(dv, att, dresult, rows=T, columns=HS, inner=T, transpose_a=True)
        gemm(dq, datt, k, rows=T, columns=HS, inner=T, alpha=scale)
        gemm(dk, datt, q, rows=T, columns=HS, inner=T, transpose_a=True, alpha=scale)
        _join(dqkv[rows], work["dheads"])


def _sequence_groups(scratch, out, lse):
    """For each group of sequences processed together: slice of rows, slice of the batch, matrices by name, in scratch after delta."""
    B, NH, T = lse.shape
    HS = out.shape[1] // NH
    together = sequences_at_a_time(B, T, NH, HS)
    for b in range(0, B, together):
        last = min(b + together, B)
        yield slice(b * T, last * T), slice(b, last), carve(scratch, lse.size, matrix_shapes(last - b, T, NH, HS))


def _split(heads, rows):
    heads = heads if heads.ndim == 5 else heads.reshape(1, *heads.shape)
    split_heads_kernel[ceil_div(heads.size, THREADS * WIDTH), THREADS, compute_stream()](heads, rows)


def _join(rows, heads):
    heads = heads if heads.ndim == 5 else heads.reshape(1, *heads.shape)
    join_heads_kernel[ceil_div(heads.size, THREADS * WIDTH), THREADS, compute_stream()](rows, heads)


def _launch_softmax(kernel, weights, *others):
    rows = weights.size // weights.shape[3]
    kernel[ceil_div(rows, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP_SIZE, compute_stream()](weights, *others)


def _as_batch(per_head):
    """(sequences, NH, rows, columns) as one batch of matrices."""
    return per_head.reshape(-1, *per_head.shape[2:])


def _three_batches(heads):
    """q, k and v, or their gradients, as batches of matrices."""
    return [_as_batch(heads[p]) for p in range(3)]
