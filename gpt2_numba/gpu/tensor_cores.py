"""Tensor cores: a warp multiplies small matrices of bfloat16 or TF32 and adds up in float32, in one instruction.

    mma_m16n8k16(sums, s, a, i, b_low, b_high)         sums (16, 8) += a (16, 16) b (16, 8)        bfloat16
    mma_m16n8k8_tf32(sums, s, a, i, b_low, b_high)     sums (16, 8) += a (16, 8) b (8, 8)          TF32

The matrices lie scattered over the warp's 32 threads, a few numbers in each thread's registers. What lane l = 4 g + c holds (g from 0 to
7, c from 0 to 3) are pairs of neighbours; a and b are bfloat16, two to a 32-bit word, the first in the lower half:

    | matrix              | where            | rows       | columns    |
    | ------------------- | ---------------- | ---------- | ---------- |
    | sums (16, 8)        | sums[s], [s + 1] | g          | 2c, 2c+1   |
    | float32             | [s + 2], [s + 3] | g + 8      | 2c, 2c+1   |
    | a (16, 16)          | a[i]             | g          | 2c, 2c+1   |
    |                     | a[i + 1]         | g + 8      | 2c, 2c+1   |
    |                     | a[i + 2]         | g          | 2c+8, 2c+9 |
    |                     | a[i + 3]         | g + 8      | 2c+8, 2c+9 |
    | b (16, 8)           | b_low            | 2c, 2c+1   | g          |
    |                     | b_high           | 2c+8, 2c+9 | g          |

Two things follow that flash attention lives by:

- What two products side by side leave in `sums`, 16 rows of 16 columns, rounded and packed pair by pair, is `a` of the next product,
  in the same threads: nothing is moved. So attention's weights become a factor.
- A row of `sums` belongs to four neighbouring threads, a quad: a row's maximum takes two shuffles (`quad_max`, `quad_sum`).

`a` and `b` come from shared memory by shared_memory.load_matrices: rows of a (16, 16) tile as `a`; rows of a (16, 16) tile of the transpose
of b as b_low, b_high of two products; load_matrices_transposed does the same from rows of b itself.

TF32 is float32 with 10 bits of mantissa instead of 23, the lowest 13 bits unused. A tensor core ignores these bits, which rounds towards
zero: every factor would be too small, by 2^-11 on average. So factors are rounded to the nearest beforehand, by `to_tf32`: off by 2^-11 at
most, and in either direction. A pair of bfloat16 and a TF32 take the same place, so in bytes all stays as above, with one number for two:

    | matrix              | where            | rows       | columns    |
    | ------------------- | ---------------- | ---------- | ---------- |
    | a (16, 8)           | a[i], a[i + 1]   | g, g + 8   | c          |
    | TF32                | [i + 2], [i + 3] | g, g + 8   | c + 4      |
    | b (8, 8)            | b_low            | c          | g          |
    |                     | b_high           | c + 4      | g          |

Sums are as before, so what one product leaves has its columns 2c, 2c+1 where `a` of the next is to have c, c+4. Nothing has to be moved for
all that: a sum does not depend on the names of its terms, so b takes its rows 2c, 2c+1 for c, c+4, too.

PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... for mma.m16n8k8". Compute capability 8.0 and later.
"""

import numpy as np
from numba import cuda, types
from numba.cuda.extending import intrinsic

from gpt2_numba.gpu.backend import SIMULATING, bfloat16_bits, bfloat16_values
from gpt2_numba.gpu.float32_math import exp2, maximum

__all__ = ["exp2", "fma", "log2", "maximum", "mma_m16n8k8_tf32", "mma_m16n8k16", "pack_bfloat16", "quad_max", "quad_sum", "to_tf32"]

if SIMULATING:
    from gpt2_numba.gpu.simulator import butterfly, install, meet_warp

    install()

    _UNUSED, _HALF, _EXPONENT = np.uint32(0x1FFF), np.uint32(0x1000), np.uint32(0x7F800000)  # of a float32's bits, in TF32

    # Where element (row, column) of each matrix is: [lane, register, half of a pair] -> row, column.
    _g, _c = np.divmod(np.arange(32)[:, None, None], 4)
    _register, _half = np.arange(4)[:, None], np.arange(2)
    _A_PLACE = _g + 8 * (_register % 2), 2 * _c + 8 * (_register // 2) + _half
    _B_PLACE = 2 * _c + 8 * _register[:2] + _half, _g + 0 * _register[:2] + 0 * _half
    _SUMS_PLACE = _g + 8 * _register[:2] + 0 * _half, 2 * _c + _half + 0 * _register[:2]

    def _matrix(words, place, shape):
        """The matrix whose pairs of bfloat16 the lanes hold, as float32."""
        matrix = np.empty(shape, np.float32)
        matrix[place] = bfloat16_values(np.array(words, "<u4").view("<u2")).reshape(32, -1, 2)
        return matrix

    def _product(lanes):
        """One warp's product, written into every lane's sums."""
        sums, a, b = zip(*lanes)
        product = _matrix(a, _A_PLACE, (16, 16)) @ _matrix(b, _B_PLACE, (16, 8))
        for four, share in zip(sums, product[_SUMS_PLACE].reshape(32, 4)):
            four += share

    def mma_m16n8k16(sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 16) b (16, 8). Twin for the simulator."""
        meet_warp((sums.reshape(-1)[s : s + 4], a.reshape(-1)[i : i + 4], (b_low, b_high)), _product)

    _A_PLACE_TF32 = _g[..., 0] + 8 * (_register[:, 0] % 2), _c[..., 0] + 4 * (_register[:, 0] // 2)
    _B_PLACE_TF32 = _c[..., 0] + 4 * _register[:2, 0], _g[..., 0] + 0 * _register[:2, 0]

    def _tf32_matrix(words, place, shape):
        """The matrix whose numbers the lanes hold. One that to_tf32 has not rounded is a mistake that few bounds would notice."""
        words, matrix = np.array(words, np.uint32), np.empty(shape, np.float32)
        matrix[place] = words.view(np.float32)
        if (words[np.isfinite(words.view(np.float32))] & _UNUSED).any():
            raise ValueError("a factor has not been rounded to TF32: to_tf32 is missing")
        return matrix

    def _tf32_product(lanes):
        """One warp's product, written into every lane's sums."""
        sums, a, b = zip(*lanes)
        product = _tf32_matrix(a, _A_PLACE_TF32, (16, 8)) @ _tf32_matrix(b, _B_PLACE_TF32, (8, 8))
        for four, share in zip(sums, product[_SUMS_PLACE].reshape(32, 4)):
            four += share

    def mma_m16n8k8_tf32(sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 8) b (8, 8). Twin for the simulator."""
        meet_warp((sums.reshape(-1)[s : s + 4], a.reshape(-1)[i : i + 4], (b_low, b_high)), _tf32_product)

    def to_tf32(number):
        """A float32, or the bits of one, rounded to TF32, as bits. Twin for the simulator."""
        bits = number if isinstance(number, np.uint32) else np.float32(number).view(np.uint32)
        if (bits & _EXPONENT) != _EXPONENT:  # infinity and NaN stay
            bits = bits + _HALF
        return bits & ~_UNUSED

    def pack_bfloat16(low, high):
        """Two float32, rounded to bfloat16, in one uint32. Twin for the simulator."""
        return bfloat16_bits(np.array([low, high], np.float32)).view("<u4")[0]

    def log2(x):
        """Logarithm to the base 2. Twin for the simulator."""
        return np.log2(np.float32(x))

    def fma(a, b, c):
        """a b + c, rounded once. Twin for the simulator."""
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))

    def quad_max(value):
        """The largest `value` of four neighbouring threads; each gets it. Twin for the simulator."""
        return butterfly(value, np.maximum, (1, 2))

    def quad_sum(value):
        """The sum of `value` over four neighbouring threads; each gets it. Twin for the simulator."""
        return butterfly(value, np.add, (1, 2))

else:
    from gpt2_numba.gpu.inline_ptx import F32, I32, inline_ptx, local_values

    _ALL_LANES = 0xFFFFFFFF

    def _product(kind, sums, a):
        """An intrinsic's typing and code: four words of `a`, two of b, four sums."""

        def codegen(context, builder, signature, args):
            to = local_values(context, builder, signature.args[0], args[0], args[1], 4)
            left = local_values(context, builder, signature.args[2], args[2], args[3], 4)
            operands = [builder.load(pointer) for pointer in left] + [args[4], args[5]] + [builder.load(pointer) for pointer in to]
            instruction = f"mma.sync.aligned.{kind} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};"
            for pointer, value in zip(to, inline_ptx(builder, instruction, [F32] * 4, operands)):
                builder.store(value, pointer)
            return context.get_dummy_value()

        return types.void(sums, types.int64, a, types.int64, types.uint32, types.uint32), codegen

    @intrinsic
    def mma_m16n8k16(typingctx, sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 16) b (16, 8): elements s to s + 3 and i to i + 3 of local arrays, counted in C order. All 32 lanes of a warp must call.

        PTX ISA: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.
        """
        return _product("m16n8k16.row.col.f32.bf16.bf16.f32", sums, a)

    @intrinsic
    def mma_m16n8k8_tf32(typingctx, sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 8) b (8, 8), as mma_m16n8k16. Factors are bits of float32 rounded to TF32.

        PTX ISA: mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32.
        """
        return _product("m16n8k8.row.col.f32.tf32.tf32.f32", sums, a)

    def _arithmetic(instruction, result, numba_type):
        """An instruction on registers alone."""

        def codegen(context, builder, signature, args):
            (value,) = inline_ptx(builder, instruction, [result], list(args))
            return value

        return numba_type, codegen

    @intrinsic
    def pack_bfloat16(typingctx, low, high):
        """Two float32, rounded to bfloat16, in one uint32. PTX ISA: cvt.rn.bf16x2.f32 d, a, b puts a in the upper half."""
        return _arithmetic("cvt.rn.bf16x2.f32 $0, $2, $1;", I32, types.uint32(types.float32, types.float32))

    @intrinsic
    def to_tf32(typingctx, number):
        """A float32, or the bits of one (uint32), rounded to the nearest TF32, halves away from zero; as bits.

        PTX ISA: cvt.rna.tf32.f32.
        """
        if number not in (types.float32, types.uint32):
            raise TypeError(f"to_tf32 takes a float32 or a uint32, got {number}")
        return _arithmetic("cvt.rna.tf32.f32 $0, $1;", I32, types.uint32(number))

    @intrinsic
    def log2(typingctx, x):
        """Logarithm to the base 2, off by at most 2^-22. PTX ISA: lg2.approx.ftz.f32."""
        return _arithmetic("lg2.approx.ftz.f32 $0, $1;", F32, types.float32(types.float32))

    @intrinsic
    def fma(typingctx, a, b, c):
        """a b + c, rounded once. PTX ISA: fma.rn.ftz.f32."""
        return _arithmetic("fma.rn.ftz.f32 $0, $1, $2, $3;", F32, types.float32(types.float32, types.float32, types.float32))

    @cuda.jit(device=True, inline="always")
    def quad_max(value):
        """The largest `value` (float32) of four neighbouring threads; each gets it. All 32 lanes of a warp must call."""
        value = maximum(value, cuda.shfl_xor_sync(_ALL_LANES, value, 1))
        return maximum(value, cuda.shfl_xor_sync(_ALL_LANES, value, 2))

    @cuda.jit(device=True, inline="always")
    def quad_sum(value):
        """The sum of `value` (float32) over four neighbouring threads; each gets it. All 32 lanes of a warp must call."""
        value += cuda.shfl_xor_sync(_ALL_LANES, value, 1)
        value += cuda.shfl_xor_sync(_ALL_LANES, value, 2)
        return value
