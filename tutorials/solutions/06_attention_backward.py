"""The gradient of attention, without keeping a weight.

    att[t, s]    = exp(score[t, s] - lse[t]), score[t, s] = q[t] · k[s] / sqrt(HS), for s <= t
    dscore[t, s] = att[t, s] (dout[t] · (v[s] - out[t]))
    dq[t] = Σ_s dscore[t, s] k[s] / sqrt(HS)        dk[s] = Σ_t dscore[t, s] q[t] / sqrt(HS)        dv[s] = Σ_t att[t, s] dout[t]

`dqkv` [w] and `qkv` [r] are (N, 3C), `dout` and `out` [r] are (N, C), `lse` [r] is (B, NH, T), as forward left `out` and `lse`; all are
float32. The kernels get them as (B, T, 3, NH, HS) and (B, T, NH, HS). There are two kernels: a block for each query writes dq, a block for
each key writes dk and dv; a thread for each channel e, as in 06_attention_forward, with the same rule for threads without a channel.
`block_sum(x)` is the dot product of two vectors if each thread brings its channel's product. Which queries look at key s?

    python -m tutorials.check 06_attention_backward
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_sum

ZERO = np.float32(0)
QUERY, KEY, VALUE = 0, 1, 2  # third index of qkv (B, T, 3, NH, HS)


@cuda.jit
def attention_backward_queries_kernel(dqkv, dout, out, lse, qkv, scale):
    """dq of the query at position t of head h of sequence b. scale: 1 / sqrt(HS)."""
    t, h, b = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    has_channel = cuda.threadIdx.x < qkv.shape[4]
    e = min(cuda.threadIdx.x, qkv.shape[4] - 1)
    q = qkv[b, t, QUERY, h, e] if has_channel else ZERO
    dout_t = dout[b, t, h, e] if has_channel else ZERO
    dq = ZERO
    # your lines:
    out_t, lse_t = out[b, t, h, e], lse[b, h, t]
    for s in range(t + 1):
        k = qkv[b, s, KEY, h, e]
        att = math.exp(block_sum(q * k) * scale - lse_t)
        dscore = att * block_sum(dout_t * (qkv[b, s, VALUE, h, e] - out_t))
        dq += dscore * k
    if has_channel:
        dqkv[b, t, QUERY, h, e] = dq * scale
    # end of your lines


@cuda.jit
def attention_backward_keys_kernel(dqkv, dout, out, lse, qkv, scale):
    """dk and dv of the key at position s of head h of sequence b."""
    s, h, b = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    has_channel = cuda.threadIdx.x < qkv.shape[4]
    e = min(cuda.threadIdx.x, qkv.shape[4] - 1)
    k = qkv[b, s, KEY, h, e] if has_channel else ZERO
    v = qkv[b, s, VALUE, h, e]
    dk, dv = ZERO, ZERO
    # your lines:
    for t in range(s, qkv.shape[1]):
        q = qkv[b, t, QUERY, h, e]
        dout_t = dout[b, t, h, e] if has_channel else ZERO
        att = math.exp(block_sum(q * k) * scale - lse[b, h, t])
        dscore = att * block_sum(dout_t * (v - out[b, t, h, e]))
        dv += att * dout_t
        dk += dscore * q
    if has_channel:
        dqkv[b, s, KEY, h, e] = dk * scale
        dqkv[b, s, VALUE, h, e] = dv
    # end of your lines


def attention_backward(dqkv, dout, out, lse, qkv):
    """Launch a block for each query, then a block for each key, of each head of each sequence."""
    B, NH, T = lse.shape
    HS = out.shape[1] // NH
    threads = 1
    while threads < HS:
        threads *= 2
    by_head = (B, T, NH, HS)
    arrays = dqkv.reshape(B, T, 3, NH, HS), dout.reshape(by_head), out.reshape(by_head), lse, qkv.reshape(B, T, 3, NH, HS)
    for kernel in attention_backward_queries_kernel, attention_backward_keys_kernel:
        kernel[(T, NH, B), threads](*arrays, np.float32(1 / math.sqrt(HS)))
