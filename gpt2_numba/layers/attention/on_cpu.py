"""The same as attention_forward_ref and attention_backward_ref, several times faster: used for training on a CPU.

Forward takes queries, and backward keys, a tile at a time, so that only NH * TILE * T weights of a sequence are in memory, and keys after a
query cost nothing outside the tiles on the diagonal. Weights have one column per query: the maximum and sum of a query then come from
comparing and adding whole rows, which NumPy does several times faster than reducing along rows. Sequences are independent, and each thread
takes some.
"""

from functools import cache

import numpy as np

from gpt2_numba.cpu_threads import cores, in_threads, pieces
from gpt2_numba.integers import ceil_div

TILE = 64  # queries in forward, keys in backward
MOST_WEIGHTS = 1 << 17  # that a thread works on at a time, of several short sequences or of one tile: they stay in the cache


def _for_all_sequences(work, B, NH, T):
    """Call work(slice of sequences) for all sequences, in threads."""
    together = min(ceil_div(B, cores()), MOST_WEIGHTS // (NH * T * min(T, TILE)))
    in_threads(work, pieces(B, piece=together))


def by_head(rows, lse, parts):
    """Contiguous rows (N, parts * C), viewed as (parts, B, NH, T, HS): q, k, v (parts = 3), or one array (parts = 1). lse (B, NH, T)."""
    B, NH, T = lse.shape
    return rows.reshape(B, T, parts, NH, -1).transpose(2, 0, 3, 1, 4)


@cache
def _hide_later_keys(dtype):
    """(TILE, TILE), row s, column t: the mask added to the scores of a tile on the diagonal, -inf where s > t."""
    return np.tril(np.full((TILE, TILE), -np.inf, dtype), -1)


def attention_forward_on_cpu(out, lse, qkv):
    """Arguments as in attention_forward; NumPy arrays, float32 or float64."""
    B, NH, T = lse.shape
    all_qkv, all_out = by_head(qkv, lse, 3), by_head(out, lse, 1)
    scale = qkv.dtype.type(1 / np.sqrt(all_qkv.shape[-1]))

    def forward(sequences):
        q, k, v = all_qkv[:, sequences]
        for start in range(0, T, TILE):
            queries, before = slice(start, min(start + TILE, T)), slice(0, min(start + TILE, T))
            weights = k[:, :, before] @ (q[:, :, queries] * scale).swapaxes(2, 3)  # (sequences, NH, keys, queries)
            weights[:, :, queries] += _hide_later_keys(qkv.dtype)[: T - start, : T - start]
            largest = weights.max(axis=2, keepdims=True)
            weights -= largest  # so that exp cannot overflow; softmax stays the same
            np.exp(weights, out=weights)
            total = weights.sum(axis=2, keepdims=True)
            queries_out = all_out[0, sequences, :, queries]
            np.matmul(weights.swapaxes(2, 3), v[:, :, before], out=queries_out)
            queries_out /= total.swapaxes(2, 3)
            lse[sequences, :, queries] = (largest + np.log(total))[:, :, 0]

    _for_all_sequences(forward, B, NH, T)


def attention_backward_on_cpu(dqkv, dout, out, lse, qkv):
    """Arguments as in attention_backward; NumPy arrays."""
    B, NH, T = lse.shape
    all_qkv, all_dqkv, all_dout = by_head(qkv, lse, 3), by_head(dqkv, lse, 3), by_head(dout, lse, 1)
    delta = np.einsum("bhte,bhte->bht", by_head(out, lse, 1)[0], all_dout[0])
    scale = qkv.dtype.type(1 / np.sqrt(all_qkv.shape[-1]))

    def backward(sequences):
        (q, k, v), (dq, dk, dv) = all_qkv[:, sequences], all_dqkv[:, sequences]
        q = q * scale
        dq[:] = 0
        for start in range(0, T, TILE):
            keys, after = slice(start, min(start + TILE, T)), slice(start, T)
            dout_after = all_dout[0, sequences, :, after]
            weights = k[:, :, keys] @ q[:, :, after].swapaxes(2, 3)  # (sequences, NH, keys, queries)
            weights -= lse[sequences, :, None, after]
            weights[..., :TILE] += _hide_later_keys(qkv.dtype)[: T - start, : T - start]
            np.exp(weights, out=weights)
            np.matmul(weights, dout_after, out=dv[:, :, keys])
            dscores = v[:, :, keys] @ dout_after.swapaxes(2, 3)
            dscores -= delta[sequences, :, None, after]
            dscores *= weights
            np.matmul(dscores, q[:, :, after], out=dk[:, :, keys])
            dq[:, :, after] += dscores.swapaxes(2, 3) @ k[:, :, keys]
        dq *= scale

    _for_all_sequences(backward, B, NH, T)
