"""Attention's backward pass with the bias gradient of the layer below fused in, to be measured by dev/bench/variants.py.

The bias gradient of qkv is the column sums of dqkv, for which a kernel reads all of dqkv once more: 77 µs of a layer of GPT-2 124M, 42 of
1558M. But a block that stores 64 rows of dq, or of dk and dv, has them in shared memory, rounded. There

    with_sums    the tensor cores multiply ones by a warp's 16 rows, and the block adds up its four warps: 64 sums per tile and tensor go
                 to a row of partial sums for each 64 tokens, which accumulate_partials adds up as for any other bias gradient. dqkv has
                 the same bits; the sums are in another order

The kernels are those of layers/fast/attention/wgmma.py but for their last lines.
"""

from numba import cuda, float32, int32, int64, uint32

from dev.kernels import buffer
from gpt2_numba.gpu.memory_access import bits_of_float, store1
from gpt2_numba.gpu.reductions import accumulate_partials
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    launch_with_shared_memory,
    load32_float,
    load_matrices_transposed,
    shared_bytes,
    store32,
)
from gpt2_numba.gpu.tensor_cores import mma_m16n8k16
from gpt2_numba.gpu.wgmma import (
    TILE,
    TILE_BYTES,
    WARPGROUP,
    begin_multiply_add,
    begin_multiply_transposed,
    tile_descriptor,
    wait_for_products,
)
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.fast.attention.tiles import (
    LOG2_E,
    ZERO,
    blocks_at_once,
    copy_lse_and_delta,
    dscores_by_column,
    dscores_by_row,
    hide_earlier_queries,
    hide_later_keys,
    inlined,
    locate_head,
    multiply_all,
    pack_factors,
    padded_row_bytes,
    set_to_zero,
    store_rows,
    weights_by_column,
    weights_by_row,
)
from gpt2_numba.layers.fast.attention.wgmma import (
    FACTOR_SHAPE,
    HEADS_TOGETHER,
    HS,
    KEYS_BYTES,
    KEYS_RING,
    KEYS_STAGE_BYTES,
    LOG2_SCALE,
    LONG_T,
    LSE_OFFSET,
    QUERIES_BYTES,
    QUERIES_RING,
    ROW_SHAPE,
    ROWS_PER_WARP,
    SCALE,
    STAGE_BYTES,
    STAGING_BYTES,
    TILE_SHAPE,
    await_tiles,
    compute_row_delta,
    copy_tile,
    heads_and_tiles,
    tile_and_head,
)

BFLOAT16_ONE = 0x3F80
STAGED_ROW_BYTES = padded_row_bytes(HS)
WARPS = WARPGROUP // 32
SUMS_OFFSET = 2 * WARPS * STAGING_BYTES  # in shared memory, behind the staged rows of two tensors: (tensor, warp, channel)


@inlined
def sums_start(tile, tiles, b, h, C):
    """Where the sums of a tile's queries begin in the partial sums, (B * tiles, 3 C), flat; those of keys and values follow C further on."""
    return (int64(b) * tiles + tile) * (3 * C) + h * HS


@inlined
def ones_before(rows, ones):
    """ones = (16, 16), the first factor of a product: 1 in the columns before `rows`, 0 in the others."""
    column = int32(2 * (cuda.threadIdx.x & 3))
    for half in range(2):
        low = uint32(BFLOAT16_ONE) if column + 8 * half < rows else uint32(0)
        high = uint32(BFLOAT16_ONE << 16) if column + 8 * half + 1 < rows else uint32(0)
        ones[2 * half] = uint32(low | high)
        ones[2 * half + 1] = ones[2 * half]


@inlined
def add_up_rows(sums, start, memory, tensors, warp_row, T):
    """Store the sums of the block's staged rows, those before row T, at sums[start + tensor * C + channel]. All threads must call.

    tensors: 1 or 2, staged by store_rows, warp by warp. The tensor cores add up a warp's rows: each row of ones times rows is their sum.
    """
    C = int32(sums.shape[1] // 3)
    lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
    ones = cuda.local.array(4, uint32)
    total = cuda.local.array(4, float32)
    ones_before(int32(T - warp_row), ones)
    for tensor in range(tensors):
        # A lane names row lane & 7 of one of four matrices: the upper rows of eight channels, the lower ones, the same of the next eight.
        staged = int32((tensor * WARPS + warp) * STAGING_BYTES + (lane & 15) * STAGED_ROW_BYTES + (lane >> 4) * 16)
        here = int32(SUMS_OFFSET + ((tensor * WARPS + warp) * HS + 2 * (lane & 3)) * 4)
        for pair in range(HS // 16):
            upper, lower, next_upper, next_lower = load_matrices_transposed(memory, uint32(staged + pair * 32))
            for eight in range(2):
                for i in range(4):
                    total[i] = ZERO
                if eight == 0:
                    mma_m16n8k16(total, 0, ones, 0, upper, lower)
                else:
                    mma_m16n8k16(total, 0, ones, 0, next_upper, next_lower)
                group = 2 * pair + eight
                if lane >> 2 == group:  # all rows of the product are the same: each four lanes store theirs of one group
                    store32(memory, uint32(here + group * 32), uint32(bits_of_float(total[0])))
                    store32(memory, uint32(here + group * 32 + 4), uint32(bits_of_float(total[1])))
    cuda.syncthreads()
    tensor, channel = int32(cuda.threadIdx.x // HS), int32(cuda.threadIdx.x % HS)
    if tensor < tensors:
        block_total = ZERO
        for other in range(WARPS):
            block_total += load32_float(memory, uint32(SUMS_OFFSET + ((tensor * WARPS + other) * HS + channel) * 4))
        store1(sums, start + tensor * C + channel, block_total)


@cuda.jit(**blocks_at_once(WARPGROUP, 4))
def queries_and_sums_kernel(dqkv, sums, delta, dout, out, lse, qkv, heads_together):
    """attention_backward_queries_kernel, and the column sums of its rows of dq."""
    memory = shared_bytes()
    weights = cuda.local.array(TILE_SHAPE, float32)
    datt = cuda.local.array(TILE_SHAPE, float32)
    dscores = cuda.local.array(FACTOR_SHAPE, uint32)
    dq = cuda.local.array(TILE_SHAPE, float32)
    log2_lse = cuda.local.array(ROW_SHAPE, float32)
    row_delta = cuda.local.array(ROW_SHAPE, float32)
    heads, tiles = heads_and_tiles(lse)
    tile, head = tile_and_head(tiles, heads, heads_together)
    T, C, b, h, qkv_start, dout_start = locate_head(head, lse, out, HS)
    lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
    first_query = int32((tiles - 1 - tile) * TILE)
    warp_query = int32(first_query + warp * ROWS_PER_WARP)

    copy_tile(memory, 0, qkv, qkv_start, 3 * C, first_query, T)
    copy_tile(memory, TILE_BYTES, dout, dout_start, C, first_query, T)
    copy_tile(memory, QUERIES_RING, qkv, qkv_start + C, 3 * C, first_query, T)
    copy_tile(memory, QUERIES_RING + TILE_BYTES, qkv, qkv_start + 2 * C, 3 * C, first_query, T)
    commit_copies()
    set_to_zero(dq)
    for half in range(2):
        query = int32(warp_query + 8 * half + (lane >> 2))
        t = int32(min(query, int32(T - 1)))
        log2_lse[0, half] = lse[b, h, t] * LOG2_E
        row_delta[0, half] = compute_row_delta(out, dout, dout_start + int64(t) * int64(C))
        if lane & 3 == 0 and query < T:  # not for the copies of the last row: its delta is written once
            delta[b, h, t] = row_delta[0, half]

    q_tile, dout_tile = tile_descriptor(memory, uint32(0)), tile_descriptor(memory, uint32(TILE_BYTES))
    stage, first_key = int32(QUERIES_RING), first_query
    while first_key >= 0:
        await_tiles()
        # The other of the two stages, at QUERIES_RING and QUERIES_RING + STAGE_BYTES.
        next_stage = int32(2 * QUERIES_RING + STAGE_BYTES - stage)
        k_tile, v_tile = tile_descriptor(memory, uint32(stage)), tile_descriptor(memory, uint32(stage + TILE_BYTES))
        begin_multiply_transposed(weights, q_tile, k_tile)
        begin_multiply_transposed(datt, dout_tile, v_tile)
        if first_key > 0:  # while the products run
            next_key = int32(first_key - TILE)
            copy_tile(memory, next_stage, qkv, qkv_start + C, 3 * C, next_key, T)
            copy_tile(memory, next_stage + TILE_BYTES, qkv, qkv_start + 2 * C, 3 * C, next_key, T)
            commit_copies()
        wait_for_products(1, weights)
        if first_key == first_query:
            hide_later_keys(weights, warp_query, first_key)
        weights_by_row(weights, log2_lse, LOG2_SCALE)
        wait_for_products(0, datt)
        dscores_by_row(datt, weights, row_delta)
        pack_factors(dscores, datt)
        begin_multiply_add(dq, dscores, k_tile)
        wait_for_products(0, dq)
        stage = next_stage
        first_key = int32(first_key - TILE)

    multiply_all(dq, SCALE)
    cuda.syncthreads()  # the products of all four warps are done: shared memory is free
    store_rows(dqkv, qkv_start, 3 * C, warp_query, T, dq, memory, warp * STAGING_BYTES)
    add_up_rows(sums, sums_start(tiles - 1 - tile, tiles, b, h, C), memory, 1, warp_query, T)


@cuda.jit(**blocks_at_once(WARPGROUP, 3))
def keys_and_sums_kernel(dqkv, sums, dout, lse, delta, qkv, heads_together):
    """attention_backward_keys_kernel, and the column sums of its rows of dk and dv."""
    memory = shared_bytes()
    weights = cuda.local.array(TILE_SHAPE, float32)
    datt = cuda.local.array(TILE_SHAPE, float32)
    packed_weights = cuda.local.array(FACTOR_SHAPE, uint32)
    dscores = cuda.local.array(FACTOR_SHAPE, uint32)
    dk = cuda.local.array(TILE_SHAPE, float32)
    dv = cuda.local.array(TILE_SHAPE, float32)
    heads, tiles = heads_and_tiles(lse)
    tile, head = tile_and_head(tiles, heads, heads_together)
    T, C, b, h, qkv_start, dout_start = locate_head(head, lse, dout, HS)
    lse_start = int64(head) * T
    warp = int32(cuda.threadIdx.x >> 5)
    first_key = int32(tile * TILE)
    warp_key = int32(first_key + warp * ROWS_PER_WARP)

    copy_tile(memory, 0, qkv, qkv_start + C, 3 * C, first_key, T)
    copy_tile(memory, TILE_BYTES, qkv, qkv_start + 2 * C, 3 * C, first_key, T)
    copy_tile(memory, KEYS_RING, qkv, qkv_start, 3 * C, first_key, T)
    copy_tile(memory, KEYS_RING + TILE_BYTES, dout, dout_start, C, first_key, T)
    copy_lse_and_delta(memory, KEYS_RING + LSE_OFFSET, lse, delta, lse_start, first_key, T, TILE)
    commit_copies()
    set_to_zero(dk)
    set_to_zero(dv)

    k_tile, v_tile = tile_descriptor(memory, uint32(0)), tile_descriptor(memory, uint32(TILE_BYTES))
    stage, first_query = int32(KEYS_RING), first_key
    while first_query < T:
        await_tiles()
        # The other of the two stages, at KEYS_RING and KEYS_RING + KEYS_STAGE_BYTES.
        next_stage, next_query = int32(2 * KEYS_RING + KEYS_STAGE_BYTES - stage), int32(first_query + TILE)
        q_tile, dout_tile = tile_descriptor(memory, uint32(stage)), tile_descriptor(memory, uint32(stage + TILE_BYTES))
        begin_multiply_transposed(weights, k_tile, q_tile)
        begin_multiply_transposed(datt, v_tile, dout_tile)
        if next_query < T:  # while the products run
            copy_tile(memory, next_stage, qkv, qkv_start, 3 * C, next_query, T)
            copy_tile(memory, next_stage + TILE_BYTES, dout, dout_start, C, next_query, T)
            copy_lse_and_delta(memory, next_stage + LSE_OFFSET, lse, delta, lse_start, next_query, T, TILE)
            commit_copies()
        wait_for_products(1, weights)
        weights_by_column(weights, memory, stage + LSE_OFFSET, LOG2_SCALE)
        if first_query == first_key or next_query > T:
            hide_earlier_queries(weights, warp_key, first_query, T)
        pack_factors(packed_weights, weights)
        begin_multiply_add(dv, packed_weights, dout_tile)
        wait_for_products(1, datt)
        dscores_by_column(datt, weights, memory, stage + LSE_OFFSET + 4 * TILE)
        pack_factors(dscores, datt)
        begin_multiply_add(dk, dscores, q_tile)
        wait_for_products(0, dv)
        wait_for_products(0, dk)
        stage, first_query = next_stage, next_query

    multiply_all(dk, SCALE)
    cuda.syncthreads()  # the products of all four warps are done: shared memory is free
    store_rows(dqkv, qkv_start + C, 3 * C, warp_key, T, dk, memory, warp * STAGING_BYTES)
    store_rows(dqkv, qkv_start + 2 * C, 3 * C, warp_key, T, dv, memory, (warp + WARPGROUP // 32) * STAGING_BYTES)
    start = sums_start(tile, tiles, b, h, C)
    add_up_rows(sums, start + C, memory, 2, warp_key, T)


def attention_backward_with_sums(dqkv, dbias, dout, out, lse, qkv, scratch, *, accumulate=accumulate_partials):
    """fast.attention.attention_backward by wgmma, and dbias += the column sums of dqkv: dbias [+] (3 C,)."""
    B, NH, T = lse.shape
    tiles = ceil_div(T, TILE)
    delta, sums = scratch[: lse.size].reshape(lse.shape), buffer("sums of dqkv", B * tiles, dqkv.shape[1])
    grid, heads_together = tiles * B * NH, HEADS_TOGETHER[T >= LONG_T]
    launch_with_shared_memory(
        queries_and_sums_kernel, grid, WARPGROUP, QUERIES_BYTES, dqkv, sums, delta, dout, out, lse, qkv, heads_together
    )
    launch_with_shared_memory(keys_and_sums_kernel, grid, WARPGROUP, KEYS_BYTES, dqkv, sums, dout, lse, delta, qkv, heads_together)
    accumulate([dbias], sums.reshape(sums.size), B * tiles)
