"""Attention in bfloat16 on Hopper's tensor cores, for heads of 64 (wgmma: compute capability 9.0). The weights never leave the registers.

The method is that of mma.py and tiles.py; read these first. Only the products differ: a block is one warpgroup, four warps that start the
product of two whole tiles, 64 x 64, and do other work while it runs (gpu/wgmma.py). Each warp has 16 rows of the result, and of the sums
that it is added to, in its registers:

    shared memory                      registers                           registers
                                           64 keys                             64 channels of a head
    q, 64 queries                      +-------------+                     +-------------+
    k, v, 64 keys                      |   warp 0    | 16 queries          |   warp 0    |
    the next k, v, in flight           |   warp 1    | 16 queries          |   warp 1    |
                                       |   warp 2    | 16 queries          |   warp 2    |
                                       |   warp 3    | 16 queries          |   warp 3    |
                                       +-------------+                     +-------------+
                                        scores = q kᵀ    -- softmax -->     out += weights v

Only half of a head's tiles of scores are needed, since queries see no later keys. A block takes a row of tiles, from the diagonal (d) back
to the first keys; or, for dk and dv, a column, from the diagonal down to the last queries. Only tile d needs the causal mask.

                  keys                            forward, dq                           dk, dv
    queries   d                                d                                    d
              x  d                             x  d                                 x |d|
              x  x  d                         [x  x  d]  <--                        x |x| d   |
              x  x  x  d                       x  x  x  d                           x |x| x  d v

    forward    scores  = q kᵀ          weights  = online softmax of scores                 out += weights v
    dq         scores  = q kᵀ          weights  = exp(scale · scores - lse)
               datt    = dout vᵀ       dscores  = weights (datt - delta)                   dq  += dscores k
    dk, dv     scoresᵀ = k qᵀ          weightsᵀ = exp(scale · scoresᵀ - lse)               dv  += weightsᵀ dout
               dattᵀ   = v doutᵀ       dscoresᵀ = weightsᵀ (dattᵀ - delta)                 dk  += dscoresᵀ q

The products on the left have both factors in shared memory; those on the right have the first in the registers in which it was made. No
product is started conditionally: ptxas 13.0 then reused registers that the running product still needed.

The bias gradient of the layer below, qkv, is the sum of the rows of dqkv. A block that stores 64 rows of dq, or of dk and dv, has them in
shared memory; there it adds them up, too (add_up_rows), which saves a kernel that would read all of dqkv again. One H200, 2026-11-29, T =
1024, hot as in a training step, backward and bias gradient: B=64, NH=12 1.015 ms instead of 1.056; B=16, NH=25 0.548 instead of 0.577
(at a lower clock than the figures that follow).

One H200, 2026-11-22, B=16, T=1024, NH=25, launched back to back, without the bias gradient: forward 0.165 ms, backward 0.492 (mma.py 0.230
and 0.835; cuDNN 0.160 and, with atomics, 0.553). Computing delta in dq's kernel instead of a separate one: backward 0.479 instead of 0.514
in a prototype. Tried and left out, since the gain was within the noise, 4 and 2 %: q in registers; rescaling the sums only when the largest
score has grown by much; -delta as the initial value of datt's sums; letting the products of dq and dk run into the next tile.

Dao 2023, "FlashAttention-2", arXiv:2307.08691; Shah et al. 2024, "FlashAttention-3", arXiv:2407.08608.
"""

from numba import cuda, float32, int32, int64, uint32

from gpt2_numba.gpu.memory_access import WIDTH, bits_of_float, load8, store1
from gpt2_numba.gpu.reductions import WARP_SIZE, accumulate_partials
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    launch_with_shared_memory,
    load32_float,
    load_matrices_transposed,
    shared_bytes,
    store32,
    wait_for_copies,
)
from gpt2_numba.gpu.tensor_cores import mma_m16n8k16, quad_sum
from gpt2_numba.gpu.wgmma import (
    ROW_BYTES,
    TILE,
    TILE_BYTES,
    WARPGROUP,
    begin_multiply_add,
    begin_multiply_transposed,
    copy_row16_async,
    fence_async,
    tile_descriptor,
    wait_for_products,
)
from gpt2_numba.integers import ceil_div
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

HS = 64
SCALE, LOG2_SCALE = scales(HS)

# A thread's share of a tile: in float32; as the first factor of a product, the A operand; values of which each row has one. See tiles.py.
TILE_SHAPE, FACTOR_SHAPE, ROW_SHAPE = (1, TILE // 8, 4), (1, TILE // 16, 4), (1, 2)
ROWS_PER_WARP = 16
PIECES = ROW_BYTES // PIECE  # per row
STAGING_BYTES = ROWS_PER_WARP * padded_row_bytes(HS)  # for a warp to rearrange its results before storing them

# Blocks start in the order of their index. Normally all tiles of one head come in sequence, so that its keys and values are in the L2
# cache. But with few heads of many tiles, the blocks of the last head still have much to do when other multiprocessors have run out of
# work. So for long sequences heads take turns, and the longest blocks of many heads start first. One H200, forward + backward in ms,
# launched back to back, by the number of heads that take turns:
#
#                             1       4      16      64     all
#    16 x 25 heads, T=1024   0.65    0.66    0.65    0.67    0.75
#    64 x 12 heads, T=1024   1.23    1.24    1.24    1.24    1.57
#     4 x 25 heads, T=4096   2.31    2.29    2.35    2.30    2.36
#     1 x 25 heads, T=8192   2.28    2.39    2.24    2.14    2.18
LONG_T = 4096
HEADS_TOGETHER = 1, 64  # heads that take turns: for T < LONG_T, and from LONG_T on


# --------------------------------------------------------------------------------------------- parts of all three kernels


@inlined
def heads_and_tiles(lse):
    """(B * NH, tiles of a head)."""
    return int32(lse.shape[0]) * int32(lse.shape[1]), int32((int32(lse.shape[2]) + TILE - 1) // TILE)


@inlined
def tile_and_head(tiles, heads, heads_together):
    """This block's work: (tile, head). Tile 0 has the most tiles to visit; `head` counts all B * NH heads.

    heads_together heads take turns: the first tile of each, the second tile of each, ...; then the next heads.
    """
    block, in_group = uint32(cuda.blockIdx.x), uint32(tiles * heads_together)
    group = uint32(block // in_group)
    rest, first_head = uint32(block - group * in_group), uint32(group * uint32(heads_together))
    together = uint32(min(uint32(heads_together), uint32(uint32(heads) - first_head)))  # the last group may be smaller
    return int32(rest // together), int32(first_head + rest % together)


@inlined
def copy_tile(memory, tile, array, start, row_length, first_row, T):
    """Begin to copy rows first_row to first_row + 63 of one head to the tile at byte `tile`; by the whole block.

    Row t of the head is at array[start + t * row_length]. Rows from T on are replaced by row T - 1: their results are masked or not stored,
    but must be finite, since 0 * NaN is NaN.
    """
    row, piece = int32(cuda.threadIdx.x >> 3), int32(cuda.threadIdx.x & 7)
    offset = uint32(tile + row * ROW_BYTES + (piece ^ (row & 7)) * PIECE)
    for step in range(TILE * PIECES // WARPGROUP):  # 16 rows at a time
        t = int32(min(int32(first_row + row + step * (WARPGROUP // PIECES)), int32(T - 1)))
        copy_row16_async(memory, uint32(offset + step * (WARPGROUP * PIECE)), array, int64(start + piece * WIDTH), t, int32(row_length))


@inlined
def await_tiles():
    """Wait for the copies of all threads. Afterwards tensor cores may read them, and no thread or product reads older tiles any more."""
    wait_for_copies(0)
    fence_async()
    cuda.syncthreads()


# ---------------------------------------------------------------------------------------------------------------- forward

# Shared memory: the queries; then a ring of three stages for keys and values. While the scores of one tile are computed, the values of the
# previous tile are still being multiplied, and the next tile is in flight.
FORWARD_RING, STAGE_BYTES = TILE_BYTES, 2 * TILE_BYTES
FORWARD_BYTES = FORWARD_RING + 3 * STAGE_BYTES


@cuda.jit(cache=True, **blocks_at_once(WARPGROUP, 4))
def attention_forward_kernel(out, lse, qkv, heads_together):
    """out and lse. A block takes 64 queries of one head.

    Two products run at a time: the scores of this tile, and the sums of the previous one.
    """
    memory = shared_bytes()
    weights = cuda.local.array(FACTOR_SHAPE, uint32)
    scores = cuda.local.array(TILE_SHAPE, float32)
    sums = cuda.local.array(TILE_SHAPE, float32)
    largest = cuda.local.array(ROW_SHAPE, float32)
    total = cuda.local.array(ROW_SHAPE, float32)
    rescale = cuda.local.array(ROW_SHAPE, float32)
    heads, tiles = heads_and_tiles(lse)
    tile, head = tile_and_head(tiles, heads, heads_together)
    T, C, b, h, qkv_start, out_start = locate_head(head, lse, out, HS)
    warp = int32(cuda.threadIdx.x >> 5)
    first_query = int32((tiles - 1 - tile) * TILE)
    warp_query = int32(first_query + warp * ROWS_PER_WARP)

    copy_tile(memory, 0, qkv, qkv_start, 3 * C, first_query, T)
    copy_tile(memory, FORWARD_RING, qkv, qkv_start + C, 3 * C, first_query, T)
    copy_tile(memory, FORWARD_RING + TILE_BYTES, qkv, qkv_start + 2 * C, 3 * C, first_query, T)
    commit_copies()
    set_to_zero(sums)
    fill_rows(largest, MINUS_INFINITY)
    fill_rows(total, ZERO)
    await_tiles()
    first_key = int32(first_query - TILE)
    stage = int32(FORWARD_RING + STAGE_BYTES)
    if first_key >= 0:
        copy_tile(memory, stage, qkv, qkv_start + C, 3 * C, first_key, T)
        copy_tile(memory, stage + TILE_BYTES, qkv, qkv_start + 2 * C, 3 * C, first_key, T)
        commit_copies()

    q_tile = tile_descriptor(memory, uint32(0))
    begin_multiply_transposed(scores, q_tile, tile_descriptor(memory, uint32(FORWARD_RING)))
    wait_for_products(0, scores)
    hide_later_keys(scores, warp_query, first_query)
    online_softmax(scores, largest, total, rescale, LOG2_SCALE)
    pack_factors(weights, scores)
    previous_values = int32(FORWARD_RING + TILE_BYTES)

    while first_key >= 0:
        await_tiles()
        next_stage = int32(stage + STAGE_BYTES)
        if next_stage == FORWARD_BYTES:
            next_stage = int32(FORWARD_RING)
        if first_key > 0:
            next_key = int32(first_key - TILE)
            copy_tile(memory, next_stage, qkv, qkv_start + C, 3 * C, next_key, T)
            copy_tile(memory, next_stage + TILE_BYTES, qkv, qkv_start + 2 * C, 3 * C, next_key, T)
            commit_copies()
        begin_multiply_transposed(scores, q_tile, tile_descriptor(memory, uint32(stage)))
        begin_multiply_add(sums, weights, tile_descriptor(memory, uint32(previous_values)))
        wait_for_products(1, scores)
        online_softmax(scores, largest, total, rescale, LOG2_SCALE)
        wait_for_products(0, sums)
        pack_factors(weights, scores)  # after the wait: the product was still reading the previous weights
        multiply_rows(sums, rescale)
        previous_values = int32(stage + TILE_BYTES)
        stage = next_stage
        first_key = int32(first_key - TILE)
    begin_multiply_add(sums, weights, tile_descriptor(memory, uint32(previous_values)))
    wait_for_products(0, sums)

    finish_softmax(sums, largest, total, lse, b, h, warp_query, LOG2_SCALE)
    cuda.syncthreads()  # the products of all four warps are done: shared memory is free
    store_rows(out, out_start, C, warp_query, T, sums, memory, warp * STAGING_BYTES)


# --------------------------------------------------------------------------------------------------------------- backward


@inlined
def compute_row_delta(out, dout, index):
    """delta = Σ_e out dout of the row that starts at `index`. The four threads of a quad take 16 elements each."""
    x = cuda.local.array(WIDTH, float32)
    y = cuda.local.array(WIDTH, float32)
    total = ZERO
    for half in range(2):
        here = int64(index + int32(cuda.threadIdx.x & 3) * (2 * WIDTH) + half * WIDTH)
        load8(out, here, x)
        load8(dout, here, y)
        for e in range(WIDTH):
            total += x[e] * y[e]
    return quad_sum(total)


# The sums of dqkv's rows. Each of the four warps has staged 16 rows of a tensor in shared memory, rounded, on their way out (store_rows).
# Ones times these rows are their sums: one product of the tensor cores for every eight channels, whose 16 result rows are all the same.
# Rows from T on are multiplied by 0, and must be finite. The block adds up its warps' sums and stores them as part of a row of partial
# sums, one row for each tile of tokens.
WARPS = WARPGROUP // WARP_SIZE
STAGED_ROW_BYTES = padded_row_bytes(HS)
SUMS_OFFSET = 2 * WARPS * STAGING_BYTES  # in shared memory, behind the rows of two tensors: the warps' sums, (tensor, warp, channel)
BFLOAT16_ONE = 0x3F80


@inlined
def sums_offset(tensor, warp):
    """The byte in shared memory where a warp's sums of a tensor's rows begin."""
    return int32(SUMS_OFFSET + (tensor * WARPS + warp) * (HS * 4))


@inlined
def ones_before(count, ones):
    """ones = (16, 16), a first factor: 1 in the first `count` columns, 0 in the others, so that a product leaves out later rows."""
    column = int32(2 * (cuda.threadIdx.x & 3))  # a thread has this column, the next, and the two that are eight further on
    for half in range(2):
        low = uint32(BFLOAT16_ONE) if column + 8 * half < count else uint32(0)
        high = uint32(BFLOAT16_ONE << 16) if column + 8 * half + 1 < count else uint32(0)
        ones[2 * half] = uint32(low | high)
        ones[2 * half + 1] = ones[2 * half]


@inlined
def store_eight_sums(memory, offset, group, ones, upper, lower):
    """Store the sums of eight channels, whose 16 rows are the matrices upper and lower, at byte offset + group * 32."""
    lane = int32(cuda.threadIdx.x & 31)
    product = cuda.local.array(4, float32)
    for i in range(4):
        product[i] = ZERO
    mma_m16n8k16(product, 0, ones, 0, upper, lower)
    if lane >> 2 == group:  # all rows are the same: lanes 4 group to 4 group + 3 store two sums each
        here = uint32(offset + group * 32 + (lane & 3) * 8)
        store32(memory, here, uint32(bits_of_float(product[0])))
        store32(memory, uint32(here + 4), uint32(bits_of_float(product[1])))


@inlined
def add_up_rows(sums, start, memory, tensors, first_row, T):
    """Store the sums of the block's staged rows, those before row T, at sums[start + tensor * C + channel]. All threads must call.

    sums (B * tiles, 3C)   tensors: 1 or 2, staged by store_rows, warp by warp   first_row: of this warp
    """
    C = int32(sums.shape[1] // 3)
    lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
    ones = cuda.local.array(4, uint32)
    ones_before(int32(T - first_row), ones)
    for tensor in range(tensors):
        # A lane gives the address of row lane & 7 of one of four 8 x 8 matrices: the upper rows of eight channels, the lower ones, and the
        # same of the next eight.
        rows = int32((tensor * WARPS + warp) * STAGING_BYTES + (lane & 15) * STAGED_ROW_BYTES + (lane >> 4) * PIECE)
        for pair in range(HS // 16):
            upper, lower, next_upper, next_lower = load_matrices_transposed(memory, uint32(rows + pair * 2 * PIECE))
            store_eight_sums(memory, sums_offset(tensor, warp), 2 * pair, ones, upper, lower)
            store_eight_sums(memory, sums_offset(tensor, warp), 2 * pair + 1, ones, next_upper, next_lower)
    cuda.syncthreads()
    tensor, channel = int32(cuda.threadIdx.x // HS), int32(cuda.threadIdx.x % HS)
    if tensor < tensors:
        total = ZERO
        for other in range(WARPS):
            total += load32_float(memory, uint32(sums_offset(tensor, other) + channel * 4))
        store1(sums, start + tensor * C + channel, total)


@inlined
def sums_start(tile, tiles, b, h, C):
    """Where the sums of a tile's rows of dq begin in the partial sums, (B * tiles, 3C), flat; those of dk and dv follow C further on."""
    return (int64(b) * tiles + tile) * (3 * C) + h * HS


# Shared memory: the queries and their dout; then a ring of two stages for keys and values.
QUERIES_RING = 2 * TILE_BYTES
QUERIES_BYTES = QUERIES_RING + 2 * STAGE_BYTES


@cuda.jit(cache=True, **blocks_at_once(WARPGROUP, 4))
def attention_backward_queries_kernel(dqkv, sums, delta, dout, out, lse, qkv, heads_together):
    """dq, the sums of its rows, and delta for the kernel that follows. A block takes 64 queries of one head.

    delta is computed while the first tiles are in flight. In a prototype a separate kernel, as in delta.py, took 0.035 of 0.51 ms.
    """
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


# Shared memory: the keys and values; then a ring of two stages for queries, dout, lse and delta, rounded up to where a tile may begin.
KEYS_RING = 2 * TILE_BYTES
LSE_OFFSET = 2 * TILE_BYTES  # of lse within a stage; delta follows
KEYS_STAGE_BYTES = LSE_OFFSET + 1024
KEYS_BYTES = KEYS_RING + 2 * KEYS_STAGE_BYTES


@cuda.jit(cache=True, **blocks_at_once(WARPGROUP, 3))
def attention_backward_keys_kernel(dqkv, sums, dout, lse, delta, qkv, heads_together):
    """dk, dv, and the sums of their rows. A block takes 64 keys of one head. Everything is transposed: keys are rows, queries columns."""
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
    store_rows(dqkv, qkv_start + 2 * C, 3 * C, warp_key, T, dv, memory, (warp + WARPS) * STAGING_BYTES)
    add_up_rows(sums, sums_start(tile, tiles, b, h, C) + C, memory, 2, warp_key, T)


# -------------------------------------------------------------------------------------------------------------- launchers


def scratch_size(B, T, NH, HS):
    """Float32 values of scratch memory: the partial sums of dqkv's rows, then delta."""
    return B * ceil_div(T, TILE) * 3 * NH * HS + B * NH * T


def attention_forward(out, lse, qkv, scratch):
    """Arguments as in the package's attention_forward, checked."""
    _launch(attention_forward_kernel, FORWARD_BYTES, lse, out, lse, qkv)


def attention_backward(dqkv, dout, out, lse, qkv, scratch, dbias=None):
    """Arguments as in the package's attention_backward, checked."""
    (B, _, T), columns = lse.shape, dqkv.shape[1]
    rows = B * ceil_div(T, TILE)
    size = rows * columns
    sums, delta = scratch[:size].reshape((rows, columns)), scratch[size : size + lse.size].reshape(lse.shape)
    _launch(attention_backward_queries_kernel, QUERIES_BYTES, lse, dqkv, sums, delta, dout, out, lse, qkv)
    _launch(attention_backward_keys_kernel, KEYS_BYTES, lse, dqkv, sums, dout, lse, delta, qkv)
    if dbias is not None:
        accumulate_partials([dbias], scratch[:size], rows)


def _launch(kernel, nbytes, lse, *args):
    B, NH, T = lse.shape
    launch_with_shared_memory(kernel, ceil_div(T, TILE) * B * NH, WARPGROUP, nbytes, *args, HEADS_TOGETHER[T >= LONG_T])
