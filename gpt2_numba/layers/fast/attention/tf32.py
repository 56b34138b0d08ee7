"""Attention in float32 on tensor cores, tile by tile: factors of products are rounded to TF32. Compute capability 8.0 and later.

What is different from the plain kernels of layers/attention is what mma.py explains, with the same three kernels: forward, dq, and dk with
dv; each sum made by one block, in a fixed order. What it says of rings, of rows after the last and of 16 bytes between rows holds here.
Different from mma.py is what follows from four bytes a number:

    scores_of_tile        (rows, tile's rows) =  rows tileᵀ    a number takes the place of a pair of bfloat16, so the same loads serve
    add_weighted_rows     (rows, HS)         +=  w tile        no instruction transposes four bytes: see there how it does without

Rounding: a tensor core would cut off the 13 lowest bits of a factor's mantissa, which makes every factor smaller, so it is rounded to
the nearest beforehand (to_tf32). q, k, v and dout are rounded in shared memory, once, by the thread that has copied them, and not by each
of the warps that read them (`round_rows`); weights and dscores in registers. The softmax, its sum, lse and delta see float32.

One H200, 2026-11-22, GPT-2 124M, B=16, T=1024: 0.25 + 0.84 ms a layer, of which rounding to the nearest costs 0.03 + 0.05. The training
step makes 238k to 247k tokens a second, with whole matrices of scores (matmuls.py) 155k.

Dao 2023, "FlashAttention-2", arXiv:2307.08691. Which thread holds which number of a matrix: gpu/tensor_cores.py, tiles.py.
"""

import functools
import math

import numpy as np
from numba import cuda, float32, int32, int64, uint32

from gpt2_numba.gpu.backend import SIMULATING, device_properties, real_gpu
from gpt2_numba.gpu.memory_access import WIDTH, store8
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy16_async,
    launch_with_shared_memory,
    load128,
    load_matrices,
    shared_bytes,
    store128,
    wait_for_copies,
)
from gpt2_numba.gpu.tensor_cores import mma_m16n8k8_tf32, to_tf32
from gpt2_numba.layers.fast.attention.delta import compute_delta
from gpt2_numba.layers.fast.attention.tiles import (
    LOG2_E,
    MINUS_INFINITY,
    PIECE,
    ZERO,
    blocks_at_once,
    copy_numbers,
    dscores_of_columns,
    dscores_of_rows,
    finish_softmax,
    hide_earlier_queries,
    hide_later_keys,
    inlined,
    multiply_all,
    multiply_rows,
    online_softmax,
    set_to_zero,
    weights_of_columns,
    weights_of_rows,
)

HEAD_SIZES = (64, 80, 96, 128)
NUMBERS = 4  # float32 in a PIECE
SPAN = 32  # columns that are taken together where a tile's rows are added: a piece for each g

# Sizes of a block's work, by head size: warps, 16-row tiles of each warp, rows of a tile in the ring, blocks at a time on a multiprocessor.
# The more rows a warp has, the more often it uses what it reads from shared memory, which is the limit beside registers.
if SIMULATING:
    FORWARD = dict.fromkeys(HEAD_SIZES, (2, 1, 16, 1))
    BACKWARD_QUERIES = BACKWARD_KEYS = FORWARD
else:
    FORWARD = {64: (4, 2, 64, 2), 80: (4, 1, 32, 2), 96: (4, 1, 32, 2), 128: (4, 1, 32, 2)}
    BACKWARD_QUERIES = {64: (4, 2, 32, 2), 80: (4, 1, 32, 2), 96: (4, 1, 32, 2), 128: (4, 1, 16, 2)}
    BACKWARD_KEYS = {64: (4, 2, 32, 2), 80: (4, 1, 32, 2), 96: (4, 1, 32, 2), 128: (2, 1, 16, 3)}


def row_bytes(HS):
    """Bytes from row to row in shared memory: HS / 4 + 1 pieces, an odd number."""
    return 4 * HS + PIECE


def groups_of(HS):
    """Groups of eight columns in sums of whole rows: whole SPANs, though HS = 80 leaves half of the last one unused."""
    return -(-HS // SPAN) * SPAN // 8


# --------------------------------------------------------------------------------------------- parts of all three kernels
#
# Local arrays as in tiles.py, but
#     factors     (row tiles, columns / 8, 4) uint32    numbers in TF32
#     sums        columns in an order of their own, see add_weighted_rows


@inlined
def place_of(step, pieces, threads):
    """Which row and which piece of it this thread copies in its step, where all threads of a block copy rows of `pieces` pieces."""
    here = int32(cuda.threadIdx.x)
    if threads % pieces == 0:
        return int32(int32(uint32(here) // uint32(pieces)) + step * (threads // pieces)), int32(uint32(here) % uint32(pieces))
    here = int32(here + step * threads)
    return int32(uint32(here) // uint32(pieces)), int32(uint32(here) % uint32(pieces))


@inlined
def copy_rows(memory, tile, array, start, row_length, first_row, T, rows, pieces, threads):
    """Begin to copy `rows` rows of one head, `pieces` times four numbers each, from row first_row on, by all threads of the block.

    Row t of the head is at array[start + t * row_length]. A row after the last is replaced by the last.
    """
    for step in range((rows * pieces + threads - 1) // threads):
        row, piece = place_of(step, pieces, threads)
        if (step + 1) * threads <= rows * pieces or row < rows:
            t = int32(min(int32(first_row + row), int32(T - 1)))
            offset = uint32(tile + row * ((pieces + 1) * PIECE) + piece * PIECE)
            copy16_async(memory, offset, array, int64(start + int64(t) * int64(row_length) + piece * NUMBERS))


@inlined
def round_rows(memory, tile, rows, pieces, threads):
    """Round to TF32 what this thread has copied by copy_rows, and what has arrived: wait for it before."""
    for step in range((rows * pieces + threads - 1) // threads):
        row, piece = place_of(step, pieces, threads)
        if (step + 1) * threads <= rows * pieces or row < rows:
            offset = uint32(tile + row * ((pieces + 1) * PIECE) + piece * PIECE)
            first, second, third, fourth = load128(memory, offset)
            store128(memory, offset, to_tf32(first), to_tf32(second), to_tf32(third), to_tf32(fourth))


@inlined
def load_columns(factors, k, memory, rows, row_length):
    """factors[:, k] = columns 8 k to 8 k + 7 of this warp's rows, which lie in shared memory from byte `rows` on."""
    row_tiles, _, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    # Lanes 0-7 name rows 0-7 of a 16 x 8 tile, lanes 8-15 rows 8-15, lanes 16-31 the same, one piece to the right.
    here = uint32(rows + (lane & 15) * row_length + (lane >> 4) * PIECE)
    for r in range(row_tiles):
        words = load_matrices(memory, uint32(here + r * (16 * row_length) + k * (2 * PIECE)))
        for i in range(4):
            factors[r, k, i] = words[i]


@inlined
def add_columns(scores, factors, k, memory, tile, row_length):
    """scores += factors[:, k] times the same eight columns of the tile's rows."""
    row_tiles, groups, _ = scores.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    # Lanes 0-7 name rows 0-7, lanes 8-15 the same one piece to the right, lanes 16-31 rows 8-15: b_low, b_high of two products.
    here = uint32(tile + ((lane >> 4) * 8 + (lane & 7)) * row_length + ((lane >> 3) & 1) * PIECE)
    for n in range(0, groups, 2):
        low, high, next_low, next_high = load_matrices(memory, uint32(here + n * (8 * row_length) + k * (2 * PIECE)))
        for r in range(row_tiles):
            mma_m16n8k8_tf32(scores, (r * groups + n) * 4, factors, (r * steps + k) * 4, low, high)
            mma_m16n8k8_tf32(scores, (r * groups + n + 1) * 4, factors, (r * steps + k) * 4, next_low, next_high)


@inlined
def scores_of_factors(scores, factors, memory, tile, row_length):
    """scores = factors tileᵀ, where the warp's rows are in registers."""
    _, steps, _ = factors.shape
    set_to_zero(scores)
    for k in range(steps):
        add_columns(scores, factors, k, memory, tile, row_length)


@inlined
def scores_of_tile(scores, factors, memory, rows, tile, row_length):
    """scores = rows tileᵀ. Registers are scarce, so the warp's rows, from byte `rows` on, come to the factors just before they are used."""
    _, steps, _ = factors.shape
    set_to_zero(scores)
    for k in range(steps):
        load_columns(factors, k, memory, rows, row_length)
        add_columns(scores, factors, k, memory, tile, row_length)


@inlined
def round_factors(factors, scores):
    """factors = scores, rounded to TF32: the numbers of columns 2c and 2c+1 take the places of a factor's columns c and c+4."""
    row_tiles, groups, _ = scores.shape
    for r in range(row_tiles):
        for n in range(groups):
            for half in range(2):
                for i in range(2):
                    factors[r, n, 2 * i + half] = to_tf32(scores[r, n, 2 * half + i])


@inlined
def add_weighted_rows(sums, factors, memory, tile, pieces):
    """sums += factors tile. The tile has as many rows as the factors have columns, each of `pieces` pieces.

    A product of (16, 8) and (8, 8) takes from this thread rows 2c and 2c+1 of the tile (see round_factors), in one column. Which
    column of the row that is, is for us to say: the thread reads a whole piece, four neighbours, and gives one to each of four products.

        column of the row = 32 s + 4 g + j        in group n = 4 s + j of the sums, s = 0, 1, ..., j = 0..3

    So one load of 16 bytes does the work of four, and the sums of a thread, whose columns of a group are g = 2c and 2c+1, are eight
    neighbours of the row: what `store_rows` needs. Rows 0, 2, 4, 6 of an odd number of pieces, two neighbouring pieces of each, are what
    eight threads read at a time: all banks, once each.
    """
    row_tiles, groups, _ = sums.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    g, row_length = int32(lane >> 2), (pieces + 1) * PIECE
    here = uint32(tile + (lane & 3) * (2 * row_length) + g * PIECE)
    in_last_span = here  # of which only a part may exist: the other threads read something for sums that are not stored
    if pieces % 8:
        in_last_span = uint32(tile + (lane & 3) * (2 * row_length) + int32(min(g, int32(pieces % 8 - 1))) * PIECE)
    for k in range(steps):
        for s in range(groups // 4):
            place = uint32((in_last_span if s == groups // 4 - 1 else here) + k * (8 * row_length) + s * (8 * PIECE))
            low = load128(memory, place)
            high = load128(memory, uint32(place + row_length))
            for r in range(row_tiles):
                for j in range(4):
                    mma_m16n8k8_tf32(sums, (r * groups + 4 * s + j) * 4, factors, (r * steps + k) * 4, low[j], high[j])


@inlined
def store_rows(array, start, row_length, first_row, T, sums, HS):
    """Store a warp's sums as rows of one head, row t at array[start + t * row_length], none after the last."""
    row_tiles, groups, _ = sums.shape
    lane = int32(cuda.threadIdx.x & 31)
    eight = cuda.local.array(WIDTH, float32)
    for r in range(row_tiles):
        for half in range(2):
            t = int32(first_row + 16 * r + 8 * half + (lane >> 2))
            for s in range(groups // 4):
                column = int32(SPAN * s + WIDTH * (lane & 3))
                for j in range(4):
                    eight[j] = sums[r, 4 * s + j, 2 * half]
                    eight[4 + j] = sums[r, 4 * s + j, 2 * half + 1]
                if t < T and column < HS:
                    store8(array, int64(start + int64(t) * int64(row_length) + column), eight)


# ---------------------------------------------------------------------------------------------------------------- forward


@functools.cache
def make_forward_kernel(HS, sizes=None):
    """The kernel for heads of HS numbers, and how it is launched: (kernel, threads, queries to a block, bytes of shared memory)."""
    warps, row_tiles, keys, blocks = sizes or FORWARD[HS]
    threads, queries_of_warp, pieces = 32 * warps, 16 * row_tiles, HS // NUMBERS
    queries = warps * queries_of_warp
    of_queries, of_keys = (row_tiles, HS // 8, 4), (row_tiles, keys // 8, 4)
    of_out, of_rows = (row_tiles, groups_of(HS), 4), (row_tiles, 2)
    row = row_bytes(HS)
    tile_bytes = keys * row
    ring = queries * row  # after the queries' rows: keys, values; keys, values
    log2_scale = np.float32(math.log2(math.e) / math.sqrt(HS))

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_forward_kernel(out, lse, qkv):
        """out and lse of `queries` queries of one head, a block each; those with the most keys before them come first."""
        memory = shared_bytes()
        q = cuda.local.array(of_queries, uint32)
        scores = cuda.local.array(of_keys, float32)
        weights = cuda.local.array(of_keys, uint32)
        sums = cuda.local.array(of_out, float32)
        largest = cuda.local.array(of_rows, float32)
        total = cuda.local.array(of_rows, float32)
        shrink = cuda.local.array(of_rows, float32)
        NH, T, C = int32(lse.shape[1]), int32(lse.shape[2]), int32(out.shape[1])
        warp = int32(cuda.threadIdx.x >> 5)
        b, h = int32(uint32(cuda.blockIdx.y) // uint32(NH)), int32(uint32(cuda.blockIdx.y) % uint32(NH))
        start = int64(b) * T * (3 * C) + h * HS  # of the queries of this head in qkv
        first_query = int32((cuda.gridDim.x - 1 - cuda.blockIdx.x) * queries)
        my_query = int32(first_query + warp * queries_of_warp)

        copy_rows(memory, 0, qkv, start, 3 * C, first_query, T, queries, pieces, threads)
        copy_rows(memory, ring, qkv, start + C, 3 * C, 0, T, keys, pieces, threads)
        copy_rows(memory, ring + tile_bytes, qkv, start + 2 * C, 3 * C, 0, T, keys, pieces, threads)
        commit_copies()
        set_to_zero(sums)
        for r in range(row_tiles):
            for half in range(2):
                largest[r, half], total[r, half] = MINUS_INFINITY, ZERO
        wait_for_copies(0)
        round_rows(memory, 0, queries, pieces, threads)
        cuda.syncthreads()
        for k in range(HS // 8):
            load_columns(q, k, memory, uint32(warp * (queries_of_warp * row)), row)

        stop = int32(min(int32(first_query + queries), T))  # keys from here on are after all queries
        half_of_ring = uint32(ring)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            round_rows(memory, half_of_ring, keys, pieces, threads)
            round_rows(memory, half_of_ring + tile_bytes, keys, pieces, threads)
            cuda.syncthreads()  # this tile has arrived for all threads, and all have done with the other half of the ring
            next_half = uint32(2 * ring + 2 * tile_bytes - half_of_ring)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_half, qkv, start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_half + tile_bytes, qkv, start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < my_query + queries_of_warp:
                scores_of_factors(scores, q, memory, half_of_ring, row)
                if first_key + keys > my_query + 1:
                    hide_later_keys(scores, my_query, int32(first_key))
                online_softmax(scores, largest, total, shrink, log2_scale)
                multiply_rows(sums, shrink)
                round_factors(weights, scores)
                add_weighted_rows(sums, weights, memory, half_of_ring + tile_bytes, pieces)
            half_of_ring = next_half

        finish_softmax(sums, largest, total, lse, b, h, my_query, log2_scale)
        store_rows(out, int64(b) * T * C + h * HS, C, my_query, T, sums, HS)

    return attention_forward_kernel, threads, queries, ring + 4 * tile_bytes


# --------------------------------------------------------------------------------------------------------------- backward


@functools.cache
def make_backward_queries_kernel(HS, sizes=None):
    """The kernel for dq, and how it is launched: (kernel, threads, queries to a block, bytes of shared memory)."""
    warps, row_tiles, keys, blocks = sizes or BACKWARD_QUERIES[HS]
    threads, queries_of_warp, pieces = 32 * warps, 16 * row_tiles, HS // NUMBERS
    queries = warps * queries_of_warp
    of_queries, of_keys = (row_tiles, HS // 8, 4), (row_tiles, keys // 8, 4)
    of_dq, of_rows = (row_tiles, groups_of(HS), 4), (row_tiles, 2)
    row = row_bytes(HS)
    tile_bytes, dout_rows = keys * row, queries * row
    ring = 2 * dout_rows  # after the rows of queries and of dout: keys, values; keys, values
    scale = np.float32(1 / math.sqrt(HS))
    log2_scale = np.float32(math.log2(math.e) / math.sqrt(HS))

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_backward_queries_kernel(dqkv, dout, lse, delta, qkv):
        """dq of `queries` queries of one head, a block each; those with the most keys before them come first."""
        memory = shared_bytes()
        factors = cuda.local.array(of_queries, uint32)  # of queries, or of dout
        weights = cuda.local.array(of_keys, float32)
        dscores = cuda.local.array(of_keys, float32)
        rounded = cuda.local.array(of_keys, uint32)
        dq = cuda.local.array(of_dq, float32)
        log2_lse = cuda.local.array(of_rows, float32)
        my_delta = cuda.local.array(of_rows, float32)
        NH, T, C = int32(lse.shape[1]), int32(lse.shape[2]), int32(dout.shape[1])
        lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
        b, h = int32(uint32(cuda.blockIdx.y) // uint32(NH)), int32(uint32(cuda.blockIdx.y) % uint32(NH))
        start = int64(b) * T * (3 * C) + h * HS
        first_query = int32((cuda.gridDim.x - 1 - cuda.blockIdx.x) * queries)
        my_query = int32(first_query + warp * queries_of_warp)
        my_rows = uint32(warp * (queries_of_warp * row))

        copy_rows(memory, 0, qkv, start, 3 * C, first_query, T, queries, pieces, threads)
        copy_rows(memory, dout_rows, dout, int64(b) * T * C + h * HS, C, first_query, T, queries, pieces, threads)
        copy_rows(memory, ring, qkv, start + C, 3 * C, 0, T, keys, pieces, threads)
        copy_rows(memory, ring + tile_bytes, qkv, start + 2 * C, 3 * C, 0, T, keys, pieces, threads)
        commit_copies()
        set_to_zero(dq)
        for r in range(row_tiles):
            for half in range(2):
                t = int32(min(int32(my_query + 16 * r + 8 * half + (lane >> 2)), int32(T - 1)))
                log2_lse[r, half] = lse[b, h, t] * LOG2_E
                my_delta[r, half] = delta[b, h, t]
        wait_for_copies(0)
        round_rows(memory, 0, queries, pieces, threads)
        round_rows(memory, dout_rows, queries, pieces, threads)

        stop = int32(min(int32(first_query + queries), T))
        half_of_ring = uint32(ring)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            round_rows(memory, half_of_ring, keys, pieces, threads)
            round_rows(memory, half_of_ring + tile_bytes, keys, pieces, threads)
            cuda.syncthreads()  # this tile has arrived for all threads, and all have done with the other half of the ring
            next_half = uint32(2 * ring + 2 * tile_bytes - half_of_ring)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_half, qkv, start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_half + tile_bytes, qkv, start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < my_query + queries_of_warp:
                scores_of_tile(weights, factors, memory, my_rows, half_of_ring, row)
                if first_key + keys > my_query + 1:
                    hide_later_keys(weights, my_query, int32(first_key))
                weights_of_rows(weights, log2_lse, log2_scale)
                scores_of_tile(dscores, factors, memory, dout_rows + my_rows, half_of_ring + tile_bytes, row)
                dscores_of_rows(dscores, weights, my_delta)
                round_factors(rounded, dscores)
                add_weighted_rows(dq, rounded, memory, half_of_ring, pieces)
            half_of_ring = next_half

        multiply_all(dq, scale)
        store_rows(dqkv, start, 3 * C, my_query, T, dq, HS)

    return attention_backward_queries_kernel, threads, queries, ring + 4 * tile_bytes


@functools.cache
def make_backward_keys_kernel(HS, sizes=None):
    """The kernel for dk and dv, and how it is launched: (kernel, threads, keys to a block, bytes of shared memory)."""
    warps, row_tiles, queries, blocks = sizes or BACKWARD_KEYS[HS]
    threads, keys_of_warp, pieces = 32 * warps, 16 * row_tiles, HS // NUMBERS
    keys = warps * keys_of_warp
    of_keys, of_queries = (row_tiles, HS // 8, 4), (row_tiles, queries // 8, 4)
    of_gradient = (row_tiles, groups_of(HS), 4)
    row = row_bytes(HS)
    tile_bytes, value_rows = queries * row, keys * row
    ring = 2 * value_rows  # after the rows of keys and of values: queries, dout, lse, delta; the same again
    numbers, stage_bytes = 2 * tile_bytes, 2 * tile_bytes + 8 * queries
    scale = np.float32(1 / math.sqrt(HS))
    log2_scale = np.float32(math.log2(math.e) / math.sqrt(HS))

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_backward_keys_kernel(dqkv, dout, lse, delta, qkv):
        """dk and dv of `keys` keys of one head, a block each; the first keys, which have the most queries after them, come first."""
        memory = shared_bytes()
        factors = cuda.local.array(of_keys, uint32)  # of keys, or of values
        weights = cuda.local.array(of_queries, float32)
        dscores = cuda.local.array(of_queries, float32)
        rounded = cuda.local.array(of_queries, uint32)
        dk = cuda.local.array(of_gradient, float32)
        dv = cuda.local.array(of_gradient, float32)
        NH, T, C = int32(lse.shape[1]), int32(lse.shape[2]), int32(dout.shape[1])
        warp = int32(cuda.threadIdx.x >> 5)
        b, h = int32(uint32(cuda.blockIdx.y) // uint32(NH)), int32(uint32(cuda.blockIdx.y) % uint32(NH))
        start, of_dout = int64(b) * T * (3 * C) + h * HS, int64(b) * T * C + h * HS
        of_numbers = int64(cuda.blockIdx.y) * T
        first_key = int32(cuda.blockIdx.x * keys)
        my_key = int32(first_key + warp * keys_of_warp)
        my_rows = uint32(warp * (keys_of_warp * row))
        begin = int32(uint32(first_key) // uint32(queries) * uint32(queries))  # the first tile with a query that sees a key

        copy_rows(memory, 0, qkv, start + C, 3 * C, first_key, T, keys, pieces, threads)
        copy_rows(memory, value_rows, qkv, start + 2 * C, 3 * C, first_key, T, keys, pieces, threads)
        copy_rows(memory, ring, qkv, start, 3 * C, begin, T, queries, pieces, threads)
        copy_rows(memory, ring + tile_bytes, dout, of_dout, C, begin, T, queries, pieces, threads)
        copy_numbers(memory, ring + numbers, lse, delta, of_numbers, begin, T, queries)
        commit_copies()
        set_to_zero(dk)
        set_to_zero(dv)
        wait_for_copies(0)
        round_rows(memory, 0, keys, pieces, threads)
        round_rows(memory, value_rows, keys, pieces, threads)

        half_of_ring = uint32(ring)
        for first_query in range(begin, T, queries):
            wait_for_copies(0)
            round_rows(memory, half_of_ring, queries, pieces, threads)
            round_rows(memory, half_of_ring + tile_bytes, queries, pieces, threads)
            cuda.syncthreads()  # this tile has arrived for all threads, and all have done with the other half of the ring
            next_half = uint32(2 * ring + stage_bytes - half_of_ring)
            if first_query + queries < T:
                next_query = int32(first_query + queries)
                copy_rows(memory, next_half, qkv, start, 3 * C, next_query, T, queries, pieces, threads)
                copy_rows(memory, next_half + tile_bytes, dout, of_dout, C, next_query, T, queries, pieces, threads)
                copy_numbers(memory, next_half + numbers, lse, delta, of_numbers, next_query, T, queries)
                commit_copies()
            if first_query + queries > my_key:
                scores_of_tile(weights, factors, memory, my_rows, half_of_ring, row)
                weights_of_columns(weights, memory, half_of_ring + numbers, log2_scale)
                if first_query < my_key + keys_of_warp - 1 or first_query + queries > T:
                    hide_earlier_queries(weights, my_key, int32(first_query), T)
                scores_of_tile(dscores, factors, memory, value_rows + my_rows, half_of_ring + tile_bytes, row)
                dscores_of_columns(dscores, weights, memory, half_of_ring + numbers + 4 * queries)
                round_factors(rounded, weights)
                add_weighted_rows(dv, rounded, memory, half_of_ring + tile_bytes, pieces)
                round_factors(rounded, dscores)
                add_weighted_rows(dk, rounded, memory, half_of_ring, pieces)
            half_of_ring = next_half

        multiply_all(dk, scale)
        store_rows(dqkv, start + C, 3 * C, my_key, T, dk, HS)
        store_rows(dqkv, start + 2 * C, 3 * C, my_key, T, dv, HS)

    return attention_backward_keys_kernel, threads, keys, ring + 2 * stage_bytes


# -------------------------------------------------------------------------------------------------------------- launchers


@functools.cache
def can_serve(HS):
    """Whether heads of HS numbers can be worked on here: not in the simulator, where matmuls serve, nor with too little shared memory."""
    if HS not in HEAD_SIZES or not real_gpu() or device_properties()[0] < (8, 0):
        return False
    makers = (make_forward_kernel, make_backward_queries_kernel, make_backward_keys_kernel)
    return max(make(HS)[3] for make in makers) <= cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


def scratch_size(B, T, NH, HS):
    """delta."""
    return B * NH * T


def attention_forward(out, lse, qkv, scratch):
    """Arguments as in the package's attention_forward, checked."""
    _launch(make_forward_kernel, lse, out, out, lse, qkv)


def attention_backward(dqkv, dout, out, lse, qkv, scratch):
    """Arguments as in the package's attention_backward, checked."""
    delta = compute_delta(scratch, dout, out, lse)
    _launch(make_backward_keys_kernel, lse, out, dqkv, dout, lse, delta, qkv)
    _launch(make_backward_queries_kernel, lse, out, dqkv, dout, lse, delta, qkv)


def _launch(make_kernel, lse, out, *args):
    B, NH, T = lse.shape
    HS = out.shape[1] // NH
    kernel, threads, rows, nbytes = make_kernel(HS)
    launch_with_shared_memory(kernel, (-(-T // rows), B * NH), threads, nbytes, *args)
