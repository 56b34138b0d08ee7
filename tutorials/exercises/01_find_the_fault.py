"""A fault that one head hides.

Somebody has rewritten attention's backward (chapter 01, section 7): `dqkv` (N, 3C), overwritten, from `dout` (N, C), `qkv` (N, 3C), the
weights `att` (B, NH, T, T), and the numbers B and NH; all float64. A row of dqkv is q of all heads, then k, then v. With one head the
result is right, with three some of it is off by a factor. The scores were divided by the square root of a head's channels. Nothing needs to
be deleted: correct what is wrong at the marked place, behind it.

    python -m tutorials.check 01_find_the_fault
"""

import math

import numpy as np


def split_heads(rows, B, NH):
    """(N, C) -> (B, NH, T, HS)."""
    N, C = rows.shape
    return rows.reshape(B, N // B, NH, C // NH).transpose(0, 2, 1, 3)


def join_heads(heads):
    """(B, NH, T, HS) -> (N, C)."""
    B, NH, T, HS = heads.shape
    return heads.transpose(0, 2, 1, 3).reshape(B * T, NH * HS)


def attention_backward(dqkv, dout, qkv, att, B, NH):
    """Write dqkv."""
    q, k, v = (split_heads(part, B, NH) for part in np.split(qkv, 3, axis=1))
    scale = 1 / math.sqrt(dout.shape[1])
    dout = split_heads(dout, B, NH)
    # your lines:
    # end of your lines
    datt = dout @ v.swapaxes(2, 3)
    dscore = scale * att * (datt - (att * datt).sum(axis=3, keepdims=True))
    gradients = dscore @ k, dscore.swapaxes(2, 3) @ q, att.swapaxes(2, 3) @ dout
    dqkv[:] = np.concatenate([join_heads(heads) for heads in gradients], axis=1)
