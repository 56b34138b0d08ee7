"""Attention: every query's weighted mean of the values that it may look at.

    score[t, s] = q[t] · k[s] / sqrt(HS)        for s <= t
    lse[t]      = log Σ_s exp(score[t, s])
    out[t]      = Σ_s exp(score[t, s] - lse[t]) v[s]

for each head of each sequence. `qkv` [r] is (N, 3C): a row has q of all NH heads, then k, then v, each of HS = C / NH channels; `out` [w]
is (N, C), `lse` [w] is (B, NH, T); all are float32, N = B · T. The launch is given: a block for each query, with a thread for each channel
e; their number is HS, rounded up to a power of two. `qkv` comes as (B, T, 3, NH, HS), `out` as (B, T, NH, HS). Go over the keys once, with
a running maximum, a running sum, and a running sum of values: no (T, T) matrix. `block_sum(x)` adds up over the threads of the block and
gives all of them the sum; all must call it equally often. A thread without a channel (`has_channel` is false) has the last channel as its
`e`, so that it may read; see that it adds nothing and writes nothing.

    python -m tutorials.check 06_attention_forward
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_sum

ZERO, LOWEST = np.float32(0), np.float32(-1e38)
QUERY, KEY, VALUE = 0, 1, 2  # third index of qkv (B, T, 3, NH, HS)


@cuda.jit
def attention_forward_kernel(out, lse, qkv, scale):
    """The query at position t of head h of sequence b. scale: 1 / sqrt(HS)."""
    t, h, b = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    has_channel = cuda.threadIdx.x < qkv.shape[4]
    e = min(cuda.threadIdx.x, qkv.shape[4] - 1)
    q = qkv[b, t, QUERY, h, e] if has_channel else ZERO
    largest, total, weighted = LOWEST, ZERO, ZERO
    # your lines:
    # end of your lines


def attention_forward(out, lse, qkv):
    """Launch a block for each query of each head of each sequence."""
    B, NH, T = lse.shape
    HS = out.shape[1] // NH
    threads = 1
    while threads < HS:
        threads *= 2
    scale = np.float32(1 / math.sqrt(HS))
    attention_forward_kernel[(T, NH, B), threads](out.reshape(B, T, NH, HS), lse, qkv.reshape(B, T, 3, NH, HS), scale)
