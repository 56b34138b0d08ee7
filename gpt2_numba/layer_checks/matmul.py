"""The linear layer with bias, and without bias from C channels to the vocabulary; and both for one row (one_row.py)."""

import math

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING
from gpt2_numba.layer_checks import one_row
from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.tolerances import half_ulp, product_error, summation_error, typical_product
from gpt2_numba.layers import matmul as textbook
from gpt2_numba.layers.fast import matmul as fast


def reference_rows(s, normal, has_bias=True):
    """Yield Rows that check the NumPy reference against central differences."""
    inp, weight, bias, dout = normal((s.N, s.C)), normal((s.OC, s.C)), normal(s.OC), normal((s.N, s.OC))
    bias = bias if has_bias else None
    out, dinp, dweight = np.full(dout.shape, np.nan), np.full(inp.shape, np.nan), normal(weight.shape)
    dbias = normal(s.OC) if has_bias else None
    before = dweight.copy(), dbias if dbias is None else dbias.copy()
    textbook.matmul_backward(dinp, dweight, dbias, dout, inp, weight)
    gradients = {"dinp": (inp, 0, dinp), "dweight": (weight, before[0], dweight)}
    if has_bias:
        gradients["dbias"] = (bias, before[1], dbias)
    yield from check_gradients(_name(has_bias), lambda: textbook.matmul_forward(out, inp, weight, bias), out, dout, gradients)


def _name(has_bias):
    return "matmul" if has_bias else "matmul without bias"


def _norms(matrix, axis):
    return np.sqrt(np.einsum("rc,rc->r" if axis == 1 else "rc,rc->c", matrix, matrix))


def forward_errors(after, before, storage):
    """Bounds for out."""
    C, has_bias = after.inp.shape[1], hasattr(after, "bias")
    typical = typical_product(_norms(after.inp, 1)[:, None], _norms(after.weight, 1).max(), C)
    return {"out": product_error(C, typical + (np.abs(after.bias).max() if has_bias else 0), storage)}


def backward_errors(after, before, storage):
    """Bounds for dinp, dweight and, if there is one, dbias."""
    N, OC = after.dout.shape
    dinp = typical_product(_norms(after.dout, 1)[:, None], _norms(after.weight, 0).max(), OC)
    dweight = typical_product(_norms(after.dout, 0)[:, None], _norms(after.inp, 0).max(), N) + np.abs(before.dweight).max()
    dweight_error = product_error(N, dweight, storage)
    if storage == BFLOAT16_BITS and not SIMULATING:  # cuBLASLt rounds the product before adding it: see gemm
        dweight_error = dweight_error + half_ulp(np.abs(after.dweight - before.dweight) + dweight_error, storage)
    errors = {"dinp": product_error(OC, dinp, storage), "dweight": dweight_error}
    if hasattr(before, "dbias"):
        errors["dbias"] = summation_error(N, _norms(after.dout, 0) + np.abs(before.dbias))
    return errors


def forward_and_backward_tensors(s, normal, has_bias):
    """The arguments of matmul_forward and of matmul_backward, without scratch. As in a model, the results are of order 1.

    Without a bias it is the output layer, from C channels to the padded vocabulary.
    """
    N, C, OC = s.N, s.C, s.OC if has_bias else s.Vp
    inp, weight = read(normal(N, C)), read(normal(OC, C) / np.float32(math.sqrt(C)))
    forward = dict(out=written(N, OC), inp=inp, weight=weight)
    backward = dict(dinp=written(N, C), dweight=changed(normal(OC, C)), dout=read(normal(N, OC)), inp=inp, weight=weight)
    if has_bias:
        forward["bias"], backward["dbias"] = read(normal(OC)), changed(normal(OC))
    return forward, backward


def plain_calls(s, normal, functions, has_bias=True):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    forward, backward = forward_and_backward_tensors(s, normal, has_bias)
    yield textbook_call(
        functions, textbook, "matmul_forward", forward,
        lambda a: (a.out, a.inp, a.weight, a.bias if has_bias else None), forward_errors, f"{_name(has_bias)} forward",
    )  # fmt: skip
    yield textbook_call(
        functions, textbook, "matmul_backward", backward,
        lambda a: (a.dinp, a.dweight, a.dbias if has_bias else None, a.dout, a.inp, a.weight),
        backward_errors, f"{_name(has_bias)} backward",
    )  # fmt: skip


def fast_calls(s, normal, storage, has_bias=True):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    forward, backward = forward_and_backward_tensors(s, normal, has_bias)
    if has_bias:
        backward["scratch"] = scratch(fast.matmul_scratch_size(s.OC), kind="f32")

    def backward_arguments(a):
        return a.dinp, a.dweight, a.dbias if has_bias else None, a.dout, a.inp, a.weight

    yield Call(
        "matmul_forward",
        f"{_name(has_bias)} forward",
        forward,
        lambda a: fast.matmul_forward(a.out, a.inp, a.weight, a.bias if has_bias else None),
        forward_errors,
        lambda a: textbook.matmul_forward(a.out, a.inp, a.weight, a.bias if has_bias else None),
    )
    yield Call(
        "matmul_backward",
        f"{_name(has_bias)} backward",
        backward,
        lambda a: fast.matmul_backward(*backward_arguments(a), a.scratch if has_bias else None),
        backward_errors,
        lambda a: textbook.matmul_backward(*backward_arguments(a)),
    )
    yield from one_row.fast_calls(s, normal, has_bias)
