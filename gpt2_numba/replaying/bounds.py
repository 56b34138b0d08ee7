"""How far off the results of a layer function may be, on real data.

The bounds are those of layer_checks, derived from the type, the length of a sum and the size of its terms. There the terms have random
signs, and the largest partial sum is about the root of the sum of their squares. Those of real data may be alike, as in the gradient of a
frequent token: their partial sums grow up to the sum itself. So here a sum's size is the root of its sum of squares plus its own magnitude,
and the squares are added up element by element, since one term may outweigh all others.
"""

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING
from gpt2_numba.layer_checks import attention, classifier, gelu, layernorm, mean_loss
from gpt2_numba.layer_checks.sizes import Sizes
from gpt2_numba.layer_checks.tolerances import UNIT, half_ulp, product_error, summation_error
from gpt2_numba.layers import encoder as textbook_encoder
from gpt2_numba.layers.fast import classifier as fast_classifier

LARGEST_SLOPE = 1.13  # of GELU
UNIT_OF_LIBRARY_GELU = 2.0**-11  # cuBLASLt's tanh is an approximation (tanh.approx.f32)


def bounds(function, after, before, side):
    """Bounds on the errors of one Side: parameter -> array, broadcastable. A missing one is exact: the rounded result's bits must agree.

    after, before  namespaces of the call's arrays, without those that are absent; after: as the other side has left them
    """
    if side.storage is None:
        return {}
    return _BOUNDS.get(function, lambda *_: {})(after, before, side)


def _layernorm_forward(after, before, side):
    return layernorm.forward_errors(after, before, side.storage)


def _residual_layernorm_forward(after, before, side):
    return layernorm.forward_errors(_with(after, inp=after.residual), before, side.storage)


def _size(a, b, result):
    """The size of the partial sums of a @ b, element by element: see above."""
    return np.sqrt(np.square(a) @ np.square(b)) + np.abs(result)


def _matmul_forward(after, before, side):
    return {"out": _linear_error(after, after.out, side)}


def _linear_error(after, out, side):
    size = _size(after.inp, after.weight.T, out) + (np.abs(after.bias) if hasattr(after, "bias") else 0)
    return product_error(after.inp.shape[1], size, side.storage)


def _matmul_gelu_forward(after, before, side):
    """The error of the sum goes through GELU's slope. Whether the library computes GELU of the rounded sum is its own affair."""
    error = _linear_error(after, after.before_gelu, side)
    at = error + half_ulp(after.before_gelu, side.storage) if side.storage == BFLOAT16_BITS else error
    return {"before_gelu": error, "out": LARGEST_SLOPE * at + (8 * UNIT + UNIT_OF_LIBRARY_GELU) * np.abs(after.before_gelu)}


def _matmul_backward(after, before, side):
    N, OC = after.dout.shape
    product = after.dweight - before.dweight
    dweight = product_error(N, _size(after.dout.T, after.inp, product) + np.abs(before.dweight), side.storage)
    if side.storage == BFLOAT16_BITS and not SIMULATING:  # cuBLASLt rounds the product before adding it (gpu/gemm.py)
        dweight = dweight + half_ulp(np.abs(product) + dweight, side.storage)
    linear = after.before_slope if hasattr(after, "before_gelu") else after.dinp
    errors = {"dinp": product_error(OC, _size(after.dout, after.weight, linear), side.storage), "dweight": dweight}
    if hasattr(before, "dbias"):
        errors["dbias"] = _column_sums(after.dout, before.dbias)
    if hasattr(after, "before_gelu"):
        error, slope = errors["dinp"], gelu.dinp_error(after.before_slope, after.before_gelu) / (8 * UNIT)
        if side.storage == BFLOAT16_BITS:
            error = error + half_ulp(after.before_slope, side.storage)
        errors["dinp"] = LARGEST_SLOPE * error + (8 * UNIT + UNIT_OF_LIBRARY_GELU) * slope
    return errors


def _layernorm_backward(after, before, side):
    C = after.inp.shape[1]
    additions = C / 32 + 8 if side.fast else C
    errors = layernorm.backward_errors(after, before, additions)
    rstd = after.rstd[:, None]
    xhat = (after.inp - after.mean[:, None]) * rstd
    dxhat = before.dout * after.weight
    means = [np.abs(terms.mean(axis=1, keepdims=True)) for terms in (dxhat, dxhat * xhat)]
    errors["dinp"] = errors["dinp"] + summation_error(additions, 1.0) * rstd * (means[0] + np.abs(xhat) * means[1])
    for name in ("dweight", "dbias"):
        errors[name] = errors[name] + summation_error(len(xhat), np.abs(getattr(after, name) - getattr(before, name)))
    if hasattr(after, "dinp_sums"):
        errors["dinp_sums"] = _column_sums(after.dinp, before.dinp_sums)
    return errors


def _gelu_backward(after, before, side):
    errors = gelu.backward_errors(after, before, side.storage)
    if hasattr(after, "dbias"):
        errors["dbias"] = _column_sums(after.dinp, before.dbias)
    return errors


def _column_sums(terms, before):
    """Bounds for the sums of columns, added to what was there before."""
    return summation_error(len(terms), np.sqrt(np.square(terms).sum(axis=0)) + np.abs(terms.sum(axis=0)) + np.abs(before))


def _attention_forward(after, before, side):
    T = after.lse.shape[2]
    return attention.forward_errors(after, side.storage, _sizes(after), T / 16 if side.fast else T)


def _attention_backward(after, before, side):
    errors = attention.backward_errors(after, side.storage, _sizes(after))
    if hasattr(after, "dbias"):
        errors["dbias"] = _column_sums(after.dqkv, before.dbias)
    return errors


def _sizes(after):
    """The Sizes of attention's arrays; those that it does not have are 0."""
    B, NH, T = after.lse.shape
    return Sizes(B=B, T=T, C=after.qkv.shape[1] // 3, NH=NH, V=0, Vp=0, OC=0)


def _classifier(after, before, side):
    V = after.V
    threads = min(fast_classifier.THREADS, fast_classifier.TRAINING_THREADS)
    return classifier.backward_errors(after, before, V, V / threads + 18 if side.fast else V, after.dloss)


def _accumulate_mean(after, before, side):
    return mean_loss.mean_errors(len(after.values) + 2)(after, before, side.storage)


def _encoder_backward(after, before, side):
    """By row of dwte and dwpe: from the number of terms, and an upper bound on the sum of their squares in any column."""
    B, T = after.tokens.shape
    counts = np.bincount(after.tokens.reshape(-1), minlength=len(after.dwte))[:, None]
    terms = {"dwte": counts, "dwpe": np.where(np.arange(len(after.dwpe)) < T, B, 0)[:, None]}
    squares = {name: np.square(getattr(before, name)).max(axis=1, keepdims=True) for name in terms}
    row_squares = np.square(after.dout).max(axis=1, keepdims=True)
    textbook_encoder.encoder_backward_ref(squares["dwte"], squares["dwpe"], row_squares, after.tokens)
    sizes = {name: np.sqrt(squares[name]) + np.abs(getattr(after, name) - getattr(before, name)) for name in terms}
    return {name: np.where(n > 0, np.sqrt(n + 1) * summation_error(1, sizes[name]), 0) for name, n in terms.items()}


def _with(namespace, **changed):
    return type(namespace)(**{**vars(namespace), **changed})


_BOUNDS = {
    "layernorm_forward": _layernorm_forward, "residual_layernorm_forward": _residual_layernorm_forward, "matmul_forward": _matmul_forward,
    "matmul_gelu_forward": _matmul_gelu_forward, "matmul_backward": _matmul_backward, "layernorm_backward": _layernorm_backward,
    "gelu_forward": lambda after, before, side: gelu.forward_errors(after, before, side.storage), "gelu_backward": _gelu_backward,
    "attention_forward": _attention_forward, "attention_backward": _attention_backward, "classifier_forward_backward": _classifier,
    "accumulate_mean": _accumulate_mean, "encoder_backward": _encoder_backward,
}  # fmt: skip
