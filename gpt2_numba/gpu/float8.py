"""Floating-point numbers of eight bits, and the scale that brings a tensor into their range.

    format   sign, exponent, mantissa   largest              smallest normal, subnormal  spacing
    e4m3     1 + 4 + 3 bits             448   = 1.75 · 2^8   2^-6, 2^-9                  1/8 of a power of two
    e5m2     1 + 5 + 2 bits             57344 = 1.75 · 2^15  2^-14, 2^-16                1/4

e4m3 has the precision that weights and activations need, e5m2 twice as many powers of two, for gradients. Neither reaches far enough for
numbers as they come, so a tensor is multiplied by a scale before it is rounded, and divided by it after it has been used.

The scale is a power of two: multiplying by it changes no bit of a mantissa, so rounding to eight bits is the only error. It is the largest
power with which the tensor's largest |x| still fits. Both formats end at 1.75 times a power of two, so that is a matter of exponents, read
off the bits of a float32:

    |x| = m · 2^e, 1 <= m < 2        scale = 2^(top - e) if m <= 1.75 else 2^(top - 1 - e)        top = 8 for e4m3, 15 for e5m2

The bits of a float32 without its sign grow with its value, infinity and NaN being the largest of all. So the largest |x| of a tensor is the
largest of these bits as integers, and a maximum of integers does not depend on the order in which it is found: atomics serve, and the bits of
a run repeat. If a tensor has a number that is not finite, its scale is NaN, and so is every product with it.

Bits are held in uint8 arrays, since NumPy and Numba have no such types. Conversions have two implementations: an instruction for the GPU
(compute capability 8.9 and later) and a twin for Numba's simulator.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np
from numba import cuda, int32, types

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.memory_access import bits_of_float

FLOAT8_BITS = np.dtype(np.uint8)
MANTISSA_BITS = 23  # of a float32
BIAS = 127  # of a float32's exponent
SMALLEST_EXPONENT, LARGEST_EXPONENT = 1, 254  # biased, of a float32 that is neither subnormal nor infinite
THREE_QUARTERS = 0x600000  # of the mantissa: 1.75
MANTISSA = 0x7FFFFF
WITHOUT_SIGN = np.int32(0x7FFFFFFF)
ONE_BITS, NAN_BITS = 0x3F800000, 0x7FC00000
INVERSE = 2 * BIAS << MANTISSA_BITS  # the bits of 2^-s are this number minus the bits of 2^s


class Float8(NamedTuple):
    """A format: its name in PTX, its type for NumPy, the exponent of its largest number, the smallest one that it can hold."""

    name: str
    dtype: np.dtype
    top: int
    smallest: float

    @property
    def largest(self):
        return 1.75 * 2.0**self.top


E4M3 = Float8("e4m3", np.dtype(ml_dtypes.float8_e4m3fn), 8, 2.0**-9)
E5M2 = Float8("e5m2", np.dtype(ml_dtypes.float8_e5m2), 15, 2.0**-16)
FORMATS = {form.name: form for form in (E4M3, E5M2)}


def float8_bits(values, form):
    """Round float32 values to the nearest of a Float8 (ties to even), to its largest beyond that; return the bits as uint8, same shape."""
    return np.clip(np.asarray(values, np.float32), -form.largest, form.largest).astype(form.dtype).view(np.uint8)


def float8_values(bits, form):
    """The float32 values of bits (uint8) of a Float8, exactly."""
    return np.asarray(bits).view(form.dtype).astype(np.float32)


@cuda.jit(device=True)
def scale_bits(largest, top):
    """The bits of a tensor's scale, as an integer. largest: the bits of its largest |x|. top: the format's."""
    exponent = largest >> MANTISSA_BITS
    if exponent > LARGEST_EXPONENT:
        return NAN_BITS
    if exponent < SMALLEST_EXPONENT:  # 0; subnormal numbers count as 0
        return ONE_BITS
    power = BIAS + top - (exponent - BIAS)  # biased
    if (largest & MANTISSA) > THREE_QUARTERS:
        power -= 1
    return min(max(power, SMALLEST_EXPONENT), LARGEST_EXPONENT - 1) << MANTISSA_BITS


@cuda.jit(device=True)
def inverse_bits(bits):
    """The bits of 1 / scale."""
    return NAN_BITS if bits == NAN_BITS else INVERSE - bits


if SIMULATING:
    from gpt2_numba.gpu.simulator import elements_of

    def magnitude_bits(value):
        """The bits of |value|, as an integer that grows with it. Twin for the simulator."""
        return int(bits_of_float(value)) & int(WITHOUT_SIGN)

    def raise_largest(largest, bits):
        """largest[0] = the larger of it and the float32 with these bits, a magnitude. Twin for the simulator."""
        as_integer = elements_of(largest).view(np.ndarray).view(np.int32)  # plain: an atomic is no race
        as_integer[0] = max(as_integer[0], bits)

    def _pack(form):
        def narrow4(a, b, c, d):
            return float8_bits([a, b, c, d], form).view(np.uint32)[0]

        return narrow4

    def store16(array, index, words, first=0):
        """The 16 bytes of array from `index` on = words[first : first + 4]. Twin for the simulator."""
        flat = elements_of(array)
        if index % 16 or index < 0 or index + 16 > flat.size:
            raise IndexError(f"16 bytes at index {index} of {flat.size}: misaligned or out of bounds")
        flat[index : index + 16] = words[first : first + 4].view(np.uint8)

else:
    import llvmlite.ir as ir
    from numba.cuda.extending import intrinsic

    from gpt2_numba.gpu.inline_ptx import I32, data_pointer, global_address, inline_ptx

    @cuda.jit(device=True)
    def magnitude_bits(value):
        """The bits of |value|, as an int32 that grows with it."""
        return int32(int32(bits_of_float(value)) & WITHOUT_SIGN)  # Numba widens the result of an operation to int64

    @intrinsic
    def _atomic_max(typingctx, array, bits):
        """The first 32 bits of an array, as an integer, = the larger of them and `bits`. PTX ISA: red.global.max.s32."""

        def codegen(context, builder, signature, args):
            address = global_address(context, builder, signature.args[0], args[0], ir.Constant(ir.IntType(64), 0))
            inline_ptx(builder, "red.global.max.s32 [$0], $1;", [], [address, args[1]], touches_memory=True)
            return context.get_dummy_value()

        return types.void(array, types.int32), codegen

    @cuda.jit(device=True)
    def raise_largest(largest, bits):
        """largest[0] = the larger of it and the float32 with these bits, a magnitude. Most callers find it large enough and write nothing."""
        if bits > magnitude_bits(largest[0]):
            _atomic_max(largest, bits)

    def _pack(form):
        two = f"cvt.rn.satfinite.{form.name}x2.f32"  # PTX ISA: cvt d, a, b puts a in the upper half
        text = f"{{ .reg .b16 low, high; {two} low, $2, $1; {two} high, $4, $3; mov.b32 $0, {{low, high}}; }}"

        @intrinsic
        def narrow4(typingctx, a, b, c, d):
            return types.uint32(*[types.float32] * 4), lambda context, builder, _, args: inline_ptx(builder, text, [I32], list(args))[0]

        return narrow4

    @intrinsic
    def store16(typingctx, array, index, words, first=0):
        """The 16 bytes of array (uint8) from `index` on, a multiple of 16, = words[first : first + 4] (uint32)."""

        def codegen(context, builder, signature, args):
            array_type, _, words_type, _ = signature.args
            four = ir.VectorType(I32, 4)
            start = builder.gep(data_pointer(context, builder, words_type, args[2]), [args[3]])
            vector = ir.Constant(four, ir.Undefined)
            for k in range(4):
                word = builder.load(builder.gep(start, [ir.Constant(I32, k)]))
                vector = builder.insert_element(vector, word, ir.Constant(I32, k))
            target = builder.gep(data_pointer(context, builder, array_type, args[0]), [args[1]])
            builder.store(vector, builder.bitcast(target, four.as_pointer()), align=16)
            return context.get_dummy_value()

        return types.void(array, types.int64, words, types.int64), codegen


# Four float32 rounded to a format, as `float8_bits` does, and packed in a 32-bit word, the first one in its lowest byte.
NARROW4 = {name: _pack(form) for name, form in FORMATS.items()}
