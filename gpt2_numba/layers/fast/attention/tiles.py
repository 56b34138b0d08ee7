"""Common to the tensor-core engines (mma, tf32, wgmma): masks, softmax and gradients of a tile of scores held in registers.

A warp works on one or more *row tiles*, 16 rows each. Each thread holds its share of such a matrix in local arrays of these shapes:

    float32             (row tiles, columns / 8, 4)      scores, weights, datt, and sums: out, dq, dk, dv
    pairs of bfloat16   (row tiles, columns / 16, 4)     factors: the A operand of mma, multiplied by a tile in shared memory

Their shapes are constants, so all loops over them unroll and the arrays become registers. With lane = 4 g + c, g = 0..7, c = 0..3,

    scores[r, n, 2 half + i]   is the element at   row 16 r + 8 half + g,   column 8 n + 2 c + i        half = 0..1, i = 0..1

                        columns  8 n ...  8 n + 7
                      c = 0      1      2      3
    row 16 r + g     | 0 1 |  | 0 1 |  | 0 1 |  | 0 1 |      the numbers in the boxes are the last index
    row 16 r + g + 8 | 2 3 |  | 2 3 |  | 2 3 |  | 2 3 |

A row belongs to four neighbouring threads with the same g, a quad, which reduces it by `quad_max` and `quad_sum`. Values of which each row
has one (largest score, lse, delta) are in local arrays (row tiles, 2). In the kernel for dk and dv, rows are keys: lse and delta belong to
columns.

Scores here are not yet divided by √HS, unlike those of layers/attention. With scale = 1 / √HS, the weights are exp(scale · score - lse),
and dscores are the gradients of scale · scores, so dq and dk are multiplied by scale at the end. Exponentials are powers of two, one
instruction each: exp(x) = exp2(x log2(e)). `log2_scale` = scale · log2(e), applied inside exp2, does both.

Numba computes indices in int64, two registers each: int32(...) keeps them in one, and uint32(...) makes // and % cheap. int64(...) is for
offsets that may exceed 2^31.
"""

import math

import numpy as np
from numba import cuda, int32, int64, uint32

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.float32_math import exp2, maximum
from gpt2_numba.gpu.memory_access import WIDTH
from gpt2_numba.gpu.shared_memory import copy4_async, copy16_out, load32_float, store32, sync_warp
from gpt2_numba.gpu.tensor_cores import fma, log2, pack_bfloat16, quad_max, quad_sum

ZERO, ONE = np.float32(0.0), np.float32(1.0)
MINUS_INFINITY = np.float32(-math.inf)
LOG2_E, LN_2 = np.float32(math.log2(math.e)), np.float32(math.log(2.0))
PIECE = 16  # bytes that one copy moves

inlined = cuda.jit(device=True) if SIMULATING else cuda.jit(device=True, forceinline=True)


def blocks_at_once(threads, blocks):
    """Options for @cuda.jit that limit registers so that `blocks` blocks fit on a multiprocessor at once. None in the simulator."""
    return {} if SIMULATING else {"launch_bounds": (threads, blocks)}


def padded_row_bytes(HS):
    """Bytes from one row to the next in shared memory: HS bfloat16 and a piece of padding against bank conflicts, see store_rows."""
    return 2 * HS + PIECE


def scales(HS):
    """(scale, log2_scale): 1 / √HS, and the same times log2(e)."""
    return np.float32(1 / math.sqrt(HS)), np.float32(math.log2(math.e) / math.sqrt(HS))


@cuda.jit(device=True, inline="always")  # with forceinline some kernels take up to 8 more registers
def locate_head(head, lse, out, HS):
    """(T, C, b, h, start of the head's queries in qkv, start of its rows in out or dout). `head` counts all B * NH heads."""
    NH, T, C = int32(lse.shape[1]), int32(lse.shape[2]), int32(out.shape[1])
    b, h = int32(uint32(head) // uint32(NH)), int32(uint32(head) % uint32(NH))
    return T, C, b, h, int64(b) * T * (3 * C) + h * HS, int64(b) * T * C + h * HS


# ----------------------------------------------------------------------------------------------------- element by element
#
# Arrays are a thread's share of a tile, except where a docstring gives another shape.


@inlined
def fill_rows(values, value):
    """values = value. values (row tiles, 2)."""
    row_tiles, _ = values.shape
    for r in range(row_tiles):
        for half in range(2):
            values[r, half] = value


@inlined
def set_to_zero(sums):
    """sums = 0."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                sums[r, n, i] = ZERO


@inlined
def multiply_all(sums, multiplier):
    """sums *= multiplier, a scalar."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                sums[r, n, i] *= multiplier


@inlined
def multiply_rows(sums, multipliers):
    """sums *= multipliers, one for each row. multipliers (row tiles, 2)."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                sums[r, n, i] *= multipliers[r, i // 2]


@inlined
def pack_factors(factors, sums):
    """factors = sums, rounded to bfloat16. The result of one product becomes a factor of the next without leaving the thread."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for half in range(2):
                factors[r, n // 2, 2 * (n % 2) + half] = pack_bfloat16(sums[r, n, 2 * half], sums[r, n, 2 * half + 1])


# ---------------------------------------------------------------------------------------------------------------- masks


@inlined
def hide_later_keys(scores, first_query, first_key):
    """scores = -inf where the key (column) comes after the query (row). first_query, first_key: first row, column."""
    row_tiles, groups, _ = scores.shape
    lane = int32(cuda.threadIdx.x & 31)
    # Last visible key for the thread's first row, counted from the thread's first column.
    seen = int32(first_query + (lane >> 2) - first_key - 2 * (lane & 3))
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                if 8 * n + i % 2 - 16 * r - 8 * (i // 2) > seen:
                    scores[r, n, i] = MINUS_INFINITY


@inlined
def hide_earlier_queries(weights, first_key, first_query, T):
    """weights = 0 where the query (column) comes before the key (row), or is T or later. first_key, first_query: first row, column."""
    row_tiles, groups, _ = weights.shape
    lane = int32(cuda.threadIdx.x & 31)
    # First query that sees the key of the thread's first row, and T, both counted from the thread's first column.
    begin = int32(first_key + (lane >> 2) - first_query - 2 * (lane & 3))
    end = int32(T - first_query - 2 * (lane & 3))
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                if 8 * n + i % 2 - 16 * r - 8 * (i // 2) < begin or 8 * n + i % 2 >= end:
                    weights[r, n, i] = ZERO


# -------------------------------------------------------------------------------------------------------------- softmax


@inlined
def online_softmax(scores, largest, total, rescale, log2_scale):
    """Turn scores into weights, exp(scale · (score - largest)), where largest is the row's largest score so far.

    Sums over earlier tiles must then be multiplied by `rescale`, exp(scale · (previous largest - largest)).
    largest, total, rescale (row tiles, 2). `total` covers this thread's columns only.
    """
    row_tiles, groups, _ = scores.shape
    for r in range(row_tiles):
        for half in range(2):
            previous = largest[r, half]
            now = previous
            for n in range(groups):
                now = maximum(now, maximum(scores[r, n, 2 * half], scores[r, n, 2 * half + 1]))
            now = quad_max(now)
            # Never -inf - -inf, which is NaN: every query sees the first key of the first tile.
            row_rescale = exp2((previous - now) * log2_scale)
            shift = -now * log2_scale
            row_total = total[r, half] * row_rescale
            for n in range(groups):
                for i in range(2 * half, 2 * half + 2):
                    weight = exp2(fma(scores[r, n, i], log2_scale, shift))
                    scores[r, n, i] = weight
                    row_total += weight
            largest[r, half], total[r, half], rescale[r, half] = now, row_total, row_rescale


@inlined
def finish_softmax(sums, largest, total, lse, b, h, first_query, log2_scale):
    """sums /= total, which makes them out; store lse = scale · largest + log(total) of the queries below T."""
    row_tiles, groups, _ = sums.shape
    lane = int32(cuda.threadIdx.x & 31)
    for r in range(row_tiles):
        for half in range(2):
            row_total = quad_sum(total[r, half])
            one_over_total = ONE / row_total
            for n in range(groups):
                for i in range(2 * half, 2 * half + 2):
                    sums[r, n, i] *= one_over_total
            t = int32(first_query + 16 * r + 8 * half + (lane >> 2))
            if (lane & 3) == 0 and t < int32(lse.shape[2]):
                lse[b, h, t] = (largest[r, half] * log2_scale + log2(row_total)) * LN_2


@inlined
def weights_by_row(scores, log2_lse, log2_scale):
    """Turn scores into weights, exp(scale · score - lse of the row). log2_lse (row tiles, 2): lse log2(e)."""
    row_tiles, groups, _ = scores.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                scores[r, n, i] = exp2(fma(scores[r, n, i], log2_scale, -log2_lse[r, i // 2]))


@inlined
def dscores_by_row(datt, weights, delta):
    """Turn datt into dscores = weights (datt - delta of the row). delta (row tiles, 2)."""
    row_tiles, groups, _ = datt.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                datt[r, n, i] = weights[r, n, i] * (datt[r, n, i] - delta[r, i // 2])


@inlined
def weights_by_column(scores, memory, lse, log2_scale):
    """Turn scores into weights, exp(scale · score - lse of the column). lse: byte offset in shared memory."""
    row_tiles, groups, _ = scores.shape
    here = uint32(lse + int32(cuda.threadIdx.x & 3) * 8)  # this thread's first column
    for n in range(groups):
        for i in range(2):
            shift = -load32_float(memory, uint32(here + n * 32 + i * 4)) * LOG2_E
            for r in range(row_tiles):
                for half in range(2):
                    scores[r, n, 2 * half + i] = exp2(fma(scores[r, n, 2 * half + i], log2_scale, shift))


@inlined
def dscores_by_column(datt, weights, memory, delta):
    """Turn datt into dscores = weights (datt - delta of the column). delta: byte offset in shared memory."""
    row_tiles, groups, _ = datt.shape
    here = uint32(delta + int32(cuda.threadIdx.x & 3) * 8)
    for n in range(groups):
        for i in range(2):
            column_delta = load32_float(memory, uint32(here + n * 32 + i * 4))
            for r in range(row_tiles):
                for half in range(2):
                    datt[r, n, 2 * half + i] = weights[r, n, 2 * half + i] * (datt[r, n, 2 * half + i] - column_delta)


# ------------------------------------------------------------------------------------------------ from and to memory


@inlined
def copy_lse_and_delta(memory, offset, lse, delta, start, first_query, T, queries):
    """Begin to copy lse of `queries` queries to byte `offset`, then their delta; a thread per value. The head begins at element `start`."""
    here = int32(cuda.threadIdx.x)
    if here < 2 * queries:
        query = int32(here if here < queries else here - queries)
        index = int64(start + int32(min(int32(first_query + query), int32(T - 1))))
        if here < queries:
            copy4_async(memory, uint32(offset + 4 * here), lse, index)
        else:
            copy4_async(memory, uint32(offset + 4 * here), delta, index)


@inlined
def store_rows(array, start, row_length, first_row, T, sums, memory, staging):
    """Round a warp's sums to bfloat16 and store them as rows of one head, row t at array[start + t * row_length], for t < T.

    A thread's registers hold two neighbours of a row. Passing through shared memory, from byte `staging` on, gives it eight: 16 bytes.
    There rows are padded by 16 bytes, so that the pieces of one column in eight rows lie in different banks.
    """
    row_tiles, groups, _ = sums.shape
    lane = int32(cuda.threadIdx.x & 31)
    row_stride = PIECE * groups + PIECE
    here = uint32(staging + (lane >> 2) * row_stride + (lane & 3) * 4)
    for r in range(row_tiles):
        for half in range(2):
            for n in range(groups):
                word = pack_bfloat16(sums[r, n, 2 * half], sums[r, n, 2 * half + 1])
                store32(memory, uint32(here + (16 * r + 8 * half) * row_stride + n * PIECE), word)
    sync_warp()
    for step in range(row_tiles * groups // 2):
        i = uint32(lane + step * 32)
        row, piece = int32(i // uint32(groups)), int32(i % uint32(groups))
        t = int32(first_row + row)
        if t < T:
            index = int64(start + int64(t) * int64(row_length) + piece * WIDTH)
            copy16_out(array, index, memory, uint32(staging + row * row_stride + piece * PIECE))
