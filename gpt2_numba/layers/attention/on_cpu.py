"""The same as attention_forward_ref and attention_backward_ref, several times faster: what training on a CPU runs.

Queries and keys are taken a tile at a time, so that the keys after a query cost nothing, and no more than NH * TILE * T weights are in memory
for one sequence. Weights are stored with a column for each query: the largest score and the sum of a query then come from comparing and adding
whole rows, which NumPy does several times faster than going along rows. Sequences are independent: threads take some each.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

TILE = 64  # queries in forward, keys in backward
TOGETHER = 1 << 17  # weights that one thread works on at a time, of several short sequences or of one tile: they stay in the cache


@cache
def _threads():
    return ThreadPoolExecutor(os.cpu_count())


def _for_all_sequences(work, B, NH, T):
    """Call work(slice of sequences) for all sequences, in threads: NumPy lets other threads run while it computes."""
    together = max(1, min(-(-B // os.cpu_count()), TOGETHER // (NH * T * min(T, TILE))))
    for _ in _threads().map(work, [slice(b, min(b + together, B)) for b in range(0, B, together)]):
        pass


def _by_head(rows, B, NH, parts):
    """(N, parts * C) as (parts, B, NH, T, HS), a view: q, k, v (parts = 3) or one of them, one matrix a head."""
    return rows.reshape(B, -1, parts, NH, rows.shape[1] // (parts * NH)).transpose(2, 0, 3, 1, 4)


@cache
def _hide_later_keys(dtype):
    """(TILE, TILE), row s, column t: what is added to the scores of the tile on the diagonal, so that exp gives 0 where s > t."""
    return np.tril(np.full((TILE, TILE), -np.inf, dtype), -1)


def attention_forward_on_cpu(out, lse, qkv):
    """Arguments as in attention_forward; NumPy arrays, float32 or float64."""
    B, NH, T = lse.shape
    all_qkv, all_out = _by_head(qkv, B, NH, 3), _by_head(out, B, NH, 1)
    scale = qkv.dtype.type(1 / np.sqrt(all_qkv.shape[-1]))

    def some_sequences(some):
        q, k, v = all_qkv[:, some]
        for start in range(0, T, TILE):
            queries, before = slice(start, min(start + TILE, T)), slice(0, min(start + TILE, T))
            weights = k[:, :, before] @ (q[:, :, queries] * scale).swapaxes(2, 3)  # (sequences, NH, keys, queries)
            weights[:, :, queries] += _hide_later_keys(qkv.dtype)[: T - start, : T - start]
            largest = weights.max(axis=2, keepdims=True)
            weights -= largest  # so that exp cannot overflow; softmax stays the same
            np.exp(weights, out=weights)
            total = weights.sum(axis=2, keepdims=True)
            queries_out = all_out[0, some, :, queries]
            np.matmul(weights.swapaxes(2, 3), v[:, :, before], out=queries_out)
            queries_out /= total.swapaxes(2, 3)
            lse[some, :, queries] = (largest + np.log(total))[:, :, 0]

    _for_all_sequences(some_sequences, B, NH, T)


def attention_backward_on_cpu(dqkv, dout, out, lse, qkv):
    """Arguments as in attention_backward; NumPy arrays."""
    B, NH, T = lse.shape
    all_qkv, all_dqkv, all_dout = _by_head(qkv, B, NH, 3), _by_head(dqkv, B, NH, 3), _by_head(dout, B, NH, 1)
    delta = np.einsum("bhte,bhte->bht", _by_head(out, B, NH, 1)[0], all_dout[0])
    scale = qkv.dtype.type(1 / np.sqrt(all_qkv.shape[-1]))

    def some_sequences(some):
        (q, k, v), (dq, dk, dv) = all_qkv[:, some], all_dqkv[:, some]
        q = q * scale
        dq[:] = 0
        for start in range(0, T, TILE):
            keys, after = slice(start, min(start + TILE, T)), slice(start, T)
            dout_after = all_dout[0, some, :, after]
            weights = k[:, :, keys] @ q[:, :, after].swapaxes(2, 3)  # (sequences, NH, keys, queries)
            weights -= lse[some, :, None, after]
            weights[..., :TILE] += _hide_later_keys(qkv.dtype)[: T - start, : T - start]
            np.exp(weights, out=weights)
            np.matmul(weights, dout_after, out=dv[:, :, keys])
            dscores = v[:, :, keys] @ dout_after.swapaxes(2, 3)
            dscores -= delta[some, :, None, after]
            dscores *= weights
            np.matmul(dscores, q[:, :, after], out=dk[:, :, keys])
            dq[:, :, after] += dscores.swapaxes(2, 3) @ k[:, :, keys]
        dq *= scale

    _for_all_sequences(some_sequences, B, NH, T)
