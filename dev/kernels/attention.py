"""Attention: from a thread for each number of a matrix to a matrix that nobody ever sees.

forward     thread_per_number            a thread for each score, each row of weights, each output: factors are read T times
            whole_matrices               the library's matrix products, the weights of all heads in memory: 4 T² bytes a head
            sequence_at_a_time           the same for a few sequences at a time, whose weights stay in the cache
            the package (bf16)           tile by tile on tensor cores, the weights in registers: layers/fast/attention/mma.py, then wgmma.py
"""

import math

import numpy as np
from numba import cuda

from dev.kernels import buffer
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import exp, log, maximum
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.gpu.memory_access import load1, store1
from gpt2_numba.gpu.reductions import LOWEST
from gpt2_numba.layers.fast.attention import matmuls

ZERO = np.float32(0.0)
THREADS = 32 if SIMULATING else 256


@cuda.jit
def scores_kernel(att, qkv, scale):
    """att[b, h, t, s] = q[t] · k[s] * scale, for s <= t."""
    _, NH, T, _ = att.shape
    i = cuda.grid(1)
    if i >= att.size:
        return
    s, t, h, b = i % T, i // T % T, i // (T * T) % NH, i // (T * T * NH)
    if s > t:
        return
    C = qkv.shape[1] // 3
    HS = C // NH
    q, k = (b * T + t) * 3 * C + h * HS, (b * T + s) * 3 * C + C + h * HS
    total = ZERO
    for e in range(HS):
        total += load1(qkv, q + e) * load1(qkv, k + e)
    att[b, h, t, s] = total * scale


@cuda.jit
def softmax_kernel(att, lse):
    """The weights in the place of the scores, and the logarithm of their sum."""
    _, NH, T, _ = att.shape
    row = cuda.grid(1)
    if row >= lse.size:
        return
    t, h, b = row % T, row // T % NH, row // (T * NH)
    largest, total = LOWEST, ZERO
    for s in range(t + 1):
        largest = maximum(largest, att[b, h, t, s])
    for s in range(t + 1):
        total += exp(att[b, h, t, s] - largest)
    for s in range(t + 1):
        att[b, h, t, s] = exp(att[b, h, t, s] - largest) / total
    lse[b, h, t] = log(total) + largest


@cuda.jit
def values_kernel(out, att, qkv):
    """out[t] = Σ_s att[t, s] v[s]."""
    _, NH, T, _ = att.shape
    C = out.shape[1]
    i = cuda.grid(1)
    if i >= out.size:
        return
    c, t, b = i % C, i // C % T, i // (C * T)
    h = c // (C // NH)
    total = ZERO
    for s in range(t + 1):
        total += att[b, h, t, s] * load1(qkv, (b * T + s) * 3 * C + 2 * C + c)
    store1(out, i, total)


def thread_per_number(out, lse, qkv, scratch):
    """The formulas, one kernel each."""
    (B, NH, T), C = lse.shape, out.shape[1]
    att, stream = buffer(B, NH, T, T), compute_stream()
    scores_kernel[-(-att.size // THREADS), THREADS, stream](att, qkv, np.float32(1 / math.sqrt(C // NH)))
    softmax_kernel[-(-lse.size // THREADS), THREADS, stream](att, lse)
    values_kernel[-(-out.size // THREADS), THREADS, stream](out, att, qkv)


def whole_matrices(out, lse, qkv, scratch):
    """One matrix a head, all heads in one call of the library; the kernels around it are those of layers/fast/attention/matmuls.py."""
    (B, NH, T), C = lse.shape, out.shape[1]
    heads, result, att = (buffer(*matmuls.matrices(B, T, NH, C // NH)[name]) for name in ("heads", "result", "att"))
    matmuls._split(heads, qkv)
    q, k, v = matmuls._matrices_of_three(heads)
    weights = matmuls._matrices(att)
    gemm(weights, q, k, T, T, C // NH, transpose_b=True, alpha=1 / math.sqrt(C // NH))
    matmuls._launch_softmax(matmuls.causal_softmax_forward_kernel, att, lse)
    gemm(matmuls._matrices(result), weights, v, T, C // NH, T)
    matmuls._join(out, result)


def sequence_at_a_time(out, lse, qkv, scratch):
    """The package's own way in float32."""
    (B, NH, T), C = lse.shape, out.shape[1]
    matmuls.attention_forward(out, lse, qkv, buffer(matmuls.scratch_size(B, T, NH, C // NH)))


LADDER = {"attention_forward": (thread_per_number, whole_matrices, sequence_at_a_time)}
