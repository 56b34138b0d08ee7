"""What each layer function computes, in textbook functions. A fused one is a sequence of them, as in layer_checks.

`a` is a namespace of host arrays, named as the function's parameters.
"""

import numpy as np

from gpt2_numba.gpu.backend import to_storage
from gpt2_numba.layer_checks.rows import as_float, column_sums

TEXTBOOK = {
    "encoder_forward": ("out", "tokens", "wte", "wpe"),
    "layernorm_forward": ("out", "mean", "rstd", "inp", "weight", "bias"),
    "matmul_forward": ("out", "inp", "weight", "bias"),
    "attention_forward": ("out", "lse", "qkv"),
    "residual_forward": ("out", "inp", "branch"),
    "gelu_forward": ("out", "inp"),
    "classifier_forward_backward": ("losses", "logits", "targets", "dloss", "V"),
    "accumulate_mean": ("mean", "values"),
    "matmul_backward": ("dinp", "dweight", "dbias", "dout", "inp", "weight"),
    "layernorm_backward": ("dinp", "dweight", "dbias", "dout", "inp", "weight", "mean", "rstd"),
    "residual_backward": ("dinp", "dbranch", "dout"),
    "gelu_backward": ("dinp", "dout", "inp"),
    "attention_backward": ("dqkv", "dout", "out", "lse", "qkv"),
    "encoder_backward": ("dwte", "dwpe", "dout", "tokens"),
}  # fmt: skip
FUSED = {
    "residual_layernorm_forward": ("residual_forward", "layernorm_forward"), "matmul_gelu_forward": ("matmul_forward", "gelu_forward"),
}  # fmt: skip


def parts_of(function, arguments):
    """The textbook functions that a call consists of."""
    if function == "matmul_backward" and arguments.get("before_gelu") is not None:
        return function, "gelu_backward"
    return FUSED.get(function, (function,))


def compute(function, a, other, storage=None):
    """What a call writes, by the other Side: changes the arrays of the namespace `a`, in which None is an absent argument.

    storage  the type to which a fused function rounds what it goes on with; None: it is not rounded, as on the other side's own path
    """

    def do(name, **renamed):
        given = {parameter: getattr(a, renamed.get(parameter, parameter)) for parameter in TEXTBOOK[name]}
        other.call(name, given)

    if function == "residual_layernorm_forward":
        do("residual_forward", out="residual")
        if storage is not None:
            a.residual[:] = rounded(a.residual, storage)
        do("layernorm_forward", inp="residual")
    elif function == "matmul_gelu_forward":
        do("matmul_forward", out="before_gelu")
        do("gelu_forward", inp="before_gelu")
    elif function == "matmul_backward" and getattr(a, "before_gelu", None) is not None:
        do("matmul_backward")
        a.before_slope = a.dinp.copy()
        do("gelu_backward", dout="before_slope", inp="before_gelu")
    else:
        do(function)


_COLUMN_SUMS = {
    "gelu_backward": ("dbias", "dinp"), "layernorm_backward": ("dinp_sums", "dinp"), "attention_backward": ("dbias", "dqkv"),
}  # fmt: skip


def add_column_sums(function, a, before, written):
    """The bias gradient, if any, that a fused backward adds up from the matrix that it writes.

    before   name -> argument before the call        written   the same, of what was written; float32, float64 or bfloat16's bits
    """
    name, matrix = _COLUMN_SUMS.get(function, (None, None))
    if name and getattr(a, name, None) is not None:
        setattr(a, name, before[name] + column_sums(written[matrix]))


def rounded(values, storage):
    """The values after rounding to a storage type, as float64."""
    return as_float(to_storage(values.astype(np.float32), storage)).astype(np.float64)
