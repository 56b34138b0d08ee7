"""Attention of one new token for each sequence, fast: the block of a head reads its keys and values once, 16 bytes at a time.

Formulas and plain kernel: layers/attention/one_query.py. Only reading the cache takes time, at most 0.5 MB for each head of GPT-2. What is
different here:

    Keys are shared out. A group of neighbouring lanes takes a key, eight channels per lane (gpu/memory_access.py): 8 lanes for a head of
    64, so that a warp works on four keys. A block is 16 warps, whose groups take every 64th key. The plain kernel goes through all keys
    one by one, and its threads meet at seven or more barriers for each; here there is one barrier in all.

    Several loads are in flight. A group loads the keys and values of four of its keys before it uses the first, and rescales its sums
    once for all of them.

    Everybody ends with the same three things as in the plain kernel, for the keys of his own: the largest score, the total of the
    exponentials, their weighted values. Two such results are combined by scaling both to the larger of the two largest scores, and adding.
    First the groups of a warp do so, in pairs; then the warps, one after the other, in shared memory.

    Long caches are split. Keys beyond KEYS_PER_BLOCK go to further blocks of the same head, whose results lie in `partials`, and a second
    kernel combines them. GPT-2's 1,024 positions need no second kernel.

Each group's keys, and the order in which results are combined, depend on the head size and on the key's position alone: the bits repeat,
and are the same for every B and T. Sums and weights are float32. Scores are powers of two: log2_scale is scale · log2(e), see tiles.py.

    | array    | shape, type                     | access                                                                 |
    | -------- | ------------------------------- | ---------------------------------------------------------------------- |
    | qkv      | (B, 3C) float32 or bfloat16     | [r] HS a multiple of 8                                                 |
    | position | (1,) int32                      | [r] t                                                                  |
    | cache    | (B, T, 3C) same type            | [rw] keys and values at t are written                                  |
    | out      | (B, C) same type                | [w]                                                                    |
    | partials | flat, float32                   | [w] one_query_partials_size(B, T, NH, HS) values; may be empty         |

Dao et al. 2023, "Flash-Decoding for long-context inference": keys shared out, and the same way of combining.
"""

import functools

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import exp2, maximum
from gpt2_numba.gpu.memory_access import WIDTH, load8, store1, store8
from gpt2_numba.gpu.reductions import LOWEST, WARP_SIZE, exchange
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.attention.one_query import check_one_query, one_query_sizes
from gpt2_numba.layers.fast.attention.tiles import blocks_at_once, scales

ZERO, ONE = np.float32(0.0), np.float32(1.0)
WARPS = 2 if SIMULATING else 16
LOADS_IN_FLIGHT = 1 if SIMULATING else 4  # of eight channels of keys by a lane; with those of the values 64 registers
KEYS_PER_BLOCK = 96 if SIMULATING else 1024
COMBINING_THREADS = 32 if SIMULATING else 64
LARGEST, TOTAL, SUMS = range(3)  # a block's result in `partials`: two numbers, then HS sums


# ---------------------------------------------------------------------------------------------------------- kernels


@functools.cache
def make_one_query_kernel(HS):
    """(attention_one_query_kernel, threads per block) for heads of HS channels.

    Lane i of a group has the channels (j * LANES + i) * 8 + c, j < VECTORS, c < 8, of a key. VECTORS is 1 for heads of up to 256.
    """
    PIECES = HS // WIDTH
    LANES = min(WARP_SIZE, 1 << (PIECES - 1).bit_length())  # of a group; a power of two, so that its lanes can add in pairs
    VECTORS = ceil_div(PIECES, LANES)
    CHANNELS = VECTORS * WIDTH  # of a lane
    GROUPS_PER_WARP = WARP_SIZE // LANES
    GROUPS = WARPS * GROUPS_PER_WARP
    THREADS = WARPS * WARP_SIZE
    IN_FLIGHT = max(1, LOADS_IN_FLIGHT // VECTORS)  # keys of a group
    LOADED = IN_FLIGHT * CHANNELS
    PARTIAL = HS + SUMS
    _, log2_scale = scales(HS)

    @cuda.jit(device=True)
    def load(values, first, array, start, is_there):
        """values[first : first + CHANNELS] = this lane's channels of the head at array[start : start + HS], or 0."""
        for j in range(VECTORS):
            channel = (j * LANES + cuda.threadIdx.x % LANES) * WIDTH
            if is_there and channel < HS:
                load8(array, start + channel, values, first + j * WIDTH)
            else:
                for c in range(WIDTH):
                    values[first + j * WIDTH + c] = ZERO

    @cuda.jit(device=True)
    def dot(q, k, first):
        """q · k of a group's key, returned to each of its lanes: they add in pairs. All lanes of the warp must call it."""
        total = ZERO
        for c in range(CHANNELS):
            total += q[c] * k[first + c]
        distance = LANES // 2
        while distance > 0:
            total += exchange(total, distance)
            distance //= 2
        return total

    @cuda.jit(cache=True, **blocks_at_once(THREADS, 1))
    def attention_one_query_kernel(out, partials, cache, qkv, position):
        """Head h = blockIdx.x of sequence b = blockIdx.y, and of its keys those from blockIdx.z * KEYS_PER_BLOCK on.

        The block with the first keys takes the new key as well, which is still in qkv, and writes it to the cache, where no block reads it.
        """
        warp_sums = cuda.shared.array((WARPS, HS), float32)
        warp_largest = cuda.shared.array(WARPS, float32)
        warp_totals = cuda.shared.array(WARPS, float32)
        q = cuda.local.array(CHANNELS, float32)
        sums = cuda.local.array(CHANNELS, float32)
        k = cuda.local.array(LOADED, float32)
        v = cuda.local.array(LOADED, float32)
        scores = cuda.local.array(IN_FLIGHT, float32)
        h, b, part = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
        group = warp * GROUPS_PER_WARP + lane // LANES
        T, C, t = cache.shape[1], out.shape[1], position[0]
        first_key = part * KEYS_PER_BLOCK
        last_key = min(first_key + KEYS_PER_BLOCK, t)  # the first that is not this block's
        if part > 0 and first_key >= t:  # the whole block leaves
            return

        new = b * 3 * C + h * HS
        load(q, 0, qkv, new, True)
        for c in range(CHANNELS):
            q[c] *= log2_scale
        takes_new = part == 0 and group == 0
        load(k, 0, qkv, new + C, takes_new)
        load(sums, 0, qkv, new + 2 * C, takes_new)  # the new value, times exp2(score - largest) = 1
        score = dot(q, k, 0)
        largest, total = LOWEST, ZERO
        if takes_new:
            largest, total = score, ONE
            for j in range(VECTORS):
                channel = (j * LANES + lane % LANES) * WIDTH
                if channel < HS:
                    store8(cache, (b * T + t) * 3 * C + C + h * HS + channel, k, j * WIDTH)
                    store8(cache, (b * T + t) * 3 * C + 2 * C + h * HS + channel, sums, j * WIDTH)

        for first in range(first_key, last_key, GROUPS * IN_FLIGHT):  # equally often for all threads, which exchange scores
            for i in range(IN_FLIGHT):
                s = first + i * GROUPS + group
                head = (b * T + s) * 3 * C + h * HS
                load(k, i * CHANNELS, cache, head + C, s < last_key)
                load(v, i * CHANNELS, cache, head + 2 * C, s < last_key)
            previous = largest
            for i in range(IN_FLIGHT):
                scores[i] = dot(q, k, i * CHANNELS)
                if first + i * GROUPS + group < last_key:
                    largest = maximum(largest, scores[i])
            rescale = exp2(previous - largest)
            total *= rescale
            for c in range(CHANNELS):
                sums[c] *= rescale
            for i in range(IN_FLIGHT):
                exponential = exp2(scores[i] - largest) if first + i * GROUPS + group < last_key else ZERO
                total += exponential
                for c in range(CHANNELS):
                    sums[c] += exponential * v[i * CHANNELS + c]

        distance = LANES  # the groups of a warp, in pairs
        while distance < WARP_SIZE:
            previous = largest
            largest = maximum(largest, exchange(largest, distance))
            rescale = exp2(previous - largest)
            total *= rescale
            total += exchange(total, distance)
            for c in range(CHANNELS):
                sums[c] *= rescale
                sums[c] += exchange(sums[c], distance)
            distance *= 2

        for j in range(VECTORS):
            channel = (j * LANES + lane) * WIDTH
            if lane < LANES and channel < HS:
                for c in range(WIDTH):
                    warp_sums[warp, channel + c] = sums[j * WIDTH + c]
        if lane == 0:
            warp_largest[warp] = largest
            warp_totals[warp] = total
        cuda.syncthreads()

        largest = warp_largest[0]
        for w in range(1, WARPS):
            largest = maximum(largest, warp_largest[w])
        start = ((b * cuda.gridDim.x + h) * cuda.gridDim.z + part) * PARTIAL
        for e in range(cuda.threadIdx.x, HS, THREADS):
            total, weighted = ZERO, ZERO
            for w in range(WARPS):
                rescale = exp2(warp_largest[w] - largest)
                total += rescale * warp_totals[w]
                weighted += rescale * warp_sums[w, e]
            if cuda.gridDim.z == 1:
                store1(out, b * C + h * HS + e, weighted / total)
            else:
                partials[start + SUMS + e] = weighted
                if e == 0:
                    partials[start + LARGEST] = largest
                    partials[start + TOTAL] = total

    return attention_one_query_kernel, THREADS


@cuda.jit(cache=True)
def combine_blocks_kernel(out, partials, position, most_parts):
    """out of head h = blockIdx.x of sequence b = blockIdx.y, from the results of the blocks that shared its keys. A thread per channel."""
    h, b = cuda.blockIdx.x, cuda.blockIdx.y
    NH, C = cuda.gridDim.x, out.shape[1]
    HS = C // NH
    parts = max(1, (position[0] + KEYS_PER_BLOCK - 1) // KEYS_PER_BLOCK)
    start = (b * NH + h) * most_parts * (HS + SUMS)
    largest = partials[start + LARGEST]
    for part in range(1, parts):
        largest = maximum(largest, partials[start + part * (HS + SUMS) + LARGEST])
    for e in range(cuda.threadIdx.x, HS, cuda.blockDim.x):
        total, weighted = ZERO, ZERO
        for part in range(parts):
            here = start + part * (HS + SUMS)
            rescale = exp2(partials[here + LARGEST] - largest)
            total += rescale * partials[here + TOTAL]
            weighted += rescale * partials[here + SUMS + e]
        store1(out, b * C + h * HS + e, weighted / total)


# -------------------------------------------------------------------------------------------------------- launchers


def one_query_parts(T):
    """How many blocks share the keys of a head: a token has at most T - 1 before it."""
    return max(1, ceil_div(T - 1, KEYS_PER_BLOCK))


def one_query_partials_size(B, T, NH, HS):
    """Float32 values of partials for a cache (B, T, 3C)."""
    parts = one_query_parts(T)
    return B * NH * parts * (HS + SUMS) if parts > 1 else 0


def attention_one_query(out, cache, qkv, position, partials, NH):
    """Attention of one new token for each sequence.

    out [w] (B, C)   cache [rw] (B, T, 3C)   qkv [r] (B, 3C)   position [r] (1,) int32, below T   NH  heads
    partials [w] float32, at least one_query_partials_size(B, T, NH, HS) elements
    Raises ValueError or TypeError if a shape or type does not fit. The position is not checked: it is on the device.
    """
    sizes = one_query_sizes("attention_one_query", out, cache, NH)
    check_one_query("attention_one_query", sizes, out, cache, qkv, position)
    check_on_device("attention_one_query", out, "layers/attention")
    B, T, HS = sizes["B"], sizes["T"], sizes["HS"]
    check_width("attention_one_query", HS=HS)
    check_scratch("attention_one_query", partials, one_query_partials_size(B, T, NH, HS))
    kernel, threads = make_one_query_kernel(HS)
    parts = one_query_parts(T)
    kernel[(NH, B, parts), threads, compute_stream()](out, partials, cache, qkv, position)
    if parts > 1:
        combine_blocks_kernel[(NH, B), COMBINING_THREADS, compute_stream()](out, partials, position, parts)
