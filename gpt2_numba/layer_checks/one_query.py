"""Attention of one new token per sequence: the reference against attention over the whole sequence, the kernels against the reference."""

import math

import numpy as np

from gpt2_numba.layer_checks.attention import OVERFLOWING
from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.tolerances import ROOT_OF_SMALLEST, SPREAD, UNIT, summation_error, typical_product
from gpt2_numba.layers.attention import attention_forward_ref
from gpt2_numba.layers.attention import one_query as textbook
from gpt2_numba.layers.fast.attention import one_query as fast

LOUDER = 1e4  # what the cache holds from the new token on, which nothing may read, is larger than all else by this factor


def reference_rows(s, normal):
    """Yield Rows: token after token with the cache gives the rows of attention over the whole sequence."""
    qkv = normal((s.B, s.T, 3 * s.C))
    expected, lse = np.empty((s.B * s.T, s.C)), np.empty((s.B, s.NH, s.T))
    attention_forward_ref(expected, lse, qkv.reshape(s.B * s.T, 3 * s.C))
    got, cache = np.full((s.B, s.T, s.C), np.nan), np.full(qkv.shape, np.nan)
    for t in range(s.T):
        out = np.empty((s.B, s.C))
        textbook.attention_one_query(out, cache, np.ascontiguousarray(qkv[:, t]), np.array([t], np.int32), s.NH)
        got[:, t] = out
    yield compare("attention one query", "out", got, expected.reshape(got.shape), 1e-12)  # float64, whose unit is 1e-16


def inputs(s, normal, t):
    """The tensors of a call with the new token at position t, by name."""
    qkv, cache = normal(s.B, 3 * s.C), normal(s.B, s.T, 3 * s.C)
    if s.B > 1:  # the last sequence has scores in the thousands, and most of its weights vanish
        qkv[-1, : s.C] *= OVERFLOWING
    cache[:, t:] *= LOUDER
    return dict(out=written(s.B, s.C), cache=changed(cache), qkv=read(qkv), position=read(np.array([t], np.int32), "i32"))


def positions(s):
    """The positions that are checked: the last; the first, which has nothing before it."""
    return dict.fromkeys((s.T - 1, 0))


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook function in the namespace `functions`, with error bounds."""
    for t in positions(s):
        yield textbook_call(
            functions, textbook, "attention_one_query", inputs(s, normal, t),
            lambda a: (a.out, a.cache, a.qkv, a.position, s.NH),
            lambda after, before, storage: {"out": one_query_errors(after, s, steps=s.T)},
            name=f"attention one query, t={t}",
        )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launcher, with error bounds."""
    for t in positions(s):
        yield Call(
            "attention_one_query",
            f"attention one query, t={t}",
            inputs(s, normal, t) | dict(partials=scratch(fast.one_query_partials_size(s.B, s.T, s.NH, s.HS), kind="f32")),
            lambda a: fast.attention_one_query(a.out, a.cache, a.qkv, a.position, a.partials, s.NH),
            lambda after, before, storage: {"out": one_query_errors(after, s, steps=s.T)},
            lambda a: textbook.attention_one_query(a.out, a.cache, a.qkv, a.position, s.NH),
        )


def one_query_errors(after, s, steps):
    """Bounds (B, C) for out. steps: how often at most a sum grows and is rescaled.

    As in attention.attention_forward_errors, but products and weights are float32 whatever the storage type. A weight is
    exp(score - largest). A score has the error of its dot product; score, largest and their difference are rounded, with conversions to
    powers of two on the way; exp2 is off by two units in the last place. In the sums Σ p v the errors p d of different keys are
    independent, each times (|v| + |out|), where |out| comes from the division by the total.
    """
    t, scale = int(after.position[0]), 1 / math.sqrt(s.HS)
    q = after.qkv.reshape(s.B, 3, s.NH, 1, s.HS)[:, 0]
    k, v = np.moveaxis(after.cache.reshape(s.B, s.T, 3, s.NH, s.HS)[:, : t + 1, 1:], (2, 3), (0, 2))  # (B, NH, t + 1, HS) each
    out = after.out.reshape(s.B, s.NH, 1, s.HS)
    scores = (q * k).sum(axis=3, keepdims=True) * scale
    largest = scores.max(axis=2, keepdims=True)
    d = summation_error(s.HS + 1, typical_product(_lengths(q), _lengths(k) * scale, s.HS))
    d = np.expm1(d + UNIT * (4 + 2 * np.abs(scores) + 2 * np.abs(largest) + np.abs(scores - largest)))
    p = np.exp(scores - largest)
    p /= p.sum(axis=2, keepdims=True)
    squares = np.square(p * d)
    error = SPREAD * np.sqrt(2 * (squares * (v**2 + out**2)).sum(axis=2))
    error += summation_error(steps, np.sqrt((p**2 * v**2).sum(axis=2))) + UNIT * (4 + 2 * steps) * np.abs(out[:, :, 0]) + ROOT_OF_SMALLEST
    return error.reshape(s.B, s.C)


def _lengths(rows):
    return np.sqrt((rows**2).sum(axis=3, keepdims=True))
