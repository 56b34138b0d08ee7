"""The linear layer for one row, with a LayerNorm before it, a GELU after it, and an addition: the errors of each, one after the other."""

import math
from types import SimpleNamespace

import numpy as np

from gpt2_numba.layer_checks import layernorm as layernorm_checks
from gpt2_numba.layer_checks.calls import Call, changed, read, written
from gpt2_numba.layer_checks.tolerances import SPREAD, UNIT, half_ulp, summation_error, typical_product
from gpt2_numba.layers import gelu, layernorm, matmul
from gpt2_numba.layers.fast import one_row as fast


def fast_calls(s, normal, has_bias):
    """Yield the Calls of the launcher: the layers of a block, or the output layer if there is no bias."""
    if not has_bias:
        yield _call(s, normal, has_bias=False, normalised=True)
        return
    yield _call(s, normal, normalised=True, activated=True)
    yield _call(s, normal, accumulated=True)


def _call(s, normal, has_bias=True, normalised=False, activated=False, accumulated=False):
    inp, layernorm_weight, layernorm_bias = layernorm_checks.inputs(s, normal) if normalised else (normal(s.N, s.C), None, None)
    inp = inp[:1] if has_bias else inp[-1:]  # the first row that layernorm_checks makes is far from 0, the others are not
    C, OC = s.C, s.OC if has_bias else s.Vp
    tensors = dict(out=changed(normal(1, OC)) if accumulated else written(1, OC), inp=read(inp))
    tensors["weight"] = read(normal(OC, C) / np.float32(math.sqrt(C)))
    if has_bias:
        tensors["bias"] = read(normal(OC))
    if normalised:
        tensors |= dict(layernorm_weight=read(layernorm_weight), layernorm_bias=read(layernorm_bias))

    def launch(a):
        fast.one_row_forward(
            a.out, a.inp, a.weight, a.bias if has_bias else None, (a.layernorm_weight, a.layernorm_bias) if normalised else None,
            activated, accumulated,
        )  # fmt: skip

    def reference(a):
        a.normalised, a.mean, a.rstd, a.linear = a.inp, np.empty(1), np.empty(1), np.empty((1, OC))
        if normalised:
            a.normalised = np.empty_like(a.inp)
            layernorm.layernorm_forward(a.normalised, a.mean, a.rstd, a.inp, a.layernorm_weight, a.layernorm_bias)
        matmul.matmul_forward(a.linear, a.normalised, a.weight, a.bias if has_bias else None)
        result = a.linear.copy()
        if activated:
            gelu.gelu_forward(result, a.linear)
        a.out[:] = a.out + result if accumulated else result

    def errors(after, before, storage):
        row_lengths, weight_lengths = np.sqrt((after.normalised**2).sum(axis=1)), np.sqrt((after.weight**2).sum(axis=1))
        typical = typical_product(row_lengths[:, None], weight_lengths.max(), C) + (np.abs(after.bias).max() if has_bias else 0)
        error = summation_error(C + 1, typical)
        if normalised:  # and rounded to the type of inp; the errors of different channels are independent
            of_layernorm = SimpleNamespace(
                inp=after.inp, out=after.normalised, rstd=after.rstd, weight=after.layernorm_weight, bias=after.layernorm_bias
            )
            e = layernorm_checks.forward_errors(of_layernorm, None, storage)["out"] + half_ulp(after.normalised, storage)
            error = error + SPREAD * typical_product(np.sqrt((e**2).sum(axis=1))[:, None], weight_lengths.max(), C)
        if activated:  # the derivative of the GELU is below 1.13
            error = 1.13 * error + 8 * UNIT * np.abs(after.linear)
        return {"out": error + accumulated * UNIT * np.abs(after.out)}

    parts = ["layernorm, "] * normalised + ["linear"] + [", gelu"] * activated + [", added"] * accumulated
    return Call("one_row_forward", f"one row: {''.join(parts)}", tensors, launch, errors, reference)
