"""Attention: how errors pass from stored scores through the softmax into weights, output and gradients, head by head."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpt2_numba.layer_checks.calls import Call, read, scratch, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.running import run_on_host
from gpt2_numba.layer_checks.tolerances import (
    ROOT_OF_SMALLEST,
    SMALLEST,
    SPREAD,
    UNIT,
    half_ulp,
    product_error,
    summation_error,
    typical_product,
)
from gpt2_numba.layers.attention import attention_backward, attention_forward, padded_keys


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    qkv, dout = normal((s.N, 3 * s.C)), normal((s.N, s.C))
    per_head, weights = (s.B, s.NH, s.T, s.HS), (s.B, s.NH, s.T, padded_keys(s.T))
    out, heads, att, out_heads = (np.full(shape, np.nan) for shape in (dout.shape, (3, *per_head), weights, per_head))

    def forward():
        attention_forward(out, heads, att, out_heads, qkv)

    forward()
    dqkv, dheads, datt = (np.full(array.shape, np.nan) for array in (qkv, heads, att))
    attention_backward(dqkv, dheads, datt, out_heads, dout, heads, att)
    yield from check_gradients("attention", forward, out, dout, {"dqkv": (qkv, 0, dqkv)})


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    per_head, weights = (s.B, s.NH, s.T, s.HS), (s.B, s.NH, s.T, padded_keys(s.T))
    qkv = normal(s.N, 3 * s.C)
    qkv[-1, : s.C] *= 16  # the last token's queries are large: exp must not overflow, and most of its weights vanish

    def forward_errors(after, before, storage):
        of_p, of_out = zip(*_for_each_head(attention_forward_errors, after, after.out, s, storage))
        att = np.zeros(after.att.shape, np.float32)  # 0 for keys after the query, and for padding: zero, exactly
        att[..., : s.T] = np.reshape(of_p, (s.B, s.NH, s.T, s.T))
        return {"att": att, "out": np.reshape(of_out, per_head).transpose(0, 2, 1, 3).reshape(after.out.shape)}

    def backward_errors(after, before, storage):
        bounds = np.reshape(_for_each_head(attention_backward_errors, after, after.dout, s, storage), (s.B, s.NH, 3, s.T, s.HS))
        return {"dqkv": bounds.transpose(0, 3, 2, 1, 4).reshape(after.dqkv.shape)}

    forward = Call(
        "attention forward",
        dict(out=written(s.N, s.C), heads=written(3, *per_head), att=written(*weights), out_heads=scratch(*per_head), qkv=read(qkv)),
        lambda a: attention_forward(a.out, a.heads, a.att, a.out_heads, a.qkv),
        forward_errors,
    )
    yield forward
    kept, _ = run_on_host(forward, storage)
    yield Call(
        "attention backward",
        dict(dqkv=written(s.N, 3 * s.C), dheads=scratch(3, *per_head), datt=scratch(*weights), dout_heads=scratch(*per_head),
             dout=read(normal(s.N, s.C)), heads=read(kept.heads), att=read(kept.att)),
        lambda a: attention_backward(a.dqkv, a.dheads, a.datt, a.dout_heads, a.dout, a.heads, a.att),
        backward_errors,
    )  # fmt: skip


def _for_each_head(bounds_of_head, a, rows, s, storage):
    """Call bounds_of_head(q, k, v, p, rows of the head, storage) for all B * NH heads, in threads, with float32 arrays."""
    heads = a.heads.reshape(3, s.B * s.NH, s.T, s.HS)
    rows, p = _heads_of(rows, s.B, s.NH), a.att.reshape(s.B * s.NH, s.T, -1)

    def one(head):
        return bounds_of_head(*(x.astype(np.float32) for x in (*heads[:, head], p[head, :, : s.T], rows[head])), storage)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(s.B * s.NH)))


def _heads_of(rows, B, NH):
    """(N, C) as (B * NH, T, HS)."""
    return rows.reshape(B, -1, NH, rows.shape[1] // NH).transpose(0, 2, 1, 3).reshape(B * NH, -1, rows.shape[1] // NH)


def attention_forward_errors(q, k, v, p, out, storage):
    """Bounds for one head's attention weights and output, with scores and weights stored in the precision's own type.

    q, k, v, out (T, HS), p (T, T): the reference's, float32. Returns bounds for p and out.
    A score that is off by d changes its weight p by p d, and the sum of the row, by which all are divided, by Σ p d. So

        |error of p| <= p (exp(d + Σ p d) - 1)      d: the product's error, and half a unit in the last place of the stored score

    Stored weights are rounded once more, by r. In the output Σ p v the errors p d + r of different keys are independent:
    SPREAD times the root of the sum of their squares, each times (|v| + |out|), since the division by the row's sum takes out |out|.
    """
    T, HS = q.shape
    scale = np.float32(1 / math.sqrt(HS))
    causal = np.tri(T, dtype=np.float32)
    scores = q @ k.T * scale
    d = product_error(HS, typical_product(_lengths(q)[:, None], _lengths(k) * scale, HS), storage) + half_ulp(scores, storage)
    # exp: two units of its own, and the rounding of score - largest; the sum: a lane's share, and what joins the lanes.
    d += UNIT * (4 + np.abs(scores - scores.max(axis=1, keepdims=True))) + summation_error(T / 32 + 10, 1.0)
    d *= causal
    of_p = p * np.expm1(d + (p * d).sum(axis=1, keepdims=True)) + SMALLEST * causal
    squares = np.square(p * np.expm1(d) + half_ulp(p, storage))
    of_out = SPREAD * np.sqrt(2 * (squares @ v**2 + squares.sum(axis=1, keepdims=True) * out**2))
    of_out += product_error(T, np.sqrt(p**2 @ v**2), storage) + ROOT_OF_SMALLEST
    return of_p, of_out


def attention_backward_errors(q, k, v, p, dout, storage):
    """Bounds for one head's dq, dk and dv, with datt and dscore stored in the precision's own type. Arguments as in forward.

    datt is off by d: the product's error, and half a unit in the last place. dscore = p (datt - Σ p datt) is off by p d by itself and by
    p e through the row's sum, with e = SPREAD sqrt(Σ p² d²); then it is rounded, by r. In the sums over keys (dq) and over queries (dk)
    the errors p d + r are independent, while e is common to a row: in dq it counts as e |Σ p k|, in dk it is independent again.
    """
    T, HS = q.shape
    datt = dout @ v.T * np.tri(T, dtype=np.float32)
    d = product_error(HS, typical_product(_lengths(dout)[:, None], _lengths(v), HS), storage) + half_ulp(datt, storage)
    total = (p * datt).sum(axis=1, keepdims=True)
    e = SPREAD * np.sqrt(np.square(p * d).sum(axis=1, keepdims=True))
    e += summation_error(T / 32 + 10, np.sqrt(np.square(p * datt).sum(axis=1, keepdims=True)))
    dscore = p * (datt - total)
    own = np.square(p * (d + 4 * UNIT * (np.abs(datt) + np.abs(total)))) + np.square(half_ulp(dscore, storage))
    squares, scale = np.square(dscore), 1 / math.sqrt(HS)

    dq = SPREAD * np.sqrt(own @ k**2) + e * np.abs(p @ k) + product_error(T, np.sqrt(squares @ k**2), storage)
    of_query = own + np.square(p * e)
    dk = SPREAD * np.sqrt(of_query.T @ q**2) + product_error(T, np.sqrt(squares.T @ q**2), storage)
    dv = product_error(T, np.sqrt((p**2).T @ dout**2), storage)
    return np.stack((dq * scale, dk * scale, dv)) + ROOT_OF_SMALLEST


def _lengths(rows):
    return np.sqrt(np.einsum("rc,rc->r", rows, rows))
