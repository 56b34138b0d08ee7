"""Attention in bfloat16 on tensor cores, tile by tile (mma.sync: compute capability 8.0 and later). The weights never leave the registers.

What is different from the plain kernels of layers/attention: tiles, tensor cores, copies ahead. Two products of tiles are all that is
needed, forward and backward. One factor lies in registers, 16 rows to a warp, the other in shared memory:

    scores_of_tile        (rows, tile's rows) =  a tileᵀ       such as scores = q kᵀ
    add_weighted_rows     (rows, HS)         +=  w tile        such as out += weights v

    forward    a block takes some queries of one head and goes over the keys before them. For each query it keeps the largest score so far
               and the sum of the exponentials. Whenever a larger score comes, the sums so far are multiplied by
               exp(before - now): "online softmax". At the end out / total, and lse = largest + log total.
    dq         the same queries, the same way over the keys: the weights come again as exp(score - lse), so
               dscores = weights (dout vᵀ - delta),   dq += dscores k
    dk, dv     a block takes some keys and goes over the queries after them. Everything is transposed, a row for each key:
               weightsᵀ = exp(k qᵀ - lse),   dv += weightsᵀ dout,   dk += dscoresᵀ q

Each sum is made by one block, in a fixed order: the bits repeat. The price is two products of seven that a single kernel with atomic sums
would not make twice.

While the tensor cores work on one tile, the next is on its way from memory to the other half of a ring of two (cp.async). A row in shared
memory is 16 bytes longer than its numbers: HS / 8 + 1 pieces, an odd number, so that eight rows' pieces of one column, which are read
together, lie in different banks. In place of rows after the last the last one is copied: its numbers are finite, and what they lead to
is hidden, since it is after every query, or is not stored.

One H200, 2026-11-22, T=1024, launched again and again, forward + backward: 0.230 + 0.835 ms at B=16, NH=25, HS=64; 0.238 + 0.740 at B=8,
NH=32, HS=80; 0.170 + 0.565 at B=8, NH=16, HS=128. By FlashAttention-2 0.254 + 0.740, 0.239 + 0.793, 0.157 + 0.447.

What is done to a tile of scores in registers (masks, softmax), and which thread holds which number: tiles.py. The products: here.

Dao 2023, "FlashAttention-2", arXiv:2307.08691.
"""

import functools

from numba import cuda, float32, int32, int64, uint32

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.memory_access import WIDTH
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy16_async,
    launch_with_shared_memory,
    load_matrices,
    load_matrices_transposed,
    shared_bytes,
    sync_warp,
    wait_for_copies,
)
from gpt2_numba.gpu.tensor_cores import mma_m16n8k16
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
    fill_rows,
    finish_softmax,
    hide_earlier_queries,
    hide_later_keys,
    inlined,
    multiply_all,
    multiply_rows,
    online_softmax,
    pack_factors,
    row_bytes,
    scales,
    set_to_zero,
    store_rows,
    weights_of_columns,
    weights_of_rows,
)

HEAD_SIZES = (64, 80, 96, 128)

# Sizes of a block's work, by head size: warps, 16-row tiles of each warp, rows of a tile in the ring, blocks at a time on a multiprocessor.
# The more rows a warp has, the more often it uses what it reads from shared memory; registers are the limit (255 a thread).
if SIMULATING:
    FORWARD = dict.fromkeys(HEAD_SIZES, (2, 1, 16, 1))
    BACKWARD_QUERIES = BACKWARD_KEYS = FORWARD
else:
    FORWARD = {64: (4, 2, 64, 2), 80: (4, 1, 64, 2), 96: (4, 1, 64, 2), 128: (4, 1, 64, 2)}
    BACKWARD_QUERIES = {64: (4, 1, 64, 3), 80: (4, 1, 64, 2), 96: (4, 1, 64, 2), 128: (4, 1, 32, 2)}
    BACKWARD_KEYS = {64: (4, 1, 64, 2), 80: (4, 1, 64, 2), 96: (4, 1, 32, 2), 128: (4, 1, 32, 2)}


# --------------------------------------------------------------------------------------------------- products of tiles


@inlined
def copy_rows(memory, tile, array, start, row_length, first_row, T, rows, pieces, threads):
    """Begin to copy `rows` rows of one head, `pieces` times eight numbers each, from row first_row on, by all threads of the block.

    Row t of the head is at array[start + t * row_length]. A row after the last is replaced by the last.
    """
    here = int32(cuda.threadIdx.x)
    for step in range((rows * pieces + threads - 1) // threads):
        place = int32(here + step * threads)
        if (step + 1) * threads <= rows * pieces or place < rows * pieces:
            row, piece = int32(uint32(place) // uint32(pieces)), int32(uint32(place) % uint32(pieces))
            t = int32(min(int32(first_row + row), int32(T - 1)))
            offset = uint32(tile + row * ((pieces + 1) * PIECE) + piece * PIECE)
            copy16_async(memory, offset, array, int64(start + int64(t) * int64(row_length) + piece * WIDTH))


@inlined
def load_factors(factors, memory, rows):
    """factors = this warp's rows in shared memory, from byte `rows` on."""
    row_tiles, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    row_length = 2 * PIECE * steps + PIECE
    # Lanes 0-7 name rows 0-7 of a 16 x 16 tile, lanes 8-15 rows 8-15, lanes 16-31 the same, one piece to the right.
    here = uint32(rows + (lane & 15) * row_length + (lane >> 4) * PIECE)
    for r in range(row_tiles):
        for k in range(steps):
            words = load_matrices(memory, uint32(here + r * (16 * row_length) + k * (2 * PIECE)))
            for i in range(4):
                factors[r, k, i] = words[i]


@inlined
def scores_of_tile(scores, factors, memory, tile):
    """scores = factors tileᵀ. The tile's rows are as long as the factors', and as many as the scores' columns."""
    row_tiles, groups, _ = scores.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    row_length = 2 * PIECE * steps + PIECE
    # Lanes 0-7 name rows 0-7, lanes 8-15 the same one piece to the right, lanes 16-31 rows 8-15: b_low, b_high of two products.
    here = uint32(tile + ((lane >> 4) * 8 + (lane & 7)) * row_length + ((lane >> 3) & 1) * PIECE)
    for r in range(row_tiles):
        for n in range(groups):
            for i in range(4):
                scores[r, n, i] = ZERO
    for k in range(steps):
        for n in range(0, groups, 2):
            low, high, next_low, next_high = load_matrices(memory, uint32(here + n * (8 * row_length) + k * (2 * PIECE)))
            for r in range(row_tiles):
                mma_m16n8k16(scores, (r * groups + n) * 4, factors, (r * steps + k) * 4, low, high)
                mma_m16n8k16(scores, (r * groups + n + 1) * 4, factors, (r * steps + k) * 4, next_low, next_high)


@inlined
def add_weighted_rows(sums, factors, memory, tile):
    """sums += factors tile. The tile's rows are as long as the sums', and as many as the factors' columns."""
    row_tiles, groups, _ = sums.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    row_length = PIECE * groups + PIECE
    # Lanes 0-7 name rows 0-7, lanes 8-15 rows 8-15, lanes 16-31 the same one piece to the right; each matrix arrives transposed.
    here = uint32(tile + (lane & 15) * row_length + (lane >> 4) * PIECE)
    for k in range(steps):
        for n in range(0, groups, 2):
            low, high, next_low, next_high = load_matrices_transposed(memory, uint32(here + k * (16 * row_length) + n * PIECE))
            for r in range(row_tiles):
                mma_m16n8k16(sums, (r * groups + n) * 4, factors, (r * steps + k) * 4, low, high)
                mma_m16n8k16(sums, (r * groups + n + 1) * 4, factors, (r * steps + k) * 4, next_low, next_high)


# ---------------------------------------------------------------------------------------------------------------- forward


@functools.cache
def make_forward_kernel(HS, sizes=None):
    """The kernel for heads of HS numbers, and how it is launched: (kernel, threads, queries to a block, bytes of shared memory)."""
    warps, row_tiles, keys, blocks = sizes or FORWARD[HS]
    threads, queries_of_warp, pieces = 32 * warps, 16 * row_tiles, HS // WIDTH
    queries = warps * queries_of_warp
    of_queries, of_keys = (row_tiles, HS // 16, 4), (row_tiles, keys // 16, 4)
    of_scores, of_out, of_rows = (row_tiles, keys // 8, 4), (row_tiles, HS // 8, 4), (row_tiles, 2)
    row = row_bytes(HS)
    tile_bytes = keys * row
    ring = queries * row  # after the queries' rows: keys, values; keys, values
    _, log2_scale = scales(HS)

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_forward_kernel(out, lse, qkv):
        """out and lse of `queries` queries of one head, a block each; those with the most keys before them come first."""
        memory = shared_bytes()
        q = cuda.local.array(of_queries, uint32)
        scores = cuda.local.array(of_scores, float32)
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
        my_rows = uint32(warp * (queries_of_warp * row))

        copy_rows(memory, 0, qkv, start, 3 * C, first_query, T, queries, pieces, threads)
        copy_rows(memory, ring, qkv, start + C, 3 * C, 0, T, keys, pieces, threads)
        copy_rows(memory, ring + tile_bytes, qkv, start + 2 * C, 3 * C, 0, T, keys, pieces, threads)
        commit_copies()
        set_to_zero(sums)
        fill_rows(largest, MINUS_INFINITY)
        fill_rows(total, ZERO)
        wait_for_copies(0)
        cuda.syncthreads()
        load_factors(q, memory, my_rows)

        stop = int32(min(int32(first_query + queries), T))  # keys from here on are after all queries
        half_of_ring = uint32(ring)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            cuda.syncthreads()  # this tile has arrived for all threads, and all have done with the other half of the ring
            next_half = uint32(2 * ring + 2 * tile_bytes - half_of_ring)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_half, qkv, start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_half + tile_bytes, qkv, start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < my_query + queries_of_warp:
                scores_of_tile(scores, q, memory, half_of_ring)
                if first_key + keys > my_query + 1:
                    hide_later_keys(scores, my_query, int32(first_key))
                online_softmax(scores, largest, total, shrink, log2_scale)
                multiply_rows(sums, shrink)
                pack_factors(weights, scores)
                add_weighted_rows(sums, weights, memory, half_of_ring + tile_bytes)
            half_of_ring = next_half

        finish_softmax(sums, largest, total, lse, b, h, my_query, log2_scale)
        # The warp's own queries are in registers: their rows in shared memory are free.
        store_rows(out, int64(b) * T * C + h * HS, C, my_query, T, sums, memory, my_rows)

    return attention_forward_kernel, threads, queries, ring + 4 * tile_bytes


# --------------------------------------------------------------------------------------------------------------- backward


@functools.cache
def make_backward_queries_kernel(HS, sizes=None):
    """The kernel for dq, and how it is launched: (kernel, threads, queries to a block, bytes of shared memory)."""
    warps, row_tiles, keys, blocks = sizes or BACKWARD_QUERIES[HS]
    threads, queries_of_warp, pieces = 32 * warps, 16 * row_tiles, HS // WIDTH
    queries = warps * queries_of_warp
    of_queries, of_keys = (row_tiles, HS // 16, 4), (row_tiles, keys // 16, 4)
    of_scores, of_dq, of_rows = (row_tiles, keys // 8, 4), (row_tiles, HS // 8, 4), (row_tiles, 2)
    row = row_bytes(HS)
    tile_bytes, dout_rows = keys * row, queries * row
    ring = 2 * dout_rows  # after the rows of queries and of dout: keys, values; keys, values
    scale, log2_scale = scales(HS)

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_backward_queries_kernel(dqkv, dout, lse, delta, qkv):
        """dq of `queries` queries of one head, a block each; those with the most keys before them come first."""
        memory = shared_bytes()
        q = cuda.local.array(of_queries, uint32)
        d = cuda.local.array(of_queries, uint32)  # dout
        scores = cuda.local.array(of_scores, float32)
        datt = cuda.local.array(of_scores, float32)
        dscores = cuda.local.array(of_keys, uint32)
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
        cuda.syncthreads()
        load_factors(q, memory, my_rows)
        load_factors(d, memory, dout_rows + my_rows)

        stop = int32(min(int32(first_query + queries), T))
        half_of_ring = uint32(ring)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            cuda.syncthreads()  # this tile has arrived for all threads, and all have done with the other half of the ring
            next_half = uint32(2 * ring + 2 * tile_bytes - half_of_ring)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_half, qkv, start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_half + tile_bytes, qkv, start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < my_query + queries_of_warp:
                scores_of_tile(scores, q, memory, half_of_ring)
                if first_key + keys > my_query + 1:
                    hide_later_keys(scores, my_query, int32(first_key))
                scores_of_tile(datt, d, memory, half_of_ring + tile_bytes)
                weights_of_rows(scores, log2_lse, log2_scale)
                dscores_of_rows(datt, scores, my_delta)
                pack_factors(dscores, datt)
                add_weighted_rows(dq, dscores, memory, half_of_ring)
            half_of_ring = next_half

        multiply_all(dq, scale)
        store_rows(dqkv, start, 3 * C, my_query, T, dq, memory, my_rows)

    return attention_backward_queries_kernel, threads, queries, ring + 4 * tile_bytes


@functools.cache
def make_backward_keys_kernel(HS, sizes=None):
    """The kernel for dk and dv, and how it is launched: (kernel, threads, keys to a block, bytes of shared memory)."""
    warps, row_tiles, queries, blocks = sizes or BACKWARD_KEYS[HS]
    threads, keys_of_warp, pieces = 32 * warps, 16 * row_tiles, HS // WIDTH
    keys = warps * keys_of_warp
    of_keys, of_queries = (row_tiles, HS // 16, 4), (row_tiles, queries // 16, 4)
    of_scores, of_gradient = (row_tiles, queries // 8, 4), (row_tiles, HS // 8, 4)
    row = row_bytes(HS)
    tile_bytes, value_rows = queries * row, keys * row
    ring = 2 * value_rows  # after the rows of keys and of values: queries, dout, lse, delta; the same again
    numbers, stage_bytes = 2 * tile_bytes, 2 * tile_bytes + 8 * queries
    scale, log2_scale = scales(HS)

    @cuda.jit(cache=True, **blocks_at_once(threads, blocks))
    def attention_backward_keys_kernel(dqkv, dout, lse, delta, qkv):
        """dk and dv of `keys` keys of one head, a block each; the first keys, which have the most queries after them, come first."""
        memory = shared_bytes()
        factors = cuda.local.array(of_keys, uint32)  # keys, or values
        weights = cuda.local.array(of_scores, float32)
        datt = cuda.local.array(of_scores, float32)
        packed = cuda.local.array(of_queries, uint32)
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

        half_of_ring = uint32(ring)
        for first_query in range(begin, T, queries):
            wait_for_copies(0)
            cuda.syncthreads()  # this tile has arrived for all threads, and all have done with the other half of the ring
            next_half = uint32(2 * ring + stage_bytes - half_of_ring)
            if first_query + queries < T:
                next_query = int32(first_query + queries)
                copy_rows(memory, next_half, qkv, start, 3 * C, next_query, T, queries, pieces, threads)
                copy_rows(memory, next_half + tile_bytes, dout, of_dout, C, next_query, T, queries, pieces, threads)
                copy_numbers(memory, next_half + numbers, lse, delta, of_numbers, next_query, T, queries)
                commit_copies()
            if first_query + queries > my_key:
                load_factors(factors, memory, my_rows)
                scores_of_tile(weights, factors, memory, half_of_ring)
                weights_of_columns(weights, memory, half_of_ring + numbers, log2_scale)
                if first_query < my_key + keys_of_warp - 1 or first_query + queries > T:
                    hide_earlier_queries(weights, my_key, int32(first_query), T)
                load_factors(factors, memory, value_rows + my_rows)
                scores_of_tile(datt, factors, memory, half_of_ring + tile_bytes)
                dscores_of_columns(datt, weights, memory, half_of_ring + numbers + 4 * queries)
                pack_factors(packed, weights)
                add_weighted_rows(dv, packed, memory, half_of_ring + tile_bytes)
                pack_factors(packed, datt)
                add_weighted_rows(dk, packed, memory, half_of_ring)
            half_of_ring = next_half

        multiply_all(dk, scale)
        sync_warp()  # no thread of the warp reads its keys' or values' rows any more (load_factors): they are free
        store_rows(dqkv, start + C, 3 * C, my_key, T, dk, memory, my_rows)
        store_rows(dqkv, start + 2 * C, 3 * C, my_key, T, dv, memory, value_rows + my_rows)

    return attention_backward_keys_kernel, threads, keys, ring + 2 * stage_bytes


# -------------------------------------------------------------------------------------------------------------- launchers


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
