"""Attention as matrix products, in float32: whole (T, T) matrices by the library's products, of a few sequences at a time.

What is different from the plain kernels of layers/attention:

    Products run on cuBLASLt (gpu/gemm.py): forward two for each head, backward five, four for the gradients, and q kᵀ once more, from which
    the weights come again. For that q, k and v are copied to one matrix for each head.

    Weights stay in the cache. Only as many sequences are worked on at a time as keep the GPU busy within WORKING_SET, one at T = 1,024. So
    the matrices of weights, which are written and read several times, stay in the L2 cache of some tens of MB, and take 1 / B of the
    memory.

    The softmax is a warp's, row by row, in place, 16 bytes at a time, and makes its largest score and its sum in one pass.

With GPT-2 124M in fp32, B=16, attention takes half of a training step this way, at 155k tokens a second (one H200, 2026-11-22); tf32.py,
where products may round, makes it 238k to 247k. Rows of another type are converted on the way: heads of a size for which no other engine
works in bfloat16 come here, too.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import LOG2_E, exp2, log, maximum
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import LOWEST, WARP_SIZE, warp_max, warp_sum
from gpt2_numba.layers.fast.attention.delta import compute_delta

ZERO, ONE = np.float32(0.0), np.float32(1.0)
THREADS = 32 if SIMULATING else 256
ROWS_PER_BLOCK = 1 if SIMULATING else 4  # softmax: one warp a row
KEYS_PER_WARP = WARP_SIZE * WIDTH
WORKING_SET = 8 << 20  # numbers, 32 MB: more sequences are taken together only within this
ALIGNMENT = 64  # numbers, 256 bytes: where cuBLASLt likes matrices to start


def padded_keys(T):
    """Tp: the length of a row of weights, T rounded up so that each row starts at a multiple of 16 bytes."""
    return -(-T // WIDTH) * WIDTH


def matrices(sequences, T, NH, HS):
    """What is worked on, name -> shape: q, k, v and their gradients, out or dout, the weights and their gradients, one matrix a head."""
    per_head, weights = (sequences, NH, T, HS), (sequences, NH, T, padded_keys(T))
    return {"heads": (3, *per_head), "result": per_head, "att": weights, "dheads": (3, *per_head), "datt": weights}


def numbers_needed(sequences, T, NH, HS):
    """How many numbers the matrices of `sequences` sequences take, with the gaps that align them."""
    return sum(-(-np.prod(shape, dtype=int) // ALIGNMENT) * ALIGNMENT for shape in matrices(sequences, T, NH, HS).values())


def sequences_at_a_time(B, T, NH, HS):
    """As many as WORKING_SET holds, at least one."""
    return next((n for n in range(B, 1, -1) if numbers_needed(n, T, NH, HS) <= WORKING_SET), 1)


def scratch_size(B, T, NH, HS):
    """Enough for any smaller batch, too, of which more sequences may be taken together."""
    most = min(numbers_needed(B, T, NH, HS), max(WORKING_SET, numbers_needed(1, T, NH, HS)))
    return -(-B * NH * T // ALIGNMENT) * ALIGNMENT + most


def pieces_of(scratch, start, shapes):
    """name -> array of that shape, one behind the other in scratch from element `start` on."""
    pieces = {}
    for name, shape in shapes.items():
        start = -(-start // ALIGNMENT) * ALIGNMENT
        size = int(np.prod(shape))
        pieces[name] = scratch[start : start + size].reshape(shape)
        start += size
    return pieces


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def place_in_heads(i, shape):
    """The place in heads (P, B, NH, T, HS) of element i of rows (B, T, P, NH, HS). P counts q, k, v, or is 1 for one of them."""
    P, B, NH, T, HS = shape
    e = i % HS
    h = i // HS % NH
    p = i // (HS * NH) % P
    bt = i // (HS * NH * P)
    b, t = bt // T, bt % T
    return (((p * B + b) * NH + h) * T + t) * HS + e


@cuda.jit(cache=True)
def split_heads_kernel(heads, rows):
    """heads[p, b, h, t] = rows[b, t, p, h]: one matrix a head. One thread moves eight numbers."""
    i = cuda.grid(1) * WIDTH
    if i >= heads.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(rows, i, x)
    store8(heads, place_in_heads(i, heads.shape), x)


@cuda.jit(cache=True)
def join_heads_kernel(rows, heads):
    """rows[b, t, p, h] = heads[p, b, h, t]: the way back. One thread moves eight numbers."""
    i = cuda.grid(1) * WIDTH
    if i >= heads.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(heads, place_in_heads(i, heads.shape), x)
    store8(rows, i, x)


@cuda.jit(cache=True)
def causal_softmax_forward_kernel(att, lse):
    """att[t, s <= t] = softmax of the scores that it holds; att[t, s > t] = 0. In place, one warp a row.

    Two passes: the largest score and the sum of the exponentials at once, rescaling the sum whenever a larger score comes
    (Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", arXiv:1805.02867); then the weights.
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
        before = largest
        for k in range(WIDTH):
            if s + k <= t:
                largest = maximum(largest, x[k])
        total *= exp2((before - largest) * LOG2_E)
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
    """In place, one warp a row: the scores in att become the weights, exp(score - lse); datt becomes dscore = att (datt - delta).

    After the query both are 0, whatever they were before, and so are they in the padding.
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
    for rows, of, work in _batches(scratch, out, lse):
        T, HS = work["result"].shape[2:]
        _split(work["heads"], qkv[rows])
        q, k, v = _matrices_of_three(work["heads"])
        att, result = _matrices(work["att"]), _matrices(work["result"])
        gemm(att, q, k, T, T, HS, transpose_b=True, alpha=1 / np.sqrt(HS))
        _launch_softmax(causal_softmax_forward_kernel, work["att"], lse[of])
        gemm(result, att, v, T, HS, T)
        _join(out[rows], work["result"])


def attention_backward(dqkv, dout, out, lse, qkv, scratch):
    """Arguments as in the package's attention_backward, checked."""
    delta = compute_delta(scratch, dout, out, lse)
    for rows, of, work in _batches(scratch, out, lse):
        T, HS = work["result"].shape[2:]
        scale = 1 / np.sqrt(HS)
        _split(work["heads"], qkv[rows])
        _split(work["result"], dout[rows])
        (q, k, v), (dq, dk, dv) = _matrices_of_three(work["heads"]), _matrices_of_three(work["dheads"])
        att, datt, dresult = _matrices(work["att"]), _matrices(work["datt"]), _matrices(work["result"])
        gemm(att, q, k, T, T, HS, transpose_b=True, alpha=scale)
        gemm(datt, dresult, v, T, T, HS, transpose_b=True)
        _launch_softmax(causal_softmax_backward_kernel, work["datt"], work["att"], lse[of], delta[of])
        gemm(dv, att, dresult, T, HS, T, transpose_a=True)
        gemm(dq, datt, k, T, HS, T, alpha=scale)
        gemm(dk, datt, q, T, HS, T, transpose_a=True, alpha=scale)
        _join(dqkv[rows], work["dheads"])


def _batches(scratch, out, lse):
    """For the sequences that are worked on together: slice of their rows, slice of the batch, their matrices in scratch behind delta."""
    B, NH, T = lse.shape
    HS = out.shape[1] // NH
    together = sequences_at_a_time(B, T, NH, HS)
    for b in range(0, B, together):
        last = min(b + together, B)
        yield slice(b * T, last * T), slice(b, last), pieces_of(scratch, lse.size, matrices(last - b, T, NH, HS))


def _split(heads, rows):
    heads = heads if heads.ndim == 5 else heads.reshape(1, *heads.shape)
    split_heads_kernel[-(-heads.size // (THREADS * WIDTH)), THREADS, compute_stream()](heads, rows)


def _join(rows, heads):
    heads = heads if heads.ndim == 5 else heads.reshape(1, *heads.shape)
    join_heads_kernel[-(-heads.size // (THREADS * WIDTH)), THREADS, compute_stream()](rows, heads)


def _launch_softmax(kernel, weights, *others):
    rows = weights.size // weights.shape[3]
    kernel[-(-rows // ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP_SIZE, compute_stream()](weights, *others)


def _matrices(per_head):
    """(sequences, NH, rows, cols) as one batch of matrices."""
    return per_head.reshape(-1, *per_head.shape[2:])


def _matrices_of_three(heads):
    """q, k and v, or their gradients, as batches of matrices."""
    return [_matrices(heads[p]) for p in range(3)]
