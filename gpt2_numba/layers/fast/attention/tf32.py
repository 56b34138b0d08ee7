"""Attention in float32 on tensor cores, tile by tile; factors of products are rounded to TF32. Compute capability 8.0 and later.

The method is that of mma.py: the same three kernels (forward; dq; dk and dv), each sum made by one block in a fixed order, the same ring,
the same padding of rows and replacement of rows from T on. The differences follow from four bytes per element:

    multiply_transposed    (rows, tile's rows) =  factors tileᵀ    an element is as wide as a pair of bfloat16, so ldmatrix serves
    multiply_add           (rows, HS)         +=  factors tile     no instruction transposes 4-byte elements; see there for the way around

Rounding: a tensor core truncates a factor's 13 lowest mantissa bits, which biases every factor towards zero. So factors are rounded to the
nearest beforehand (to_tf32): q, k, v and dout in shared memory (`round_rows`), once, by the thread that copied them, not by each warp that
reads them; weights and dscores in registers. The softmax, its sum, lse and delta are float32.

One H200, 2026-11-22, GPT-2 124M, B=16, T=1024: 0.25 + 0.84 ms per layer, of which rounding to the nearest costs 0.03 + 0.05. Training runs
at 238k to 247k tokens/s; with whole matrices of scores (matmuls.py), at 155k.

Dao 2023, "FlashAttention-2", arXiv:2307.08691. Which thread holds which element of a matrix: gpu/tensor_cores.py, tiles.py.
"""

import functools

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
from gpt2_numba.integers import ceil_div, round_up
from gpt2_numba.layers.fast.attention.delta import compute_delta
from gpt2_numba.layers.fast.attention.tiles import (
    LOG2_E,
    MINUS_INFINITY,
    PIECE,
    ZERO,
    blocks_at_once,
    copy_lse_and_delta,
    dscores_by_column,
    dscores_by_row,
    fill_rows,
    finish_softmax,
    hide_earlier_queries,
    hide_later_keys,
    inlined,
    locate_head,
    multiply_all,
    multiply_rows,
    online_softmax,
    scales,
    set_to_zero,
    weights_by_column,
    weights_by_row,
)

HEAD_SIZES = (64, 80, 96, 128)
PIECE_FLOATS = 4  # float32 values in a PIECE
SPAN = 32  # columns that multiply_add takes at a time: one piece for each g

# A block's work by head size: warps, row tiles per warp, rows of a tile in the ring, blocks on a multiprocessor at a time. The more rows a
# warp has, the more often it uses what it reads from shared memory, which is the limit, together with registers.
if SIMULATING:
    FORWARD = dict.fromkeys(HEAD_SIZES, (2, 1, 16, 1))
    BACKWARD_QUERIES = BACKWARD_KEYS = FORWARD
else:
    FORWARD = {64: (4, 2, 64, 2), 80: (4, 1, 32, 2), 96: (4, 1, 32, 2), 128: (4, 1, 32, 2)}
    BACKWARD_QUERIES = {64: (4, 2, 32, 2), 80: (4, 1, 32, 2), 96: (4, 1, 32, 2), 128: (4, 1, 16, 2)}
    BACKWARD_KEYS = {64: (4, 2, 32, 2), 80: (4, 1, 32, 2), 96: (4, 1, 32, 2), 128: (2, 1, 16, 3)}


def padded_row_bytes(HS):
    """Bytes from one row to the next in shared memory: HS / 4 + 1 pieces, an odd number."""
    return 4 * HS + PIECE


def column_groups(HS):
    """Groups of eight columns in the sums of rows of HS: whole SPANs, although HS = 80 leaves half of the last one unused."""
    return round_up(HS, SPAN) // 8


# --------------------------------------------------------------------------------------------- parts of all three kernels
#
# Local arrays as in tiles.py, but
#     factors     (row tiles, columns / 8, 4) uint32    TF32, as bits
#     sums        columns in a different order, see multiply_add


@inlined
def row_and_piece(step, pieces, threads):
    """(row, piece) that this thread copies in step `step`, when all threads of the block together copy rows of `pieces` pieces."""
    here = int32(cuda.threadIdx.x)
    if threads % pieces == 0:
        return int32(int32(uint32(here) // uint32(pieces)) + step * (threads // pieces)), int32(uint32(here) % uint32(pieces))
    here = int32(here + step * threads)
    return int32(uint32(here) // uint32(pieces)), int32(uint32(here) % uint32(pieces))


# Ten parameters: the last three are compile-time constants, so the loop unrolls.
@inlined
def copy_rows(memory, tile, array, start, row_length, first_row, T, rows, pieces, threads):
    """Begin to copy `rows` rows of one head, `pieces` times four values each, from row first_row on, to byte `tile`; by the whole block.

    Row t of the head is at array[start + t * row_length]. Rows from T on are replaced by row T - 1.
    """
    for step in range((rows * pieces + threads - 1) // threads):
        row, piece = row_and_piece(step, pieces, threads)
        if (step + 1) * threads <= rows * pieces or row < rows:
            t = int32(min(int32(first_row + row), int32(T - 1)))
            offset = uint32(tile + row * ((pieces + 1) * PIECE) + piece * PIECE)
            copy16_async(memory, offset, array, int64(start + int64(t) * int64(row_length) + piece * PIECE_FLOATS))


@inlined
def round_rows(memory, tile, rows, pieces, threads):
    """Round to TF32 what this thread has copied by copy_rows. The copies must have arrived."""
    for step in range((rows * pieces + threads - 1) // threads):
        row, piece = row_and_piece(step, pieces, threads)
        if (step + 1) * threads <= rows * pieces or row < rows:
            offset = uint32(tile + row * ((pieces + 1) * PIECE) + piece * PIECE)
            first, second, third, fourth = load128(memory, offset)
            store128(memory, offset, to_tf32(first), to_tf32(second), to_tf32(third), to_tf32(fourth))


@inlined
def load_columns(factors, k, memory, rows, row_stride):
    """factors[:, k] = columns 8 k to 8 k + 7 of this warp's rows, which are in shared memory from byte `rows` on."""
    row_tiles, _, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    # Lanes 0-7 address rows 0-7 of a 16 x 8 tile, lanes 8-15 rows 8-15, lanes 16-31 the same rows one piece to the right.
    here = uint32(rows + (lane & 15) * row_stride + (lane >> 4) * PIECE)
    for r in range(row_tiles):
        words = load_matrices(memory, uint32(here + r * (16 * row_stride) + k * (2 * PIECE)))
        for i in range(4):
            factors[r, k, i] = words[i]


@inlined
def add_columns(scores, factors, k, memory, tile, row_stride):
    """scores += factors[:, k] times the same eight columns of the tile, transposed."""
    row_tiles, groups, _ = scores.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    # Lanes 0-7 address rows 0-7, lanes 8-15 the same rows one piece to the right, lanes 16-31 rows 8-15: b_low, b_high of two products.
    here = uint32(tile + ((lane >> 4) * 8 + (lane & 7)) * row_stride + ((lane >> 3) & 1) * PIECE)
    for n in range(0, groups, 2):
        low, high, next_low, next_high = load_matrices(memory, uint32(here + n * (8 * row_stride) + k * (2 * PIECE)))
        for r in range(row_tiles):
            mma_m16n8k8_tf32(scores, (r * groups + n) * 4, factors, (r * steps + k) * 4, low, high)
            mma_m16n8k8_tf32(scores, (r * groups + n + 1) * 4, factors, (r * steps + k) * 4, next_low, next_high)


@inlined
def multiply_transposed(scores, factors, memory, tile, row_stride):
    """scores = factors tileᵀ, with all of the warp's rows in registers."""
    _, steps, _ = factors.shape
    set_to_zero(scores)
    for k in range(steps):
        add_columns(scores, factors, k, memory, tile, row_stride)


@inlined
def load_and_multiply_transposed(scores, factors, memory, rows, tile, row_stride):
    """scores = rows tileᵀ. To save registers, the warp's rows, from byte `rows` on, are loaded as factors just before they are used."""
    _, steps, _ = factors.shape
    set_to_zero(scores)
    for k in range(steps):
        load_columns(factors, k, memory, rows, row_stride)
        add_columns(scores, factors, k, memory, tile, row_stride)


@inlined
def round_factors(factors, scores):
    """factors = scores, rounded to TF32. Columns 2c and 2c+1 of scores become columns c and c+4 of the factors."""
    row_tiles, groups, _ = scores.shape
    for r in range(row_tiles):
        for n in range(groups):
            for half in range(2):
                for i in range(2):
                    factors[r, n, 2 * i + half] = to_tf32(scores[r, n, 2 * half + i])


@inlined
def multiply_add(sums, factors, memory, tile, pieces):
    """sums += factors tile. The tile has as many rows as factors has columns, each of `pieces` pieces.

    A product of (16, 8) and (8, 8) takes from this thread rows 2c and 2c+1 of the tile (see round_factors), in one column. The choice of
    that column is free: the thread reads a whole piece, four neighbours, and gives one to each of four products.

        column of the row = 32 s + 4 g + j        in group n = 4 s + j of the sums, s = 0, 1, ..., j = 0..3

    So one load of 16 bytes does the work of four, and a thread's sums, whose columns of a group are g = 2c and 2c+1, are eight neighbours
    of the row, as `store_rows` needs. Eight threads at a time read two neighbouring pieces of each of rows 0, 2, 4, 6; since a row has an
    odd number of pieces, that is every bank once.
    """
    row_tiles, groups, _ = sums.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    g, row_stride = int32(lane >> 2), (pieces + 1) * PIECE
    here = uint32(tile + (lane & 3) * (2 * row_stride) + g * PIECE)
    in_last_span = here  # may be cut off by the end of the row: the threads beyond it read something for sums that are not stored
    if pieces % 8:
        in_last_span = uint32(tile + (lane & 3) * (2 * row_stride) + int32(min(g, int32(pieces % 8 - 1))) * PIECE)
    for k in range(steps):
        for s in range(groups // 4):
            offset = uint32((in_last_span if s == groups // 4 - 1 else here) + k * (8 * row_stride) + s * (8 * PIECE))
            low = load128(memory, offset)
            high = load128(memory, uint32(offset + row_stride))
            for r in range(row_tiles):
                for j in range(4):
                    mma_m16n8k8_tf32(sums, (r * groups + 4 * s + j) * 4, factors, (r * steps + k) * 4, low[j], high[j])


@inlined
def store_rows(array, start, row_length, first_row, T, sums, HS):
    """Store a warp's sums as rows of one head, row t at array[start + t * row_length], for t < T."""
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
#
# Shapes of a thread's local arrays, in all kernels here:
#     factor_shape    rows of q, dout, k or v as factors
#     scores_shape    scores, weights, dscores, in float32 or rounded to factors
#     sums_shape      out, dq, dk, dv
#     row_shape       values of which each row has one


@functools.cache
def make_forward_kernel(HS, sizes=None):
    """(kernel, threads, queries per block, bytes of shared memory) for heads of HS channels. sizes: a row of FORWARD, to try others."""
    warps, row_tiles, keys, blocks = sizes or FORWARD[HS]
    threads, queries_per_warp, pieces = 32 * warps, 16 * row_tiles, HS // PIECE_FLOATS
    queries = warps * queries_per_warp
    factor_shape, scores_shape = (row_tiles, HS // 8, 4), (row_tiles, keys // 8, 4)
    sums_shape, row_shape = (row_tiles, column_groups(HS), 4), (row_tiles, 2)
    row_stride = padded_row_bytes(HS)
    tile_bytes = keys * row_stride
    ring_start = queries * row_stride  # shared memory: queries; keys, values of one stage; keys, values of the other
    _, log2_scale = scales(HS)

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_forward_kernel(out, lse, qkv):
        """out and lse. A block takes `queries` queries of one head.

        The last queries, which have the most keys, are launched first, so that no long block is left for the end.
        """
        memory = shared_bytes()
        q = cuda.local.array(factor_shape, uint32)
        scores = cuda.local.array(scores_shape, float32)
        weights = cuda.local.array(scores_shape, uint32)
        sums = cuda.local.array(sums_shape, float32)
        largest = cuda.local.array(row_shape, float32)
        total = cuda.local.array(row_shape, float32)
        rescale = cuda.local.array(row_shape, float32)
        T, C, b, h, qkv_start, out_start = locate_head(int32(cuda.blockIdx.y), lse, out, HS)
        warp = int32(cuda.threadIdx.x >> 5)
        first_query = int32((cuda.gridDim.x - 1 - cuda.blockIdx.x) * queries)
        warp_query = int32(first_query + warp * queries_per_warp)

        copy_rows(memory, 0, qkv, qkv_start, 3 * C, first_query, T, queries, pieces, threads)
        copy_rows(memory, ring_start, qkv, qkv_start + C, 3 * C, 0, T, keys, pieces, threads)
        copy_rows(memory, ring_start + tile_bytes, qkv, qkv_start + 2 * C, 3 * C, 0, T, keys, pieces, threads)
        commit_copies()
        set_to_zero(sums)
        fill_rows(largest, MINUS_INFINITY)
        fill_rows(total, ZERO)
        wait_for_copies(0)
        round_rows(memory, 0, queries, pieces, threads)
        cuda.syncthreads()
        for k in range(HS // 8):
            load_columns(q, k, memory, uint32(warp * (queries_per_warp * row_stride)), row_stride)

        stop = int32(min(int32(first_query + queries), T))  # keys from here on come after all queries of the block
        stage = uint32(ring_start)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            round_rows(memory, stage, keys, pieces, threads)
            round_rows(memory, stage + tile_bytes, keys, pieces, threads)
            cuda.syncthreads()  # this stage is complete, and no thread reads the other one any more
            # The other of the two stages, at ring_start and ring_start + 2 tile_bytes.
            next_stage = uint32(2 * ring_start + 2 * tile_bytes - stage)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_stage, qkv, qkv_start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_stage + tile_bytes, qkv, qkv_start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < warp_query + queries_per_warp:
                multiply_transposed(scores, q, memory, stage, row_stride)
                if first_key + keys > warp_query + 1:
                    hide_later_keys(scores, warp_query, int32(first_key))
                online_softmax(scores, largest, total, rescale, log2_scale)
                multiply_rows(sums, rescale)
                round_factors(weights, scores)
                multiply_add(sums, weights, memory, stage + tile_bytes, pieces)
            stage = next_stage

        finish_softmax(sums, largest, total, lse, b, h, warp_query, log2_scale)
        store_rows(out, out_start, C, warp_query, T, sums, HS)

    return attention_forward_kernel, threads, queries, ring_start + 4 * tile_bytes


# --------------------------------------------------------------------------------------------------------------- backward


@functools.cache
def make_backward_queries_kernel(HS, sizes=None):
    """The kernel for dq: (kernel, threads, queries per block, bytes of shared memory). sizes: a row of BACKWARD_QUERIES, to try others."""
    warps, row_tiles, keys, blocks = sizes or BACKWARD_QUERIES[HS]
    threads, queries_per_warp, pieces = 32 * warps, 16 * row_tiles, HS // PIECE_FLOATS
    queries = warps * queries_per_warp
    factor_shape, scores_shape = (row_tiles, HS // 8, 4), (row_tiles, keys // 8, 4)
    sums_shape, row_shape = (row_tiles, column_groups(HS), 4), (row_tiles, 2)
    row_stride = padded_row_bytes(HS)
    tile_bytes, dout_rows = keys * row_stride, queries * row_stride
    ring_start = 2 * dout_rows  # shared memory: queries, dout; keys, values of one stage; keys, values of the other
    scale, log2_scale = scales(HS)

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_backward_queries_kernel(dqkv, dout, lse, delta, qkv):
        """dq. A block takes `queries` queries of one head.

        The last queries, which have the most keys, are launched first, so that no long block is left for the end.
        """
        memory = shared_bytes()
        factors = cuda.local.array(factor_shape, uint32)  # q or dout
        weights = cuda.local.array(scores_shape, float32)
        dscores = cuda.local.array(scores_shape, float32)
        rounded = cuda.local.array(scores_shape, uint32)
        dq = cuda.local.array(sums_shape, float32)
        log2_lse = cuda.local.array(row_shape, float32)
        row_delta = cuda.local.array(row_shape, float32)
        T, C, b, h, qkv_start, dout_start = locate_head(int32(cuda.blockIdx.y), lse, dout, HS)
        lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
        first_query = int32((cuda.gridDim.x - 1 - cuda.blockIdx.x) * queries)
        warp_query = int32(first_query + warp * queries_per_warp)
        warp_rows = uint32(warp * (queries_per_warp * row_stride))

        copy_rows(memory, 0, qkv, qkv_start, 3 * C, first_query, T, queries, pieces, threads)
        copy_rows(memory, dout_rows, dout, dout_start, C, first_query, T, queries, pieces, threads)
        copy_rows(memory, ring_start, qkv, qkv_start + C, 3 * C, 0, T, keys, pieces, threads)
        copy_rows(memory, ring_start + tile_bytes, qkv, qkv_start + 2 * C, 3 * C, 0, T, keys, pieces, threads)
        commit_copies()
        set_to_zero(dq)
        for r in range(row_tiles):
            for half in range(2):
                t = int32(min(int32(warp_query + 16 * r + 8 * half + (lane >> 2)), int32(T - 1)))
                log2_lse[r, half] = lse[b, h, t] * LOG2_E
                row_delta[r, half] = delta[b, h, t]
        wait_for_copies(0)
        round_rows(memory, 0, queries, pieces, threads)
        round_rows(memory, dout_rows, queries, pieces, threads)

        stop = int32(min(int32(first_query + queries), T))
        stage = uint32(ring_start)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            round_rows(memory, stage, keys, pieces, threads)
            round_rows(memory, stage + tile_bytes, keys, pieces, threads)
            cuda.syncthreads()  # this stage is complete, and no thread reads the other one any more
            # The other of the two stages, at ring_start and ring_start + 2 tile_bytes.
            next_stage = uint32(2 * ring_start + 2 * tile_bytes - stage)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_stage, qkv, qkv_start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_stage + tile_bytes, qkv, qkv_start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < warp_query + queries_per_warp:
                load_and_multiply_transposed(weights, factors, memory, warp_rows, stage, row_stride)
                if first_key + keys > warp_query + 1:
                    hide_later_keys(weights, warp_query, int32(first_key))
                weights_by_row(weights, log2_lse, log2_scale)
                load_and_multiply_transposed(dscores, factors, memory, dout_rows + warp_rows, stage + tile_bytes, row_stride)
                dscores_by_row(dscores, weights, row_delta)
                round_factors(rounded, dscores)
                multiply_add(dq, rounded, memory, stage, pieces)
            stage = next_stage

        multiply_all(dq, scale)
        store_rows(dqkv, qkv_start, 3 * C, warp_query, T, dq, HS)

    return attention_backward_queries_kernel, threads, queries, ring_start + 4 * tile_bytes


@functools.cache
def make_backward_keys_kernel(HS, sizes=None):
    """The kernel for dk and dv: (kernel, threads, keys per block, bytes of shared memory). sizes: a row of BACKWARD_KEYS, to try others."""
    warps, row_tiles, queries, blocks = sizes or BACKWARD_KEYS[HS]
    threads, keys_per_warp, pieces = 32 * warps, 16 * row_tiles, HS // PIECE_FLOATS
    keys = warps * keys_per_warp
    factor_shape, scores_shape = (row_tiles, HS // 8, 4), (row_tiles, queries // 8, 4)
    sums_shape = (row_tiles, column_groups(HS), 4)
    row_stride = padded_row_bytes(HS)
    tile_bytes, value_rows = queries * row_stride, keys * row_stride
    ring_start = 2 * value_rows  # shared memory: keys, values; queries, dout, lse, delta of one stage; the same of the other
    lse_offset, stage_bytes = 2 * tile_bytes, 2 * tile_bytes + 8 * queries
    scale, log2_scale = scales(HS)

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_backward_keys_kernel(dqkv, dout, lse, delta, qkv):
        """dk and dv. A block takes `keys` keys of one head.

        The first keys, which have the most queries, are launched first, so that no long block is left for the end.
        """
        memory = shared_bytes()
        factors = cuda.local.array(factor_shape, uint32)  # k or v
        weights = cuda.local.array(scores_shape, float32)
        dscores = cuda.local.array(scores_shape, float32)
        rounded = cuda.local.array(scores_shape, uint32)  # weights or dscores
        dk = cuda.local.array(sums_shape, float32)
        dv = cuda.local.array(sums_shape, float32)
        T, C, _, _, qkv_start, dout_start = locate_head(int32(cuda.blockIdx.y), lse, dout, HS)
        lse_start = int64(cuda.blockIdx.y) * T
        warp = int32(cuda.threadIdx.x >> 5)
        first_key = int32(cuda.blockIdx.x * keys)
        warp_key = int32(first_key + warp * keys_per_warp)
        warp_rows = uint32(warp * (keys_per_warp * row_stride))
        begin = int32(uint32(first_key) // uint32(queries) * uint32(queries))  # the first tile with a query that sees one of the keys

        copy_rows(memory, 0, qkv, qkv_start + C, 3 * C, first_key, T, keys, pieces, threads)
        copy_rows(memory, value_rows, qkv, qkv_start + 2 * C, 3 * C, first_key, T, keys, pieces, threads)
        copy_rows(memory, ring_start, qkv, qkv_start, 3 * C, begin, T, queries, pieces, threads)
        copy_rows(memory, ring_start + tile_bytes, dout, dout_start, C, begin, T, queries, pieces, threads)
        copy_lse_and_delta(memory, ring_start + lse_offset, lse, delta, lse_start, begin, T, queries)
        commit_copies()
        set_to_zero(dk)
        set_to_zero(dv)
        wait_for_copies(0)
        round_rows(memory, 0, keys, pieces, threads)
        round_rows(memory, value_rows, keys, pieces, threads)

        stage = uint32(ring_start)
        for first_query in range(begin, T, queries):
            wait_for_copies(0)
            round_rows(memory, stage, queries, pieces, threads)
            round_rows(memory, stage + tile_bytes, queries, pieces, threads)
            cuda.syncthreads()  # this stage is complete, and no thread reads the other one any more
            # The other of the two stages, at ring_start and ring_start + stage_bytes.
            next_stage = uint32(2 * ring_start + stage_bytes - stage)
            if first_query + queries < T:
                next_query = int32(first_query + queries)
                copy_rows(memory, next_stage, qkv, qkv_start, 3 * C, next_query, T, queries, pieces, threads)
                copy_rows(memory, next_stage + tile_bytes, dout, dout_start, C, next_query, T, queries, pieces, threads)
                copy_lse_and_delta(memory, next_stage + lse_offset, lse, delta, lse_start, next_query, T, queries)
                commit_copies()
            if first_query + queries > warp_key:
                load_and_multiply_transposed(weights, factors, memory, warp_rows, stage, row_stride)
                weights_by_column(weights, memory, stage + lse_offset, log2_scale)
                if first_query < warp_key + keys_per_warp - 1 or first_query + queries > T:
                    hide_earlier_queries(weights, warp_key, int32(first_query), T)
                load_and_multiply_transposed(dscores, factors, memory, value_rows + warp_rows, stage + tile_bytes, row_stride)
                dscores_by_column(dscores, weights, memory, stage + lse_offset + 4 * queries)
                round_factors(rounded, weights)
                multiply_add(dv, rounded, memory, stage + tile_bytes, pieces)
                round_factors(rounded, dscores)
                multiply_add(dk, rounded, memory, stage, pieces)
            stage = next_stage

        multiply_all(dk, scale)
        store_rows(dqkv, qkv_start + C, 3 * C, warp_key, T, dk, HS)
        store_rows(dqkv, qkv_start + 2 * C, 3 * C, warp_key, T, dv, HS)

    return attention_backward_keys_kernel, threads, keys, ring_start + 2 * stage_bytes


# -------------------------------------------------------------------------------------------------------------- launchers


@functools.cache
def can_serve(HS):
    """Whether heads of HS channels work here. False in the simulator, where matmuls serves, and on GPUs with too little shared memory."""
    if HS not in HEAD_SIZES or not real_gpu() or device_properties()[0] < (8, 0):
        return False
    makers = (make_forward_kernel, make_backward_queries_kernel, make_backward_keys_kernel)
    return max(make(HS)[3] for make in makers) <= cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


def scratch_size(B, T, NH, HS):
    """Float32 values of scratch memory: delta."""
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
    launch_with_shared_memory(kernel, (ceil_div(T, rows), B * NH), threads, nbytes, *args)
