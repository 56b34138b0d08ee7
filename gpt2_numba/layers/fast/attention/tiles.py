"""What the engines on tensor cores (mma, tf32, wgmma) have in common: what is done to a tile of scores while it is in registers.

A warp has some *row tiles* of 16 rows. Of a matrix with that many rows, a thread holds in local arrays

    float32             (row tiles, columns / 8, 4)      scores, weights, datt, and sums such as out, dq, dk, dv
    pairs of bfloat16   (row tiles, columns / 16, 4)     factors: what is multiplied by a tile in shared memory

whose lengths are constants, so that all loops over them unroll and they become registers. With lane = 4 g + c, g = 0..7, c = 0..3,

    scores[r, n, 2 half + i]   is the element   row 16 r + 8 half + g,   column 8 n + 2 c + i        half = 0..1, i = 0..1

                        columns  8 n ...  8 n + 7
                      c = 0      1      2      3
    row 16 r + g     | 0 1 |  | 0 1 |  | 0 1 |  | 0 1 |      the numbers are the last index, 2 half + i
    row 16 r + g + 8 | 2 3 |  | 2 3 |  | 2 3 |  | 2 3 |

A row belongs to the four neighbouring threads of one g, a quad: `quad_max`, `quad_sum`. Numbers of which each row has one (its largest
score, lse, delta) are in local arrays (row tiles, 2). In the kernel for dk and dv keys are the rows: lse and delta then belong to columns.

Exponentials are powers of two: exp(x) = exp2(x log2(e)), one instruction; log2(e) / sqrt(HS) is one factor, `log2_scale`.
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
PIECE = 16  # bytes: what one copy moves

inlined = cuda.jit(device=True) if SIMULATING else cuda.jit(device=True, forceinline=True)


def blocks_at_once(threads, blocks):
    """Options of a kernel whose registers must suffice for so many blocks on a multiprocessor at a time. The simulator has none."""
    return {} if SIMULATING else {"launch_bounds": (threads, blocks)}


def row_bytes(HS):
    """Bytes from row to row in shared memory, where rows are read or written by warps: see store_rows."""
    return 2 * HS + PIECE


def scales(HS):
    """(scale, log2_scale): 1 / sqrt(HS), and the same times log2(e)."""
    return np.float32(1 / math.sqrt(HS)), np.float32(math.log2(math.e) / math.sqrt(HS))


@inlined
def fill_rows(numbers, value):
    """numbers (row tiles, 2) = value."""
    row_tiles, _ = numbers.shape
    for r in range(row_tiles):
        for half in range(2):
            numbers[r, half] = value


@inlined
def set_to_zero(sums):
    """sums [w] a thread's share of a tile, as are all arrays here."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                sums[r, n, i] = ZERO


@inlined
def multiply_all(sums, factor):
    """sums *= factor, one number for all."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                sums[r, n, i] *= factor


@inlined
def multiply_rows(sums, factors):
    """Each row by its own factor (row tiles, 2)."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                sums[r, n, i] *= factors[r, i // 2]


@inlined
def pack_factors(factors, sums):
    """factors = sums, rounded to bfloat16: what one product leaves is a factor of the next one, in the same thread."""
    row_tiles, groups, _ = sums.shape
    for r in range(row_tiles):
        for n in range(groups):
            for half in range(2):
                factors[r, n // 2, 2 * (n % 2) + half] = pack_bfloat16(sums[r, n, 2 * half], sums[r, n, 2 * half + 1])


# ---------------------------------------------------------------------------------------------------------------- masks


@inlined
def hide_later_keys(scores, first_query, first_key):
    """scores = -inf where the key (column) comes after the query (row). The numbers of the warp's first row and first column."""
    row_tiles, groups, _ = scores.shape
    lane = int32(cuda.threadIdx.x & 31)
    seen = int32(first_query + (lane >> 2) - first_key - 2 * (lane & 3))  # how far this thread's first row sees from its first column on
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                if 8 * n + i % 2 - 16 * r - 8 * (i // 2) > seen:
                    scores[r, n, i] = MINUS_INFINITY


@inlined
def hide_earlier_queries(weights, first_key, first_query, T):
    """weights = 0 where the query (column) comes before the key (row), or after the last. The numbers of the first row and column."""
    row_tiles, groups, _ = weights.shape
    lane = int32(cuda.threadIdx.x & 31)
    begin = int32(first_key + (lane >> 2) - first_query - 2 * (lane & 3))  # of this thread's first row, counted from its first column
    end = int32(T - first_query - 2 * (lane & 3))
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                if 8 * n + i % 2 - 16 * r - 8 * (i // 2) < begin or 8 * n + i % 2 >= end:
                    weights[r, n, i] = ZERO


# -------------------------------------------------------------------------------------------------------------- softmax


@inlined
def online_softmax(scores, largest, total, shrink, log2_scale):
    """scores become weights, exp(score - largest of the row so far); what was added up before must be multiplied by `shrink`.

    largest, total, shrink (row tiles, 2). `total` is the sum over this thread's columns alone.
    """
    row_tiles, groups, _ = scores.shape
    for r in range(row_tiles):
        for half in range(2):
            before = largest[r, half]
            now = before
            for n in range(groups):
                now = maximum(now, maximum(scores[r, n, 2 * half], scores[r, n, 2 * half + 1]))
            now = quad_max(now)
            shrink_row = exp2((before - now) * log2_scale)
            shift = -now * log2_scale
            added_up = total[r, half] * shrink_row
            for n in range(groups):
                for i in range(2 * half, 2 * half + 2):
                    weight = exp2(fma(scores[r, n, i], log2_scale, shift))
                    scores[r, n, i] = weight
                    added_up += weight
            largest[r, half], total[r, half], shrink[r, half] = now, added_up, shrink_row


@inlined
def finish_softmax(sums, largest, total, lse, b, h, first_query, log2_scale):
    """sums become means, out = sums / total; lse = largest + log total is stored, for queries that exist."""
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
def weights_of_rows(scores, log2_lse, log2_scale):
    """scores become weights again, exp(score - lse of the row). log2_lse (row tiles, 2): lse log2(e)."""
    row_tiles, groups, _ = scores.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                scores[r, n, i] = exp2(fma(scores[r, n, i], log2_scale, -log2_lse[r, i // 2]))


@inlined
def dscores_of_rows(datt, weights, delta):
    """datt become dscores = weights (datt - delta of the row). delta (row tiles, 2)."""
    row_tiles, groups, _ = datt.shape
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                datt[r, n, i] = weights[r, n, i] * (datt[r, n, i] - delta[r, i // 2])


@inlined
def weights_of_columns(scores, memory, lse, log2_scale):
    """scores become weights again, exp(score - lse of the column). lse: its first byte in shared memory."""
    row_tiles, groups, _ = scores.shape
    of_columns = uint32(lse + int32(cuda.threadIdx.x & 3) * 8)  # of this thread's first column
    for n in range(groups):
        for i in range(2):
            shift = -load32_float(memory, uint32(of_columns + n * 32 + i * 4)) * LOG2_E
            for r in range(row_tiles):
                for half in range(2):
                    scores[r, n, 2 * half + i] = exp2(fma(scores[r, n, 2 * half + i], log2_scale, shift))


@inlined
def dscores_of_columns(datt, weights, memory, delta):
    """datt become dscores = weights (datt - delta of the column). delta: its first byte in shared memory."""
    row_tiles, groups, _ = datt.shape
    of_columns = uint32(delta + int32(cuda.threadIdx.x & 3) * 8)
    for n in range(groups):
        for i in range(2):
            of_column = load32_float(memory, uint32(of_columns + n * 32 + i * 4))
            for r in range(row_tiles):
                for half in range(2):
                    datt[r, n, 2 * half + i] = weights[r, n, 2 * half + i] * (datt[r, n, 2 * half + i] - of_column)


# ------------------------------------------------------------------------------------------------- from and to memory


@inlined
def copy_numbers(memory, place, lse, delta, first, first_query, T, queries):
    """Begin to copy lse and behind it delta of `queries` queries, by as many threads each. Of the head: from element `first` on."""
    here = int32(cuda.threadIdx.x)
    if here < 2 * queries:
        query = int32(here if here < queries else here - queries)
        index = int64(first + int32(min(int32(first_query + query), int32(T - 1))))
        if here < queries:
            copy4_async(memory, uint32(place + 4 * here), lse, index)
        else:
            copy4_async(memory, uint32(place + 4 * here), delta, index)


@inlined
def store_rows(array, start, row_length, first_row, T, sums, memory, staging):
    """Round a warp's sums to bfloat16 and store them as rows of one head, row t at array[start + t * row_length], none after the last.

    In registers a thread has two neighbours of a row. By way of shared memory, from byte `staging` on, it comes to eight: 16 bytes.
    Rows are 16 bytes longer there than their numbers, so that eight rows' pieces of one column lie in different banks.
    """
    row_tiles, groups, _ = sums.shape
    lane = int32(cuda.threadIdx.x & 31)
    staged_row = PIECE * groups + PIECE
    here = uint32(staging + (lane >> 2) * staged_row + (lane & 3) * 4)
    for r in range(row_tiles):
        for half in range(2):
            for n in range(groups):
                word = pack_bfloat16(sums[r, n, 2 * half], sums[r, n, 2 * half + 1])
                store32(memory, uint32(here + (16 * r + 8 * half) * staged_row + n * PIECE), word)
    sync_warp()
    for step in range(row_tiles * groups // 2):
        place = uint32(lane + step * 32)
        row, piece = int32(place // uint32(groups)), int32(place % uint32(groups))
        t = int32(first_row + row)
        if t < T:
            index = int64(start + int64(t) * int64(row_length) + piece * WIDTH)
            copy16_out(array, index, memory, uint32(staging + row * staged_row + piece * PIECE))
