"""Attention in bfloat16 on Hopper's tensor cores, for heads of 64 (wgmma: compute capability 9.0). The weights never leave the registers.

What is different from the plain kernels of layers/attention is what mma.py and tiles.py explain; read these first. Different from mma.py
are the products: a block is one warpgroup, four warps that start the product of two whole tiles, 64 x 64, and go on while it runs
(gpu/wgmma.py). Of the result, and of the sums that it is added to, each warp has 16 rows in its registers:

    shared memory                      registers                           registers
                                           64 keys                             64 of a head's numbers
    q, 64 queries                      +-------------+                     +-------------+
    k, v, 64 keys                      |   warp 0    | 16 queries          |   warp 0    |
    the next k, v, on their way        |   warp 1    | 16 queries          |   warp 1    |
                                       |   warp 2    | 16 queries          |   warp 2    |
                                       |   warp 3    | 16 queries          |   warp 3    |
                                       +-------------+                     +-------------+
                                        scores = q kᵀ    -- softmax -->     out += weights v

Of a head's scores, tile by tile, one half is needed: queries see the keys before them. A block takes a row of tiles, from the diagonal (d)
back to the first keys; or, for dk and dv, a column, from the diagonal on to the last queries. Only tile d holds keys after queries.

                  keys                            forward, dq                           dk, dv
    queries   d                                d                                    d
              x  d                             x  d                                 x |d|
              x  x  d                         [x  x  d]  <--                        x |x| d   |
              x  x  x  d                       x  x  x  d                           x |x| x  d v

    forward    scores  = q kᵀ          weights  = online softmax of scores                 out += weights v
    dq         scores  = q kᵀ          weights  = exp(scores - lse)
               datt    = dout vᵀ       dscores  = weights (datt - delta)                   dq  += dscores k
    dk, dv     scoresᵀ = k qᵀ          weightsᵀ = exp(scoresᵀ - lse)                       dv  += weightsᵀ dout
               dattᵀ   = v doutᵀ       dscoresᵀ = weightsᵀ (dattᵀ - delta)                 dk  += dscoresᵀ q

Both factors of the products on the left lie in shared memory; of those on the right, the first is in the registers in which it was made.
No product is started under a condition: ptxas 13.0 then gave registers away that the product still needed.

One H200, 2026-11-22, B=16, T=1024, NH=25, launched again and again: forward 0.165 ms, backward 0.492 (mma.py 0.230 and 0.835; cuDNN 0.160
and, with atomics, 0.553). delta made inside dq's kernel instead of by one of its own: backward 0.479 instead of 0.514 in a prototype. Left
out, because they changed this by no more than the noise, 4 and 2 %: q in registers; to shrink sums only when a score has grown by much;
-delta as what datt's product is added to; to let the products of dq and dk run on into the next tile.

Dao 2023, "FlashAttention-2", arXiv:2307.08691; Shah et al. 2024, "FlashAttention-3", arXiv:2407.08608.
"""

from numba import cuda, float32, int32, int64, uint32

from gpt2_numba.gpu.memory_access import WIDTH, load8
from gpt2_numba.gpu.shared_memory import commit_copies, launch_with_shared_memory, shared_bytes, wait_for_copies
from gpt2_numba.gpu.tensor_cores import quad_sum
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

HS = 64
SCALE, LOG2_SCALE = scales(HS)

# A thread's share of a tile: in float32, as the first factor of a product, and what there is one of for each row. See tiles.py.
OF_TILE, OF_FACTOR, OF_ROWS = (1, TILE // 8, 4), (1, TILE // 16, 4), (1, 2)
ROWS_OF_WARP = 16
PIECES = ROW_BYTES // PIECE  # of a row
STAGING = ROWS_OF_WARP * row_bytes(HS)  # bytes in which a warp brings its results in order before it stores them

# Blocks run in the order of their numbers. As a rule the tiles of one head come one after the other: its keys and values are then in the
# L2 cache. But when there are few heads of many tiles, the last blocks, of the last head, still have much to do while other multiprocessors
# have nothing left. So there heads take turns, and the longest blocks of many heads come first. One H200, forward and backward together,
# launched again and again, ms by how many heads take turns:
#
#                             1       4      16      64     all
#    16 x 25 heads, T=1024   0.65    0.66    0.65    0.67    0.75
#    64 x 12 heads, T=1024   1.23    1.24    1.24    1.24    1.57
#     4 x 25 heads, T=4096   2.31    2.29    2.35    2.30    2.36
#     1 x 25 heads, T=8192   2.28    2.39    2.24    2.14    2.18
LONG_T = 4096  # from here on
HEADS_TOGETHER = 1, 64  # how many heads take turns: below LONG_T, and from there on


# --------------------------------------------------------------------------------------------- parts of all three kernels


@inlined
def tile_and_head(tiles, heads, heads_together):
    """This block's work: (tile, head), tile 0 the one with the most other tiles to visit, head counted through all sequences.

    heads_together heads take turns: the first tile of each, the second tile of each, ... then come the next heads.
    """
    block, in_group = uint32(cuda.blockIdx.x), uint32(tiles * heads_together)
    group = uint32(block // in_group)
    rest, first_head = uint32(block - group * in_group), uint32(group * uint32(heads_together))
    together = uint32(min(uint32(heads_together), uint32(uint32(heads) - first_head)))  # in the last group there may be fewer
    return int32(rest // together), int32(first_head + rest % together)


@inlined
def copy_tile(memory, tile, array, start, row_length, first_row, T):
    """Begin to copy rows first_row .. first_row + 63 of one head into a tile, by all threads of the block.

    Row t of the head is at array[start + t * row_length]. A row after the last is replaced by the last: what it leads to is hidden or not
    stored, but must be finite, since 0 NaN is NaN.
    """
    row, piece = int32(cuda.threadIdx.x >> 3), int32(cuda.threadIdx.x & 7)
    place = uint32(tile + row * ROW_BYTES + (piece ^ (row & 7)) * PIECE)
    for step in range(TILE * PIECES // WARPGROUP):  # 16 rows at a time
        t = int32(min(int32(first_row + row + step * (WARPGROUP // PIECES)), int32(T - 1)))
        copy_row16_async(memory, uint32(place + step * (WARPGROUP * PIECE)), array, int64(start + piece * WIDTH), t, int32(row_length))


@inlined
def await_tiles():
    """After this the tensor cores may read what all threads have begun to copy, and no thread or product reads older tiles any more."""
    wait_for_copies(0)
    fence_async()
    cuda.syncthreads()


# ---------------------------------------------------------------------------------------------------------------- forward

# Shared memory: the queries; then a ring of three places for keys and values. While the scores of one tile are made, the values of the one
# before are still multiplied, and the one after is on its way.
FORWARD_RING, PLACE_BYTES = TILE_BYTES, 2 * TILE_BYTES
FORWARD_BYTES = FORWARD_RING + 3 * PLACE_BYTES


@cuda.jit(cache=True, **blocks_at_once(WARPGROUP, 4))
def attention_forward_kernel(out, lse, qkv, heads_together):
    """out and lse of 64 queries of one head, a block each.

    Two products run at a time: the scores of this tile, and the sums of the tile before.
    """
    memory = shared_bytes()
    weights = cuda.local.array(OF_FACTOR, uint32)
    scores = cuda.local.array(OF_TILE, float32)
    sums = cuda.local.array(OF_TILE, float32)
    largest = cuda.local.array(OF_ROWS, float32)
    total = cuda.local.array(OF_ROWS, float32)
    shrink = cuda.local.array(OF_ROWS, float32)
    B, NH, T, C = int32(lse.shape[0]), int32(lse.shape[1]), int32(lse.shape[2]), int32(out.shape[1])
    warp = int32(cuda.threadIdx.x >> 5)
    tiles = int32((T + TILE - 1) // TILE)
    tile, head = tile_and_head(tiles, B * NH, heads_together)
    b, h = int32(uint32(head) // uint32(NH)), int32(uint32(head) % uint32(NH))
    start = int64(b) * T * (3 * C) + h * HS  # of the queries of this head in qkv
    first_query = int32((tiles - 1 - tile) * TILE)
    my_query = int32(first_query + warp * ROWS_OF_WARP)

    copy_tile(memory, 0, qkv, start, 3 * C, first_query, T)
    copy_tile(memory, FORWARD_RING, qkv, start + C, 3 * C, first_query, T)
    copy_tile(memory, FORWARD_RING + TILE_BYTES, qkv, start + 2 * C, 3 * C, first_query, T)
    commit_copies()
    set_to_zero(sums)
    fill_rows(largest, MINUS_INFINITY)
    fill_rows(total, ZERO)
    await_tiles()
    first_key = int32(first_query - TILE)
    place = int32(FORWARD_RING + PLACE_BYTES)
    if first_key >= 0:
        copy_tile(memory, place, qkv, start + C, 3 * C, first_key, T)
        copy_tile(memory, place + TILE_BYTES, qkv, start + 2 * C, 3 * C, first_key, T)
        commit_copies()

    q_tile = tile_descriptor(memory, uint32(0))
    begin_multiply_transposed(scores, q_tile, tile_descriptor(memory, uint32(FORWARD_RING)))
    wait_for_products(0, scores)
    hide_later_keys(scores, my_query, first_query)
    online_softmax(scores, largest, total, shrink, LOG2_SCALE)
    pack_factors(weights, scores)
    values_before = int32(FORWARD_RING + TILE_BYTES)

    while first_key >= 0:
        await_tiles()
        next_place = int32(place + PLACE_BYTES)
        if next_place == FORWARD_BYTES:
            next_place = int32(FORWARD_RING)
        if first_key > 0:
            next_key = int32(first_key - TILE)
            copy_tile(memory, next_place, qkv, start + C, 3 * C, next_key, T)
            copy_tile(memory, next_place + TILE_BYTES, qkv, start + 2 * C, 3 * C, next_key, T)
            commit_copies()
        begin_multiply_transposed(scores, q_tile, tile_descriptor(memory, uint32(place)))
        begin_multiply_add(sums, weights, tile_descriptor(memory, uint32(values_before)))
        wait_for_products(1, scores)
        online_softmax(scores, largest, total, shrink, LOG2_SCALE)
        wait_for_products(0, sums)
        pack_factors(weights, scores)  # not before the wait: the product still read the old ones
        multiply_rows(sums, shrink)
        values_before = int32(place + TILE_BYTES)
        place = next_place
        first_key = int32(first_key - TILE)
    begin_multiply_add(sums, weights, tile_descriptor(memory, uint32(values_before)))
    wait_for_products(0, sums)

    finish_softmax(sums, largest, total, lse, b, h, my_query, LOG2_SCALE)
    cuda.syncthreads()  # all four warps' products are done: shared memory is free
    store_rows(out, int64(b) * T * C + h * HS, C, my_query, T, sums, memory, warp * STAGING)


# --------------------------------------------------------------------------------------------------------------- backward


@inlined
def delta_of_row(out, dout, index):
    """delta = Σ_e out dout of the row that starts at `index`; the four threads of a quad take 16 numbers each."""
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


# Shared memory: the queries and their dout; then a ring of two places for keys and values.
QUERIES_RING = 2 * TILE_BYTES
QUERIES_BYTES = QUERIES_RING + 2 * PLACE_BYTES


@cuda.jit(cache=True, **blocks_at_once(WARPGROUP, 4))
def attention_backward_queries_kernel(dqkv, delta, dout, out, lse, qkv, heads_together):
    """dq of 64 queries of one head, a block each, and their delta, for the kernel that follows.

    delta is made here, while the first tiles are on their way. In a prototype a kernel of its own, as in delta.py, took 0.035 of 0.51 ms.
    """
    memory = shared_bytes()
    weights = cuda.local.array(OF_TILE, float32)
    datt = cuda.local.array(OF_TILE, float32)
    dscores = cuda.local.array(OF_FACTOR, uint32)
    dq = cuda.local.array(OF_TILE, float32)
    log2_lse = cuda.local.array(OF_ROWS, float32)
    my_delta = cuda.local.array(OF_ROWS, float32)
    B, NH, T, C = int32(lse.shape[0]), int32(lse.shape[1]), int32(lse.shape[2]), int32(out.shape[1])
    lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
    tiles = int32((T + TILE - 1) // TILE)
    tile, head = tile_and_head(tiles, B * NH, heads_together)
    b, h = int32(uint32(head) // uint32(NH)), int32(uint32(head) % uint32(NH))
    start, of_dout = int64(b) * T * (3 * C) + h * HS, int64(b) * T * C + h * HS
    first_query = int32((tiles - 1 - tile) * TILE)
    my_query = int32(first_query + warp * ROWS_OF_WARP)

    copy_tile(memory, 0, qkv, start, 3 * C, first_query, T)
    copy_tile(memory, TILE_BYTES, dout, of_dout, C, first_query, T)
    copy_tile(memory, QUERIES_RING, qkv, start + C, 3 * C, first_query, T)
    copy_tile(memory, QUERIES_RING + TILE_BYTES, qkv, start + 2 * C, 3 * C, first_query, T)
    commit_copies()
    set_to_zero(dq)
    for half in range(2):
        query = int32(my_query + 8 * half + (lane >> 2))
        t = int32(min(query, int32(T - 1)))
        log2_lse[0, half] = lse[b, h, t] * LOG2_E
        my_delta[0, half] = delta_of_row(out, dout, of_dout + int64(t) * int64(C))
        if lane & 3 == 0 and query < T:  # one thread alone writes the last one
            delta[b, h, t] = my_delta[0, half]

    q_tile, dout_tile = tile_descriptor(memory, uint32(0)), tile_descriptor(memory, uint32(TILE_BYTES))
    place, first_key = int32(QUERIES_RING), first_query
    while first_key >= 0:
        await_tiles()
        next_place = int32(2 * QUERIES_RING + PLACE_BYTES - place)
        k_tile, v_tile = tile_descriptor(memory, uint32(place)), tile_descriptor(memory, uint32(place + TILE_BYTES))
        begin_multiply_transposed(weights, q_tile, k_tile)
        begin_multiply_transposed(datt, dout_tile, v_tile)
        if first_key > 0:  # the products run meanwhile
            next_key = int32(first_key - TILE)
            copy_tile(memory, next_place, qkv, start + C, 3 * C, next_key, T)
            copy_tile(memory, next_place + TILE_BYTES, qkv, start + 2 * C, 3 * C, next_key, T)
            commit_copies()
        wait_for_products(1, weights)
        if first_key == first_query:
            hide_later_keys(weights, my_query, first_key)
        weights_of_rows(weights, log2_lse, LOG2_SCALE)
        wait_for_products(0, datt)
        dscores_of_rows(datt, weights, my_delta)
        pack_factors(dscores, datt)
        begin_multiply_add(dq, dscores, k_tile)
        wait_for_products(0, dq)
        place = next_place
        first_key = int32(first_key - TILE)

    multiply_all(dq, SCALE)
    cuda.syncthreads()  # all four warps' products are done: shared memory is free
    store_rows(dqkv, start, 3 * C, my_query, T, dq, memory, warp * STAGING)


# Shared memory: the keys and values; then a ring of two places for queries, dout, lse and delta, rounded up to where a tile may begin.
KEYS_RING = 2 * TILE_BYTES
NUMBERS = 2 * TILE_BYTES  # where lse begins in a place, and behind it delta
KEYS_PLACE_BYTES = NUMBERS + 1024
KEYS_BYTES = KEYS_RING + 2 * KEYS_PLACE_BYTES


@cuda.jit(cache=True, **blocks_at_once(WARPGROUP, 3))
def attention_backward_keys_kernel(dqkv, dout, lse, delta, qkv, heads_together):
    """dk and dv of 64 keys of one head, a block each. Everything is transposed: keys are rows, queries columns."""
    memory = shared_bytes()
    weights = cuda.local.array(OF_TILE, float32)
    datt = cuda.local.array(OF_TILE, float32)
    packed_weights = cuda.local.array(OF_FACTOR, uint32)
    dscores = cuda.local.array(OF_FACTOR, uint32)
    dk = cuda.local.array(OF_TILE, float32)
    dv = cuda.local.array(OF_TILE, float32)
    B, NH, T, C = int32(lse.shape[0]), int32(lse.shape[1]), int32(lse.shape[2]), int32(dout.shape[1])
    warp = int32(cuda.threadIdx.x >> 5)
    tiles = int32((T + TILE - 1) // TILE)
    tile, head = tile_and_head(tiles, B * NH, heads_together)
    b, h = int32(uint32(head) // uint32(NH)), int32(uint32(head) % uint32(NH))
    start, of_dout = int64(b) * T * (3 * C) + h * HS, int64(b) * T * C + h * HS
    of_numbers = int64(head) * T
    first_key = int32(tile * TILE)
    my_key = int32(first_key + warp * ROWS_OF_WARP)

    copy_tile(memory, 0, qkv, start + C, 3 * C, first_key, T)
    copy_tile(memory, TILE_BYTES, qkv, start + 2 * C, 3 * C, first_key, T)
    copy_tile(memory, KEYS_RING, qkv, start, 3 * C, first_key, T)
    copy_tile(memory, KEYS_RING + TILE_BYTES, dout, of_dout, C, first_key, T)
    copy_numbers(memory, KEYS_RING + NUMBERS, lse, delta, of_numbers, first_key, T, TILE)
    commit_copies()
    set_to_zero(dk)
    set_to_zero(dv)

    k_tile, v_tile = tile_descriptor(memory, uint32(0)), tile_descriptor(memory, uint32(TILE_BYTES))
    place, first_query = int32(KEYS_RING), first_key
    while first_query < T:
        await_tiles()
        next_place, next_query = int32(2 * KEYS_RING + KEYS_PLACE_BYTES - place), int32(first_query + TILE)
        q_tile, dout_tile = tile_descriptor(memory, uint32(place)), tile_descriptor(memory, uint32(place + TILE_BYTES))
        begin_multiply_transposed(weights, k_tile, q_tile)
        begin_multiply_transposed(datt, v_tile, dout_tile)
        if next_query < T:  # the products run meanwhile
            copy_tile(memory, next_place, qkv, start, 3 * C, next_query, T)
            copy_tile(memory, next_place + TILE_BYTES, dout, of_dout, C, next_query, T)
            copy_numbers(memory, next_place + NUMBERS, lse, delta, of_numbers, next_query, T, TILE)
            commit_copies()
        wait_for_products(1, weights)
        weights_of_columns(weights, memory, place + NUMBERS, LOG2_SCALE)
        if first_query == first_key or next_query > T:
            hide_earlier_queries(weights, my_key, first_query, T)
        pack_factors(packed_weights, weights)
        begin_multiply_add(dv, packed_weights, dout_tile)
        wait_for_products(1, datt)
        dscores_of_columns(datt, weights, memory, place + NUMBERS + 4 * TILE)
        pack_factors(dscores, datt)
        begin_multiply_add(dk, dscores, q_tile)
        wait_for_products(0, dv)
        wait_for_products(0, dk)
        place, first_query = next_place, next_query

    multiply_all(dk, SCALE)
    cuda.syncthreads()  # all four warps' products are done: shared memory is free
    store_rows(dqkv, start + C, 3 * C, my_key, T, dk, memory, warp * STAGING)
    store_rows(dqkv, start + 2 * C, 3 * C, my_key, T, dv, memory, (warp + WARPGROUP // 32) * STAGING)


# -------------------------------------------------------------------------------------------------------------- launchers


def scratch_size(B, T, NH, HS):
    """delta."""
    return B * NH * T


def attention_forward(out, lse, qkv, scratch):
    """Arguments as in the package's attention_forward, checked."""
    _launch(attention_forward_kernel, FORWARD_BYTES, lse, out, lse, qkv)


def attention_backward(dqkv, dout, out, lse, qkv, scratch):
    """Arguments as in the package's attention_backward, checked."""
    delta = scratch[: lse.size].reshape(lse.shape)
    _launch(attention_backward_queries_kernel, QUERIES_BYTES, lse, dqkv, delta, dout, out, lse, qkv)
    _launch(attention_backward_keys_kernel, KEYS_BYTES, lse, dqkv, dout, lse, delta, qkv)


def _launch(kernel, nbytes, lse, *args):
    B, NH, T = lse.shape
    launch_with_shared_memory(kernel, -(-T // TILE) * B * NH, WARPGROUP, nbytes, *args, HEADS_TOGETHER[T >= LONG_T])
