"""The linear layer with its bias and, from C channels to the vocabulary, without."""

import math

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING
from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.tolerances import half_ulp, product_error, summation_error, typical_product
from gpt2_numba.layers.matmul import matmul_backward, matmul_forward, matmul_scratch_size


def reference_rows(s, normal, has_bias=True):
    """Rows of the NumPy reference against central differences or the definition."""
    inp, weight, bias, dout = normal((s.N, s.C)), normal((s.OC, s.C)), normal(s.OC), normal((s.N, s.OC))
    bias = bias if has_bias else None
    out, dinp, dweight = np.full(dout.shape, np.nan), np.full(inp.shape, np.nan), normal(weight.shape)
    dbias = normal(s.OC) if has_bias else None
    before = dweight.copy(), dbias if dbias is None else dbias.copy()
    matmul_backward(dinp, dweight, dbias, dout, inp, weight, None)
    gradients = {"dinp": (inp, 0, dinp), "dweight": (weight, before[0], dweight)}
    if has_bias:
        gradients["dbias"] = (bias, before[1], dbias)
    name = "matmul" if has_bias else "matmul without bias"
    yield from check_gradients(name, lambda: matmul_forward(out, inp, weight, bias), out, dout, gradients)


def kernel_calls(s, normal, storage, has_bias=True):
    # Without a bias it is the classifier, from C channels to the padded vocabulary. Values as in a model: results of size 1.
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    N, C, OC = s.N, s.C, s.OC if has_bias else s.Vp
    name = "matmul" if has_bias else "matmul without bias"
    inp, weight, dout = normal(N, C), normal(OC, C) / np.float32(math.sqrt(C)), normal(N, OC)
    bias = {"bias": read(normal(OC))} if has_bias else {}

    def norms(matrix, axis):
        return np.sqrt(np.einsum("rc,rc->r" if axis == 1 else "rc,rc->c", matrix, matrix))

    def forward_errors(after, before, storage):
        typical = typical_product(norms(after.inp, 1)[:, None], norms(after.weight, 1).max(), C)
        return {"out": product_error(C, typical + (np.abs(after.bias).max() if has_bias else 0), storage)}

    yield Call(
        f"{name} forward",
        dict(out=written(N, OC), inp=read(inp), weight=read(weight), **bias),
        lambda a: matmul_forward(a.out, a.inp, a.weight, a.bias if has_bias else None),
        forward_errors,
    )

    def backward_errors(after, before, storage):
        dinp = typical_product(norms(after.dout, 1)[:, None], norms(after.weight, 0).max(), OC)
        dweight = typical_product(norms(after.dout, 0)[:, None], norms(after.inp, 0).max(), N) + np.abs(before.dweight).max()
        dweight_error = product_error(N, dweight, storage)
        if storage == BFLOAT16_BITS and not SIMULATING:  # cuBLASLt rounds the product before it adds it: see gemm
            dweight_error = dweight_error + half_ulp(np.abs(after.dweight - before.dweight) + dweight_error, storage)
        errors = {"dinp": product_error(OC, dinp, storage), "dweight": dweight_error}
        if has_bias:
            errors["dbias"] = summation_error(N, norms(after.dout, 0) + np.abs(before.dbias))
        return errors

    of_bias = dict(dbias=changed(normal(OC)), scratch=scratch(matmul_scratch_size(OC), kind="f32")) if has_bias else {}
    yield Call(
        f"{name} backward",
        dict(dinp=written(N, C), dweight=changed(normal(OC, C)), dout=read(dout), inp=read(inp), weight=read(weight), **of_bias),
        lambda a: matmul_backward(
            a.dinp, a.dweight, a.dbias if has_bias else None, a.dout, a.inp, a.weight, a.scratch if has_bias else None
        ),
        backward_errors,
    )
