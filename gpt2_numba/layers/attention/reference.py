"""Attention in NumPy: the definition, and what `--device cpu` trains with.

Queries and keys are taken a tile at a time, so that the keys after the queries cost nothing, and no more than NH * TILE * T weights
are in memory for one sequence. They are written with a column for each query: the largest score and the sum of a query then come of whole rows
being compared and added, which NumPy does several times faster than going along rows. Sequences share nothing: threads take some each.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

TILE = 64  # queries in forward, keys in backward
TOGETHER = 1 << 17  # weights that one thread works on at a time, of several short sequences, or of a tile of one: they stay in the cache


@cache
def _threads():
    return ThreadPoolExecutor(os.cpu_count())


def _for_all_sequences(work, B, NH, T):
    """Call work(slice of sequences) until all have had their turn, in threads: NumPy lets others run while it computes."""
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


def attention_forward_ref(out, lse, qkv):
    """The definition. Arguments as in attention_forward; float32 or float64."""
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
            of_queries = all_out[0, some, :, queries]
            np.matmul(weights.swapaxes(2, 3), v[:, :, before], out=of_queries)
            of_queries /= total.swapaxes(2, 3)
            lse[some, :, queries] = (largest + np.log(total))[:, :, 0]

    _for_all_sequences(some_sequences, B, NH, T)


def attention_backward_ref(dqkv, dout, out, lse, qkv):
    """The chain rule. Arguments as in attention_backward."""
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
