"""Attention in bfloat16 on tensor cores, tile by tile (mma.sync: compute capability 8.0 and later). The weights never leave the registers.

Compared with the plain kernels of layers/attention: tiles, tensor cores, prefetching. Forward and backward need only two kinds of product.
One factor, the A operand, is in registers, 16 or 32 rows per warp; the other is a tile in shared memory, read by load_matrices
(ldmatrix.x4):

    multiply_transposed    (rows, tile's rows) =  factors tileᵀ       scores = q kᵀ
    multiply_add           (rows, HS)         +=  factors tile        out += weights v

    forward    A block takes some queries of one head and loops over the keys up to them. For each query it keeps the largest score so far
               and the sum of the exponentials. When a larger score comes, the sums so far are multiplied by
               exp(scale · (previous - largest)): "online softmax". At the end, out = sums / total and lse = scale · largest + log(total).
    dq         The same queries, the same loop over keys. The weights are recomputed as exp(scale · score - lse), so
               datt = dout vᵀ,   dscores = weights (datt - delta),   dq += dscores k
    dk, dv     A block takes some keys and loops over the queries from them on. Everything is transposed, one row per key:
               weightsᵀ = exp(scale · k qᵀ - lse),   dv += weightsᵀ dout,   dk += dscoresᵀ q

Scores here are not yet divided by √HS: log2_scale does that inside exp2 (tiles.py). scale = 1 / √HS; delta[t] = out[t] · dout[t], see
delta.py.

Each sum is made by one block, in a fixed order, so the bits repeat. The price: backward computes seven products instead of the five of a
single kernel with atomic sums, since q kᵀ and dout vᵀ are computed in both kernels.

While the tensor cores work on one tile, cp.async brings the next one to the other stage of a ring of two. Rows in shared memory are padded
by 16 bytes, to HS / 8 + 1 pieces of 16 bytes: an odd number, so the pieces of one column in eight rows, which are read together, lie in
different banks. Rows from T on are replaced by the last row: its values are finite, and their results are masked or not stored.

One H200, 2026-11-22, T=1024, launched back to back, forward + backward: 0.230 + 0.835 ms at B=16, NH=25, HS=64; 0.238 + 0.740 at B=8,
NH=32, HS=80; 0.170 + 0.565 at B=8, NH=16, HS=128. FlashAttention-2: 0.254 + 0.740, 0.239 + 0.793, 0.157 + 0.447.

Masks, softmax, and which thread holds which element: tiles.py. The products: here.

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
from gpt2_numba.integers import ceil_div
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
    pack_factors,
    padded_row_bytes,
    scales,
    set_to_zero,
    store_rows,
    weights_by_column,
    weights_by_row,
)

HEAD_SIZES = (64, 80, 96, 128)

# A block's work by head size: warps, row tiles per warp, rows of a tile in the ring, blocks on a multiprocessor at a time. The more rows a
# warp has, the more often it uses what it reads from shared memory; registers are the limit (255 per thread).
if SIMULATING:
    FORWARD = dict.fromkeys(HEAD_SIZES, (2, 1, 16, 1))
    BACKWARD_QUERIES = BACKWARD_KEYS = FORWARD
else:
    FORWARD = {64: (4, 2, 64, 2), 80: (4, 1, 64, 2), 96: (4, 1, 64, 2), 128: (4, 1, 64, 2)}
    BACKWARD_QUERIES = {64: (4, 1, 64, 3), 80: (4, 1, 64, 2), 96: (4, 1, 64, 2), 128: (4, 1, 32, 2)}
    BACKWARD_KEYS = {64: (4, 1, 64, 2), 80: (4, 1, 64, 2), 96: (4, 1, 32, 2), 128: (4, 1, 32, 2)}


# --------------------------------------------------------------------------------------------------- products of tiles


# Ten parameters: the last three are compile-time constants, so the loop unrolls.
@inlined
def copy_rows(memory, tile, array, start, row_length, first_row, T, rows, pieces, threads):
    """Begin to copy `rows` rows of one head, `pieces` times eight values each, from row first_row on, to byte `tile`; by the whole block.

    Row t of the head is at array[start + t * row_length]. Rows from T on are replaced by row T - 1.
    """
    here = int32(cuda.threadIdx.x)
    for step in range((rows * pieces + threads - 1) // threads):
        i = int32(here + step * threads)
        if (step + 1) * threads <= rows * pieces or i < rows * pieces:
            row, piece = int32(uint32(i) // uint32(pieces)), int32(uint32(i) % uint32(pieces))
            t = int32(min(int32(first_row + row), int32(T - 1)))
            offset = uint32(tile + row * ((pieces + 1) * PIECE) + piece * PIECE)
            copy16_async(memory, offset, array, int64(start + int64(t) * int64(row_length) + piece * WIDTH))


@inlined
def load_factors(factors, memory, rows):
    """factors = this warp's rows in shared memory, from byte `rows` on."""
    row_tiles, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    row_stride = 2 * PIECE * steps + PIECE
    # Lanes 0-7 address rows 0-7 of a 16 x 16 tile, lanes 8-15 rows 8-15, lanes 16-31 the same rows one piece to the right.
    here = uint32(rows + (lane & 15) * row_stride + (lane >> 4) * PIECE)
    for r in range(row_tiles):
        for k in range(steps):
            words = load_matrices(memory, uint32(here + r * (16 * row_stride) + k * (2 * PIECE)))
            for i in range(4):
                factors[r, k, i] = words[i]


@inlined
def multiply_transposed(scores, factors, memory, tile):
    """scores = factors tileᵀ. The tile's rows are as long as the factors' rows; there are as many as scores has columns."""
    row_tiles, groups, _ = scores.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    row_stride = 2 * PIECE * steps + PIECE
    # Lanes 0-7 address rows 0-7, lanes 8-15 the same rows one piece to the right, lanes 16-31 rows 8-15: b_low, b_high of two products.
    here = uint32(tile + ((lane >> 4) * 8 + (lane & 7)) * row_stride + ((lane >> 3) & 1) * PIECE)
    set_to_zero(scores)
    for k in range(steps):
        for n in range(0, groups, 2):
            low, high, next_low, next_high = load_matrices(memory, uint32(here + n * (8 * row_stride) + k * (2 * PIECE)))
            for r in range(row_tiles):
                mma_m16n8k16(scores, (r * groups + n) * 4, factors, (r * steps + k) * 4, low, high)
                mma_m16n8k16(scores, (r * groups + n + 1) * 4, factors, (r * steps + k) * 4, next_low, next_high)


@inlined
def multiply_add(sums, factors, memory, tile):
    """sums += factors tile. The tile's rows are as long as the rows of sums; there are as many as factors has columns."""
    row_tiles, groups, _ = sums.shape
    _, steps, _ = factors.shape
    lane = int32(cuda.threadIdx.x & 31)
    row_stride = PIECE * groups + PIECE
    # Lanes 0-7 address rows 0-7, lanes 8-15 rows 8-15, lanes 16-31 the same rows one piece to the right; each matrix arrives transposed.
    here = uint32(tile + (lane & 15) * row_stride + (lane >> 4) * PIECE)
    for k in range(steps):
        for n in range(0, groups, 2):
            low, high, next_low, next_high = load_matrices_transposed(memory, uint32(here + k * (16 * row_stride) + n * PIECE))
            for r in range(row_tiles):
                mma_m16n8k16(sums, (r * groups + n) * 4, factors, (r * steps + k) * 4, low, high)
                mma_m16n8k16(sums, (r * groups + n + 1) * 4, factors, (r * steps + k) * 4, next_low, next_high)


# ---------------------------------------------------------------------------------------------------------------- forward
#
# Shapes of a thread's local arrays, in all kernels here:
#     factor_shape    rows of q, dout, k or v as factors
#     scores_shape    scores, weights, datt
#     packed_shape    weights or dscores, rounded to factors
#     sums_shape      out, dq, dk, dv
#     row_shape       values of which each row has one


@functools.cache
def make_forward_kernel(HS, sizes=None):
    """(kernel, threads, queries per block, bytes of shared memory) for heads of HS channels. sizes: a row of FORWARD, to try others."""
    warps, row_tiles, keys, blocks = sizes or FORWARD[HS]
    threads, queries_per_warp, pieces = 32 * warps, 16 * row_tiles, HS // WIDTH
    queries = warps * queries_per_warp
    factor_shape, packed_shape = (row_tiles, HS // 16, 4), (row_tiles, keys // 16, 4)
    scores_shape, sums_shape, row_shape = (row_tiles, keys // 8, 4), (row_tiles, HS // 8, 4), (row_tiles, 2)
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
        weights = cuda.local.array(packed_shape, uint32)
        sums = cuda.local.array(sums_shape, float32)
        largest = cuda.local.array(row_shape, float32)
        total = cuda.local.array(row_shape, float32)
        rescale = cuda.local.array(row_shape, float32)
        T, C, b, h, qkv_start, out_start = locate_head(int32(cuda.blockIdx.y), lse, out, HS)
        warp = int32(cuda.threadIdx.x >> 5)
        first_query = int32((cuda.gridDim.x - 1 - cuda.blockIdx.x) * queries)
        warp_query = int32(first_query + warp * queries_per_warp)
        warp_rows = uint32(warp * (queries_per_warp * row_stride))

        copy_rows(memory, 0, qkv, qkv_start, 3 * C, first_query, T, queries, pieces, threads)
        copy_rows(memory, ring_start, qkv, qkv_start + C, 3 * C, 0, T, keys, pieces, threads)
        copy_rows(memory, ring_start + tile_bytes, qkv, qkv_start + 2 * C, 3 * C, 0, T, keys, pieces, threads)
        commit_copies()
        set_to_zero(sums)
        fill_rows(largest, MINUS_INFINITY)
        fill_rows(total, ZERO)
        wait_for_copies(0)
        cuda.syncthreads()
        load_factors(q, memory, warp_rows)

        stop = int32(min(int32(first_query + queries), T))  # keys from here on come after all queries of the block
        stage = uint32(ring_start)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            cuda.syncthreads()  # this stage is complete, and no thread reads the other one any more
            # The other of the two stages, at ring_start and ring_start + 2 tile_bytes.
            next_stage = uint32(2 * ring_start + 2 * tile_bytes - stage)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_stage, qkv, qkv_start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_stage + tile_bytes, qkv, qkv_start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < warp_query + queries_per_warp:
                multiply_transposed(scores, q, memory, stage)
                if first_key + keys > warp_query + 1:
                    hide_later_keys(scores, warp_query, int32(first_key))
                online_softmax(scores, largest, total, rescale, log2_scale)
                multiply_rows(sums, rescale)
                pack_factors(weights, scores)
                multiply_add(sums, weights, memory, stage + tile_bytes)
            stage = next_stage

        finish_softmax(sums, largest, total, lse, b, h, warp_query, log2_scale)
        # The warp's queries are in registers, so their rows in shared memory are free.
        store_rows(out, out_start, C, warp_query, T, sums, memory, warp_rows)

    return attention_forward_kernel, threads, queries, ring_start + 4 * tile_bytes


# --------------------------------------------------------------------------------------------------------------- backward


@functools.cache
def make_backward_queries_kernel(HS, sizes=None):
    """The kernel for dq: (kernel, threads, queries per block, bytes of shared memory). sizes: a row of BACKWARD_QUERIES, to try others."""
    warps, row_tiles, keys, blocks = sizes or BACKWARD_QUERIES[HS]
    threads, queries_per_warp, pieces = 32 * warps, 16 * row_tiles, HS // WIDTH
    queries = warps * queries_per_warp
    factor_shape, packed_shape = (row_tiles, HS // 16, 4), (row_tiles, keys // 16, 4)
    scores_shape, sums_shape, row_shape = (row_tiles, keys // 8, 4), (row_tiles, HS // 8, 4), (row_tiles, 2)
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
        q = cuda.local.array(factor_shape, uint32)
        dout_factors = cuda.local.array(factor_shape, uint32)
        scores = cuda.local.array(scores_shape, float32)
        datt = cuda.local.array(scores_shape, float32)
        dscores = cuda.local.array(packed_shape, uint32)
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
        cuda.syncthreads()
        load_factors(q, memory, warp_rows)
        load_factors(dout_factors, memory, dout_rows + warp_rows)

        stop = int32(min(int32(first_query + queries), T))
        stage = uint32(ring_start)
        for first_key in range(0, stop, keys):
            wait_for_copies(0)
            cuda.syncthreads()  # this stage is complete, and no thread reads the other one any more
            # The other of the two stages, at ring_start and ring_start + 2 tile_bytes.
            next_stage = uint32(2 * ring_start + 2 * tile_bytes - stage)
            if first_key + keys < stop:
                next_key = int32(first_key + keys)
                copy_rows(memory, next_stage, qkv, qkv_start + C, 3 * C, next_key, T, keys, pieces, threads)
                copy_rows(memory, next_stage + tile_bytes, qkv, qkv_start + 2 * C, 3 * C, next_key, T, keys, pieces, threads)
                commit_copies()
            if first_key < warp_query + queries_per_warp:
                multiply_transposed(scores, q, memory, stage)
                if first_key + keys > warp_query + 1:
                    hide_later_keys(scores, warp_query, int32(first_key))
                multiply_transposed(datt, dout_factors, memory, stage + tile_bytes)
                weights_by_row(scores, log2_lse, log2_scale)
                dscores_by_row(datt, scores, row_delta)
                pack_factors(dscores, datt)
                multiply_add(dq, dscores, memory, stage)
            stage = next_stage

        multiply_all(dq, scale)
        store_rows(dqkv, qkv_start, 3 * C, warp_query, T, dq, memory, warp_rows)

    return attention_backward_queries_kernel, threads, queries, ring_start + 4 * tile_bytes


@functools.cache
def make_backward_keys_kernel(HS, sizes=None):
    """The kernel for dk and dv: (kernel, threads, keys per block, bytes of shared memory). sizes: a row of BACKWARD_KEYS, to try others."""
    warps, row_tiles, queries, blocks = sizes or BACKWARD_KEYS[HS]
    threads, keys_per_warp, pieces = 32 * warps, 16 * row_tiles, HS // WIDTH
    keys = warps * keys_per_warp
    factor_shape, packed_shape = (row_tiles, HS // 16, 4), (row_tiles, queries // 16, 4)
    scores_shape, sums_shape = (row_tiles, queries // 8, 4), (row_tiles, HS // 8, 4)
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
        datt = cuda.local.array(scores_shape, float32)
        packed = cuda.local.array(packed_shape, uint32)  # weights or dscores
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

        stage = uint32(ring_start)
        for first_query in range(begin, T, queries):
            wait_for_copies(0)
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
                load_factors(factors, memory, warp_rows)
                multiply_transposed(weights, factors, memory, stage)
                weights_by_column(weights, memory, stage + lse_offset, log2_scale)
                if first_query < warp_key + keys_per_warp - 1 or first_query + queries > T:
                    hide_earlier_queries(weights, warp_key, int32(first_query), T)
                load_factors(factors, memory, value_rows + warp_rows)
                multiply_transposed(datt, factors, memory, stage + tile_bytes)
                dscores_by_column(datt, weights, memory, stage + lse_offset + 4 * queries)
                pack_factors(packed, weights)
                multiply_add(dv, packed, memory, stage + tile_bytes)
                pack_factors(packed, datt)
                multiply_add(dk, packed, memory, stage)
            stage = next_stage

        multiply_all(dk, scale)
        sync_warp()  # no thread of the warp reads its rows of keys or values any more (load_factors): they are free
        store_rows(dqkv, qkv_start + C, 3 * C, warp_key, T, dk, memory, warp_rows)
        store_rows(dqkv, qkv_start + 2 * C, 3 * C, warp_key, T, dv, memory, value_rows + warp_rows)

    return attention_backward_keys_kernel, threads, keys, ring_start + 2 * stage_bytes


# -------------------------------------------------------------------------------------------------------------- launchers


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
