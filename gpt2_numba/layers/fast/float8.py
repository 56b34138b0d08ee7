"""The linear layer with factors of eight bits: twice the tensor cores' rate, and half the energy for each product.

    q(x) = round8(x s)        s = the largest power of two with which max |x| still fits (gpu/float8.py)

    out      = q(inp) q(weight)ᵀ / (s_inp s_weight) + bias
    dinp     = q(dout) q(weight) / (s_dout s_weight)
    dweight += q(dout)ᵀ q(inp)   / (s_dout s_inp)

Everything else is as in layers/fast/matmul.py; results are in bfloat16. (Sums: FAST_ACCUMULATION below.) Each tensor is rounded by the
scale of its own contents. There is no history of scales, so a run that is resumed has the bits of one that was not stopped.

What is rounded when. A tensor core wants both factors along the sum: channels in `out`, output channels in dinp, rows in dweight.

    weight      after each update: as it lies for out, transposed for dinp
    inp         in forward: as it lies for out, and at the same time transposed for dweight. The transposed one is kept until backward
    dout        in backward: as it lies for dinp, transposed for dweight

So backward needs no layer's inp in 16 bits. inp may be the MLP's fch, whose GELU is the factor: then the GELU is computed while fch is
rounded, and is never stored in 16 bits.

The largest |x| of a tensor comes from the kernel that makes it (`largest` in layernorm.py and gelu.py), or from a kernel of its own.

    | array          | shape, type            | forward | backward                                                                   |
    | -------------- | ---------------------- | ------- | -------------------------------------------------------------------------- |
    | inp            | (N, C) bfloat16        | [r]     | not needed. N, C and OC are multiples of 16                                |
    | bias           | (OC,) bfloat16         | [r]     |                                                                            |
    | out, dout      | (N, OC) bfloat16       | [w]     | [r]                                                                        |
    | dinp           | (N, C) bfloat16        |         | [w]                                                                        |
    | dweight        | (OC, C) bfloat16       |         | [+] dbias has no product: the kernel that makes dout adds it up            |
    | factors        | Factors                | [+]     | [+] see there                                                              |
"""

import math
from dataclasses import dataclass
from typing import Any

from gpt2_numba.gpu.argument_checks import check_arrays
from gpt2_numba.gpu.float8 import E4M3, E5M2
from gpt2_numba.gpu.gemm import float8_gemm
from gpt2_numba.gpu.quantize import find_largest, quantize

WEIGHT_FORMAT = INP_FORMAT = E4M3
DOUT_FORMAT = E5M2
# Whether the partial sums of a product may stay in the tensor cores' short registers (gpu/gemm.py).
FAST_ACCUMULATION = {"out": True, "dinp": True, "dweight": True}
INP, DOUT, WEIGHT = range(3)  # the entries of largest and inverse_scales


@dataclass(frozen=True)
class Factors:
    """A linear layer's factors in eight bits. Arrays of uint8 but for the last two."""

    weight: Any  # (OC, C)
    weight_transposed: Any  # (C, OC)
    inp_transposed: Any  # (C, N), kept from forward to backward
    scratch: Any  # flat, room for inp or dout; all layers may share it
    scratch_transposed: Any  # flat, room for dout transposed
    largest: tuple  # of inp, dout and weight, each (1,) float32
    inverse_scales: tuple  # the same


def round_weight(weight, factors):
    """Round a weight [r] (OC, C), bfloat16, that has changed. factors.largest[WEIGHT] must be 0 before.

    Raises ValueError or TypeError if a shape or type does not fit.
    """
    find_largest(factors.largest[WEIGHT], weight)
    results = factors.weight, factors.weight_transposed, factors.inverse_scales[WEIGHT]
    quantize(*results, inp=weight, largest=factors.largest[WEIGHT], form=WEIGHT_FORMAT)


# Parameters: the plain launcher's, the factors, and how inp becomes one.
def matmul_forward(out, inp, weight, bias, factors, gelu=False, has_largest=False, keep=True):
    """out = inp weightᵀ + bias, or with gelu GELU(inp) weightᵀ + bias.

    weight [r] (OC, C), only checked: factors.weight takes its place. The other arguments are those of the table above.
    has_largest: whether factors.largest[INP] has been set; otherwise it must be 0 before
    keep: whether to write factors.inp_transposed, for backward
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    (N, C), OC = inp.shape, weight.shape[0]
    check_arrays(
        "matmul_forward", {"N": N, "C": C, "OC": OC},
        out=(out, "N OC"), inp=(inp, "N C"), weight=(weight, "OC C"), bias=(bias, "OC"), factors_weight=(factors.weight, "u8 OC C"),
    )  # fmt: skip
    largest, scale = factors.largest[INP], factors.inverse_scales[INP]
    if not has_largest:
        find_largest(largest, inp, gelu)
    inp8 = front(factors.scratch, inp.shape)
    quantize(inp8, factors.inp_transposed if keep else None, scale, inp=inp, largest=largest, form=INP_FORMAT, gelu=gelu)
    float8_gemm(
        out=out, a=inp8, b=factors.weight, a_scale=scale, b_scale=factors.inverse_scales[WEIGHT], bias=bias,
        formats=(INP_FORMAT.name, WEIGHT_FORMAT.name), fast_accumulation=FAST_ACCUMULATION["out"],
    )  # fmt: skip


def round_inp_again(inp, factors, gelu=False):
    """Write factors.inp_transposed, which was not kept, by the scale of forward: factors.largest[INP] must still be that of inp.

    Arguments as in matmul_forward. Raises ValueError or TypeError if a shape or type does not fit.
    """
    largest, scale = factors.largest[INP], factors.inverse_scales[INP]
    quantize(None, factors.inp_transposed, scale, inp=inp, largest=largest, form=INP_FORMAT, gelu=gelu)


def matmul_backward(dinp, dweight, dout, factors, has_largest=False):
    """Gradients of matmul_forward, but for dbias. Arguments as in the table above.

    has_largest: whether factors.largest[DOUT] has been set; otherwise it must be 0 before
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    (N, OC), C = dout.shape, dinp.shape[1]
    check_arrays(
        "matmul_backward", {"N": N, "C": C, "OC": OC},
        dinp=(dinp, "N C"), dweight=(dweight, "OC C"), dout=(dout, "N OC"), inp_transposed=(factors.inp_transposed, "u8 C N"),
    )  # fmt: skip
    largest, scale = factors.largest[DOUT], factors.inverse_scales[DOUT]
    if not has_largest:
        find_largest(largest, dout)
    dout8, dout8_transposed = front(factors.scratch, dout.shape), front(factors.scratch_transposed, dout.shape[::-1])
    quantize(dout8, dout8_transposed, scale, inp=dout, largest=largest, form=DOUT_FORMAT)
    float8_gemm(
        out=dweight, a=dout8_transposed, b=factors.inp_transposed, a_scale=scale, b_scale=factors.inverse_scales[INP], accumulate=True,
        formats=(DOUT_FORMAT.name, INP_FORMAT.name), fast_accumulation=FAST_ACCUMULATION["dweight"],
    )  # fmt: skip
    float8_gemm(
        out=dinp, a=dout8, b=factors.weight_transposed, a_scale=scale, b_scale=factors.inverse_scales[WEIGHT],
        formats=(DOUT_FORMAT.name, WEIGHT_FORMAT.name), fast_accumulation=FAST_ACCUMULATION["dinp"],
    )  # fmt: skip


def front(array, shape):
    """The front of a flat array, which must be long enough, as an array of this shape."""
    return array[: math.prod(shape)].reshape(shape)
