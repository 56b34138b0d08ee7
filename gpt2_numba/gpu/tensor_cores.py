"""Tensor cores: a warp multiplies small bfloat16 or TF32 matrices and accumulates in float32, in one instruction.

    mma_m16n8k16(sums, s, a, i, b_low, b_high)         sums (16, 8) += a (16, 16) b (16, 8)        bfloat16
    mma_m16n8k8_tf32(sums, s, a, i, b_low, b_high)     sums (16, 8) += a (16, 8) b (8, 8)          TF32

The matrices are distributed over the warp's 32 threads, a few elements in each thread's registers. Lane 4 g + c (g = 0..7, c = 0..3)
holds pairs of neighbouring elements; a and b are bfloat16, two per 32-bit word, the first in the lower half:

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

Flash attention relies on two consequences:

- The `sums` of two products side by side, 16 rows of 16 columns, rounded and packed pair by pair, are `a` of the next product, in the same
  threads: no data moves. This is how attention's weights become a factor.
- A row of `sums` belongs to four neighbouring threads, a quad: the maximum or sum of a row takes two shuffles (`quad_max`, `quad_sum`).

`a` and `b` are loaded from shared memory by shared_memory.load_matrices (ldmatrix.x4): rows of a (16, 16) tile as `a`; rows of a (16, 16)
tile of the transpose of b as b_low, b_high of two products. load_matrices_transposed loads b from rows of b itself.

TF32 is float32 with 10 bits of mantissa instead of 23; the lowest 13 bits are unused. A tensor core ignores them, which rounds towards
zero: every factor would be too small, by 2^-11 on average. So `to_tf32` rounds factors to nearest first, with an error of at most 2^-11 in
either direction. A TF32 is as large as a pair of bfloat16, so the layout in bytes is the same, with one element instead of two:

    | matrix              | where            | rows       | columns    |
    | ------------------- | ---------------- | ---------- | ---------- |
    | a (16, 8)           | a[i], a[i + 1]   | g, g + 8   | c          |
    | TF32                | [i + 2], [i + 3] | g, g + 8   | c + 4      |
    | b (8, 8)            | b_low            | c          | g          |
    |                     | b_high           | c + 4      | g          |

The layout of `sums` is unchanged, so one product leaves columns 2c, 2c+1 where `a` of the next needs c, c+4. Still no data has to move: a
sum does not depend on how its terms are labelled, so it is enough to load rows 2c, 2c+1 of b in place of c, c+4.

PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... for mma.m16n8k8". Compute capability 8.0 or later.
"""

import numpy as np
from numba import cuda, types
from numba.cuda.extending import intrinsic

from gpt2_numba.gpu.backend import SIMULATING, bfloat16_bits, bfloat16_values
from gpt2_numba.gpu.float32_math import maximum

if SIMULATING:
    from gpt2_numba.gpu.simulator import butterfly, install, meet_warp

    install()

    _UNUSED, _HALF, _EXPONENT = np.uint32(0x1FFF), np.uint32(0x1000), np.uint32(0x7F800000)  # masks of a float32's bits

    # The element of each matrix that a lane holds: [lane, register, half of the pair] -> row, column.
    _g, _c = np.divmod(np.arange(32)[:, None, None], 4)
    _register, _half = np.arange(4)[:, None], np.arange(2)
    _A_ELEMENTS = _g + 8 * (_register % 2), 2 * _c + 8 * (_register // 2) + _half
    _B_ELEMENTS = 2 * _c + 8 * _register[:2] + _half, _g + 0 * _register[:2] + 0 * _half
    _SUMS_ELEMENTS = _g + 8 * _register[:2] + 0 * _half, 2 * _c + _half + 0 * _register[:2]

    def _matrix(words, elements, shape):
        """The bfloat16 matrix that the lanes hold in pairs, as float32."""
        matrix = np.empty(shape, np.float32)
        matrix[elements] = bfloat16_values(np.array(words, "<u4").view("<u2")).reshape(32, -1, 2)
        return matrix

    def _product(lanes):
        """Add one warp's product to the lanes' sums."""
        sums, a, b = zip(*lanes)
        product = _matrix(a, _A_ELEMENTS, (16, 16)) @ _matrix(b, _B_ELEMENTS, (16, 8))
        for four, share in zip(sums, product[_SUMS_ELEMENTS].reshape(32, 4)):
            four += share

    def mma_m16n8k16(sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 16) b (16, 8). Twin for the simulator."""
        meet_warp((sums.reshape(-1)[s : s + 4], a.reshape(-1)[i : i + 4], (b_low, b_high)), _product)

    _A_ELEMENTS_TF32 = _g[..., 0] + 8 * (_register[:, 0] % 2), _c[..., 0] + 4 * (_register[:, 0] // 2)
    _B_ELEMENTS_TF32 = _c[..., 0] + 4 * _register[:2, 0], _g[..., 0] + 0 * _register[:2, 0]

    def _tf32_matrix(words, elements, shape):
        """The matrix that the lanes hold. Raises ValueError if to_tf32 was forgotten, a mistake that few error bounds would reveal."""
        words, matrix = np.array(words, np.uint32), np.empty(shape, np.float32)
        matrix[elements] = words.view(np.float32)
        if (words[np.isfinite(words.view(np.float32))] & _UNUSED).any():
            raise ValueError("a factor has not been rounded to TF32: to_tf32 is missing")
        return matrix

    def _tf32_product(lanes):
        """Add one warp's product to the lanes' sums."""
        sums, a, b = zip(*lanes)
        product = _tf32_matrix(a, _A_ELEMENTS_TF32, (16, 8)) @ _tf32_matrix(b, _B_ELEMENTS_TF32, (8, 8))
        for four, share in zip(sums, product[_SUMS_ELEMENTS].reshape(32, 4)):
            four += share

    def mma_m16n8k8_tf32(sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 8) b (8, 8). Twin for the simulator."""
        meet_warp((sums.reshape(-1)[s : s + 4], a.reshape(-1)[i : i + 4], (b_low, b_high)), _tf32_product)

    def to_tf32(value):
        """Round a float32, or the bits of one, to TF32. Returns bits. Twin for the simulator."""
        bits = value if isinstance(value, np.uint32) else np.float32(value).view(np.uint32)
        if (bits & _EXPONENT) != _EXPONENT:  # infinity and NaN stay as they are
            bits = bits + _HALF
        return bits & ~_UNUSED

    def pack_bfloat16(low, high):
        """Round two float32 to bfloat16, packed in one uint32. Twin for the simulator."""
        return bfloat16_bits(np.array([low, high], np.float32)).view("<u4")[0]

    def log2(x):
        """Base-2 logarithm. Twin for the simulator."""
        return np.log2(np.float32(x))

    def fma(a, b, c):
        """a b + c, rounded once. Twin for the simulator."""
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))

    def quad_max(value):
        """The largest `value` of four neighbouring threads, returned to each. Twin for the simulator."""
        return butterfly(value, np.maximum, (1, 2))

    def quad_sum(value):
        """The sum of `value` over four neighbouring threads, returned to each. Twin for the simulator."""
        return butterfly(value, np.add, (1, 2))

else:
    from gpt2_numba.gpu.inline_ptx import F32, I32, inline_ptx, local_addresses

    _ALL_LANES = 0xFFFFFFFF

    def _product(kind, sums, a):
        """Typing and code generation of an intrinsic: four words of a, two of b, four sums."""

        def codegen(context, builder, signature, args):
            sum_pointers = local_addresses(context, builder, signature.args[0], args[0], args[1], 4)
            a_pointers = local_addresses(context, builder, signature.args[2], args[2], args[3], 4)
            a_words, before = ([builder.load(pointer) for pointer in pointers] for pointers in (a_pointers, sum_pointers))
            instruction = f"mma.sync.aligned.{kind} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};"
            for pointer, value in zip(sum_pointers, inline_ptx(builder, instruction, [F32] * 4, [*a_words, args[4], args[5], *before])):
                builder.store(value, pointer)
            return context.get_dummy_value()

        return types.void(sums, types.int64, a, types.int64, types.uint32, types.uint32), codegen

    @intrinsic
    def mma_m16n8k16(typingctx, sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 16) b (16, 8). All 32 lanes of a warp must call it.

        A lane's shares are elements s to s + 3 of `sums` and i to i + 3 of `a`, local arrays, counted in C order, and b_low, b_high.
        PTX ISA: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.
        """
        return _product("m16n8k16.row.col.f32.bf16.bf16.f32", sums, a)

    @intrinsic
    def mma_m16n8k8_tf32(typingctx, sums, s, a, i, b_low, b_high):
        """sums (16, 8) += a (16, 8) b (8, 8), as mma_m16n8k16. The factors are the bits of float32 rounded by to_tf32.

        PTX ISA: mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32.
        """
        return _product("m16n8k8.row.col.f32.tf32.tf32.f32", sums, a)

    def _arithmetic(instruction, result, numba_type):
        """Typing and code generation of an instruction that uses registers only."""

        def codegen(context, builder, signature, args):
            (value,) = inline_ptx(builder, instruction, [result], list(args))
            return value

        return numba_type, codegen

    @intrinsic
    def pack_bfloat16(typingctx, low, high):
        """Round two float32 to bfloat16, packed in one uint32. PTX ISA: cvt.rn.bf16x2.f32 d, a, b puts a in the upper half."""
        return _arithmetic("cvt.rn.bf16x2.f32 $0, $2, $1;", I32, types.uint32(types.float32, types.float32))

    @intrinsic
    def to_tf32(typingctx, value):
        """Round a float32, or the bits of one (uint32), to the nearest TF32, ties away from zero. Returns bits.

        PTX ISA: cvt.rna.tf32.f32.
        """
        if value not in (types.float32, types.uint32):
            raise TypeError(f"to_tf32 takes a float32 or a uint32, got {value}")
        return _arithmetic("cvt.rna.tf32.f32 $0, $1;", I32, types.uint32(value))

    @intrinsic
    def log2(typingctx, x):
        """Base-2 logarithm, with an error of at most 2^-22. PTX ISA: lg2.approx.ftz.f32."""
        return _arithmetic("lg2.approx.ftz.f32 $0, $1;", F32, types.float32(types.float32))

    @intrinsic
    def fma(typingctx, a, b, c):
        """a b + c, rounded once. PTX ISA: fma.rn.ftz.f32."""
        return _arithmetic("fma.rn.ftz.f32 $0, $1, $2, $3;", F32, types.float32(types.float32, types.float32, types.float32))

    @cuda.jit(device=True, inline="always")
    def quad_max(value):
        """The largest `value` (float32) of four neighbouring threads, returned to each. All 32 lanes of a warp must call it."""
        value = maximum(value, cuda.shfl_xor_sync(_ALL_LANES, value, 1))
        return maximum(value, cuda.shfl_xor_sync(_ALL_LANES, value, 2))

    @cuda.jit(device=True, inline="always")
    def quad_sum(value):
        """The sum of `value` (float32) over four neighbouring threads, returned to each. All 32 lanes of a warp must call it."""
        value += cuda.shfl_xor_sync(_ALL_LANES, value, 1)
        value += cuda.shfl_xor_sync(_ALL_LANES, value, 2)
        return value
