"""Attention: how errors propagate from the scores through the softmax to output, log-sum-exp and gradients, head by head."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32
from gpt2_numba.layer_checks.calls import Call, adds_up, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.running import run_on_host
from gpt2_numba.layer_checks.tolerances import (
    ROOT_OF_SMALLEST,
    SPREAD,
    UNIT,
    UNIT_TF32,
    in_tf32,
    product_error,
    summation_error,
    typical_product,
)
from gpt2_numba.layers import attention as textbook
from gpt2_numba.layers.fast import attention as fast


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against central differences."""
    qkv, dout = normal((s.N, 3 * s.C)), normal((s.N, s.C))
    out, lse, dqkv = (np.full(shape, np.nan) for shape in (dout.shape, (s.B, s.NH, s.T), qkv.shape))

    def forward():
        textbook.attention_forward(out, lse, qkv)

    forward()
    textbook.attention_backward(dqkv, dout, out, lse, qkv)
    yield from check_gradients("attention", forward, out, dout, {"dqkv": (qkv, 0, dqkv)})


LOUD = 16
OVERFLOWING = 1600  # scores in the thousands: exp overflows if nothing is subtracted, from 89 on; in the simulator from 710 on


def queries_keys_values(s, normal, loudness):
    """qkv. The last token's queries are larger than the others by a factor of `loudness`: most of their attention weights vanish."""
    qkv = normal(s.N, 3 * s.C)
    qkv[-1, : s.C] *= loudness
    return qkv


def forward_errors(after, storage, s, steps):
    """Bounds for out and lse. steps: the number of steps in which a query's sums grow and are rescaled."""
    out_errors, lse_errors = zip(*_for_each_head(attention_forward_errors, after, (after.out,), s, storage, steps))
    return {"out": _as_rows(out_errors, s), "lse": np.reshape(lse_errors, after.lse.shape)}


def backward_errors(after, storage, s):
    """Bounds for dqkv."""
    head_errors = _for_each_head(attention_backward_errors, after, (after.out, after.dout), s, storage)
    return {"dqkv": np.concatenate([_as_rows(errors, s) for errors in zip(*head_errors)], axis=1)}


def bias_errors(after, before):
    """Bounds for dbias, sums over as many rows as dqkv has."""
    return {"dbias": summation_error(len(after.dqkv), _lengths(after.dqkv.T) + np.abs(before.dbias))}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    qkv = queries_keys_values(s, normal, OVERFLOWING)
    forward = textbook_call(
        functions, textbook, "attention_forward",
        dict(out=written(s.N, s.C), lse=written(s.B, s.NH, s.T, kind="f32"), qkv=read(qkv)),
        lambda a: (a.out, a.lse, a.qkv),
        lambda after, before, storage: forward_errors(after, storage, s, s.T),
    )  # fmt: skip
    yield forward
    kept, _ = run_on_host(forward, FLOAT32)
    yield textbook_call(
        functions, textbook, "attention_backward",
        dict(dqkv=written(s.N, 3 * s.C), dout=read(normal(s.N, s.C)), out=read(kept.out), lse=read(kept.lse, "f32"), qkv=read(qkv)),
        lambda a: (a.dqkv, a.dout, a.out, a.lse, a.qkv),
        lambda after, before, storage: backward_errors(after, storage, s),
    )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    qkv = queries_keys_values(s, normal, LOUD)
    scratch_size = fast.attention_scratch_size(s.B, s.T, s.NH, s.HS, storage)
    forward = Call(
        "attention_forward",
        "attention forward",
        dict(out=written(s.N, s.C), lse=written(s.B, s.NH, s.T, kind="f32"), qkv=read(qkv), scratch=scratch(scratch_size, kind="f32")),
        lambda a: fast.attention_forward(a.out, a.lse, a.qkv, a.scratch),
        lambda after, before, storage: forward_errors(after, storage, s, s.T / 16),  # tiles of at least 16 keys
        lambda a: textbook.attention_forward(a.out, a.lse, a.qkv),
    )
    yield forward
    kept, _ = run_on_host(forward, storage)
    yield Call(
        "attention_backward",
        "attention backward",
        dict(dqkv=written(s.N, 3 * s.C), dbias=changed(normal(3 * s.C)), dout=read(normal(s.N, s.C)), out=read(kept.out),
             lse=read(kept.lse, "f32"), qkv=read(qkv), scratch=scratch(scratch_size, kind="f32")),
        lambda a: fast.attention_backward(a.dqkv, a.dout, a.out, a.lse, a.qkv, a.scratch, a.dbias),
        lambda after, before, storage: backward_errors(after, storage, s) | bias_errors(after, before),
        lambda a: textbook.attention_backward(a.dqkv, a.dout, a.out, a.lse, a.qkv),
        from_stored=adds_up("dbias", "dqkv"),
    )  # fmt: skip


def _for_each_head(head_bounds, a, more, s, *constants):
    """Call head_bounds(q, k, v, lse, *the head's rows in `more`, *constants) for all B * NH heads, in threads, with float32 arrays."""
    arrays = [*np.split(a.qkv, 3, axis=1), *more]
    arrays = [rows.reshape(s.B, s.T, s.NH, s.HS).swapaxes(1, 2).reshape(-1, s.T, s.HS) for rows in arrays]
    arrays.insert(3, a.lse.reshape(-1, s.T))

    def one(head):
        return head_bounds(*(array[head].astype(np.float32) for array in arrays), *constants)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(s.B * s.NH)))


def _as_rows(heads, s):
    """B * NH matrices (T, HS) as (N, C)."""
    return np.reshape(heads, (s.B, s.NH, s.T, s.HS)).swapaxes(1, 2).reshape(s.N, s.C)


def weights_and_errors(q, k, lse, storage):
    """One head's attention weights p (T, T), and their relative errors.

    A weight is exp(score - lse). A score has the error of its dot product; score, lse and their difference are rounded to float32, with
    conversions to powers of two on the way; exp2 is off by two units in the last place. An error of d in the exponent is one of p d in p.
    """
    T, HS = q.shape
    scale = np.float32(1 / math.sqrt(HS))
    scores = q @ k.T * scale
    d = product_error(HS, typical_product(_lengths(q)[:, None], _lengths(k) * scale, HS), storage)
    d += UNIT * (4 + 2 * np.abs(scores) + 2 * np.abs(lse)[:, None] + np.abs(scores - lse[:, None]))
    causal = np.tri(T, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # above the diagonal
        p = np.nan_to_num(np.exp(scores - lse[:, None])) * causal
    return p, np.expm1(d) * causal


def factor_rounding(storage):
    """Relative error of a weight or a score's gradient as a factor of a product: it is rounded to the type of the other factor."""
    return 2.0**-8 if storage == BFLOAT16_BITS else UNIT_TF32 if in_tf32(storage) else UNIT


def attention_forward_errors(q, k, v, lse, out, storage, steps):
    """Bounds for one head's output and log-sum-exp. q, k, v, out (T, HS), lse (T,): from the reference, float32.

    If the weights of a query have relative errors d, their sum is off by Σ p d, and so is its logarithm; the additions and the logarithm
    also round. The sum grows step by step; each larger score rescales it and rounds it again. In the output Σ p v, the errors of different
    keys (p d, and the rounding of p as a factor) are independent: SPREAD times the root of the sum of their squares, each times
    (|v| + |out|), where |out| comes from the division by the row's sum.
    """
    T, _ = q.shape
    p, d = weights_and_errors(q, k, lse, storage)
    lse_error = (p * d).sum(axis=1) + summation_error(steps + 10, 1.0) + UNIT * (4 * math.log2(2 * T) + 2 * steps + 4 * np.abs(lse))
    squares = np.square(p * (d + factor_rounding(storage)))
    out_error = SPREAD * np.sqrt(2 * (squares @ v**2 + squares.sum(axis=1, keepdims=True) * out**2))
    out_error += product_error(T, np.sqrt(p**2 @ v**2), storage) + UNIT * (4 + 2 * steps) * np.abs(out) + ROOT_OF_SMALLEST
    return out_error, lse_error


def attention_backward_errors(q, k, v, lse, out, dout, storage):
    """Bounds for one head's dq, dk and dv. Arguments as in forward; out and lse are exactly the inputs of backward.

    dscore = p (datt - delta). datt has the error of its dot product; delta, a sum over a row, is off by e; p has the relative error d. Then
    dscore is rounded as a factor. In the sums over keys (dq) and over queries (dk) these errors are independent, except e, which is common
    to all keys of a query: in dq it counts as e |Σ p k|, in dk it is independent again. In dv the error is that of p and its rounding.
    """
    T, HS = q.shape
    p, d = weights_and_errors(q, k, lse, storage)
    rounding, scale = factor_rounding(storage), 1 / math.sqrt(HS)
    datt, delta = dout @ v.T, (out * dout).sum(axis=1, keepdims=True)
    datt_error = product_error(HS, typical_product(_lengths(dout)[:, None], _lengths(v), HS), storage)
    datt_error = datt_error + 4 * UNIT * (np.abs(datt) + np.abs(delta))
    e = summation_error(HS, _lengths(out * dout))[:, None]
    dscore = p * (datt - delta)
    independent = np.square(p * datt_error) + np.square(np.abs(dscore) * (d + rounding))
    squares = np.square(dscore)

    dq = SPREAD * np.sqrt(independent @ k**2) + e * np.abs(p @ k) + product_error(T, np.sqrt(squares @ k**2), storage)
    dk = SPREAD * np.sqrt((independent + np.square(p * e)).T @ q**2) + product_error(T, np.sqrt(squares.T @ q**2), storage)
    dv = SPREAD * np.sqrt(np.square(p * (d + rounding)).T @ dout**2) + product_error(T, np.sqrt((p**2).T @ dout**2), storage)
    return dq * scale + ROOT_OF_SMALLEST, dk * scale + ROOT_OF_SMALLEST, dv + ROOT_OF_SMALLEST


def _lengths(rows):
    return np.sqrt(np.einsum("rc,rc->r", rows, rows))
