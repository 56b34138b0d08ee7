"""The linear layer with factors of eight bits: rounding, where every bit is determined, and the three products.

A product of two factors of eight bits is exact in float32, and only the sum is not. Hopper's tensor cores add 32 products at a time to a
partial sum: all are shifted to the exponent of the largest of them and cut off 13 bits below it. The largest is a product, or the partial
sum itself, which may grow to the size of the result. These errors go in one direction, so they add up linearly. Without fast accumulation
the partial sums of 128 products are added in float32 by ordinary instructions, but within the 128 it is the same; so the bound is, too.
"""

import numpy as np

from gpt2_numba.gpu import quantize as fast
from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING, bfloat16_bits, bfloat16_values
from gpt2_numba.gpu.float8 import E4M3, E5M2, float8_values
from gpt2_numba.gpu.gemm import float8_gemm
from gpt2_numba.layer_checks.calls import Call, changed, read, written
from gpt2_numba.layer_checks.running import check_call
from gpt2_numba.layer_checks.tolerances import half_ulp, product_error, typical_product

UNIT_OF_SUMS, AT_A_TIME = 2.0**-12, 32  # cut off, not rounded: twice 2^-13
ALL_FORMATS = (("out", E4M3, E4M3), ("dinp", E5M2, E4M3), ("dweight", E5M2, E4M3), ("dinp", E4M3, E4M3))


def calls(rows, inner, columns, normal):
    """Yield the Calls for factors (rows, inner) and (columns, inner): multiples of 16."""
    for form in (E4M3, E5M2):
        for scale in (1.0, 3e-5, 7e4):
            yield from rounding_calls(np.float32(scale) * normal(rows, inner), form)
    yield from rounding_calls(np.zeros((rows, inner), np.float32), E4M3)
    for name, form_a, form_b in ALL_FORMATS:
        for fast_accumulation in (False, True):
            yield product_call(name, normal(rows, inner), normal(columns, inner), normal, (form_a, form_b), fast_accumulation)


def rounding_calls(inp, form):
    """Yield the Calls of find_largest and quantize."""
    before = np.zeros(1, np.float32)
    yield Call(
        "find_largest", "find largest",
        dict(largest=changed(before, kind="f32"), inp=read(inp)),
        lambda a: fast.find_largest(a.largest, a.inp),
        reference=lambda a: np.copyto(a.largest, fast.find_largest_ref(a.inp)),
    )  # fmt: skip
    N, C = inp.shape
    results = dict(natural=written(N, C, kind="u8"), transposed=written(C, N, kind="u8"))
    for names in (("natural", "transposed"), ("natural",), ("transposed",)):
        tensors = {name: results[name] for name in names}
        tensors |= dict(scale=written(1, kind="f32"), inp=read(inp), largest=read(largest_of(inp), kind="f32"))

        def launch(a):
            fast.quantize(getattr(a, "natural", None), getattr(a, "transposed", None), a.scale, inp=a.inp, largest=a.largest, form=form)

        def reference(a, names=names):
            bits, a.scale[0] = fast.quantize_ref(a.inp, form)
            for name in names:
                getattr(a, name)[:] = bits if name == "natural" else bits.T

        yield Call("quantize", f"quantize {form.name} {' '.join(names)}", tensors, launch, reference=reference)


def largest_of(inp):
    """The largest |inp| as stored in bfloat16, (1,) float32."""
    return np.abs(bfloat16_values(bfloat16_bits(inp))).max(keepdims=True).reshape(1)


# Parameters: a name, two factors, what draws the rest, and how they are multiplied.
def product_call(name, a, b, normal, forms, fast_accumulation):
    """The Call of a product of two factors: out with a bias, dweight accumulated, dinp neither."""
    (bits_a, scale_a), (bits_b, scale_b) = (fast.quantize_ref(factor, form) for factor, form in zip((a, b), forms))
    shape, accumulate = (a.shape[0], b.shape[0]), name == "dweight"
    tensors = dict(
        out=changed(normal(*shape)) if accumulate else written(*shape), a=read(bits_a, kind="u8"), b=read(bits_b, kind="u8"),
        a_scale=read(np.array([scale_a]), kind="f32"), b_scale=read(np.array([scale_b]), kind="f32"),
    )  # fmt: skip
    if name == "out":
        tensors["bias"] = read(normal(shape[1]))

    def factors(t):
        return tuple(
            float8_values(bits.astype(np.uint8), form).astype(np.float64) * scale
            for bits, scale, form in ((t.a, t.a_scale, forms[0]), (t.b, t.b_scale, forms[1]))
        )

    def launch(t):
        float8_gemm(
            t.out, t.a, t.b, t.a_scale, t.b_scale, formats=tuple(form.name for form in forms), accumulate=accumulate,
            bias=getattr(t, "bias", None), fast_accumulation=fast_accumulation,
        )  # fmt: skip

    def reference(t):
        a, b = factors(t)
        result = a @ b.T + getattr(t, "bias", 0)
        t.out[:] = t.out + result if accumulate else result

    def errors(after, before, storage):
        (a, b), K = factors(after), after.a.shape[1]
        typical = typical_product(np.sqrt((a**2).sum(axis=1))[:, None], np.sqrt((b**2).sum(axis=1)).max(), K)
        typical = typical + np.abs(getattr(after, "bias", np.zeros(1))).max() + (np.abs(before.out).max() if accumulate else 0)
        error = product_error(K, typical, storage)
        if not SIMULATING:
            largest_product = np.abs(a).max(axis=1)[:, None] * np.abs(b).max(axis=1)
            largest = np.maximum(largest_product, np.maximum(typical, np.abs(after.out)))
            error = error + max(1, K / AT_A_TIME) * UNIT_OF_SUMS * largest
        if accumulate and not SIMULATING:  # cuBLASLt rounds the product before adding it: see gemm
            error = error + half_ulp(np.abs(after.out - before.out) + error, storage)
        return {"out": error}

    how = "fast accumulation" if fast_accumulation else "float32 accumulation"
    return Call("float8_gemm", f"{name} {forms[0].name}*{forms[1].name} {how}", tensors, launch, errors, reference)


def check_float8(rows, inner, columns):
    """Check rounding and products on the device, for factors (rows, inner) and (columns, inner). Returns a list of Rows."""
    rng = np.random.default_rng(8)
    found = []
    for call in calls(rows, inner, columns, lambda *shape: rng.standard_normal(shape, np.float32)):
        found += check_call(call, BFLOAT16_BITS)
    return found
