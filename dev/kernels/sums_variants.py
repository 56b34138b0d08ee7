"""Sums over rows and over all gradients in other forms, to be measured by dev/bench/variants.py beside the package's own.

Bias gradients, 90 to 95 and 79 to 84 % of the copy rate, where reading alone reaches 107 %. A thread loads four rows, waits for all of them,
adds them: on average half of the loads are under way.

    pipelined    the next rows are loaded, packed in registers, before those at hand are added. The same bits

Partial sums, a launch of 4 to 7 µs after every LayerNorm and bias gradient:

    early        the result is loaded first, and four rows of partial sums at a time. The same bits

Sum of squares with ZeRO's ranges, twice the time for half of the gradients: every thread searches the range of each eight elements.

    block_range  the block searches once for all it reads at a time, and only where that spans a border, each eight elements. The search for
                 the next elements runs while those at hand are on their way. The same bits
"""

import functools

import numpy as np
from numba import cuda, float32, uint32

from gpt2_numba.gpu.backend import compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, load8_words, store1, store8, widen8
from gpt2_numba.gpu.ranges import IN_GRADS, START, find_range
from gpt2_numba.gpu.reductions import (
    ADDER_THREADS,
    ADDERS,
    BLOCK_COLUMNS,
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    STAGING_SHAPE,
    WARP_SIZE,
    add_up_warps,
    block_sum,
    chunk_rows,
    column_blocks,
)
from gpt2_numba.gpu.reductions import accumulate_partials as todays_accumulate_partials
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.fast import global_norm

ZERO = np.float32(0.0)
CHUNKS_AT_ONCE = 4
ELEMENTS_AT_ONCE = CHUNKS_AT_ONCE * WIDTH


# --------------------------------------------------------------------------------------------------- bias gradients


@functools.cache
def make_bias_kernel(LOADS):
    """bias_backward_kernel with LOADS rows under way while LOADS others are added."""
    WORDS = LOADS * WIDTH

    @cuda.jit(device=True)
    def load_rows(words, dout, start, stride):
        for i in range(LOADS):
            load8_words(dout, start + i * stride, words, i * WIDTH)

    @cuda.jit(device=True)
    def add_rows(total, dout, words):
        x = cuda.local.array(WIDTH, float32)
        for i in range(LOADS):
            widen8(dout, words, i * WIDTH, x)
            for k in range(WIDTH):
                total[k] += x[k]

    @cuda.jit
    def bias_kernel(partials, dout, rows_per_chunk):
        lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
        N, OC = dout.shape
        chunk = cuda.blockIdx.x
        c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
        total = cuda.local.array(WIDTH, float32)
        words = cuda.local.array(WORDS, uint32)
        x = cuda.local.array(WIDTH, float32)
        for k in range(WIDTH):
            total[k] = ZERO
        if c < OC:
            first, stop = chunk * rows_per_chunk + warp, min((chunk + 1) * rows_per_chunk, N)
            count, stride = (stop - first + COLUMN_WARPS - 1) // COLUMN_WARPS, COLUMN_WARPS * OC
            index, full = first * OC + c, count // LOADS
            if full > 0:
                load_rows(words, dout, index, stride)
            for _ in range(full - 1):
                following = cuda.local.array(WORDS, uint32)
                index += LOADS * stride
                load_rows(following, dout, index, stride)
                add_rows(total, dout, words)
                for i in range(WORDS):
                    words[i] = following[i]
            if full > 0:
                index += LOADS * stride
                add_rows(total, dout, words)
            for _ in range(count - full * LOADS):
                load8(dout, index, x)
                index += stride
                for k in range(WIDTH):
                    total[k] += x[k]
        add_up_warps(total)
        if warp == 0 and c < OC:
            store8(partials, chunk * OC + c, total)

    return bias_kernel


def bias_backward(dbias, dout, scratch, *, loads, accumulate=todays_accumulate_partials):
    """fast.matmul.bias_backward with more loads in flight."""
    N, OC = dout.shape
    chunks, rows_per_chunk = chunk_rows(N, OC)
    kernel = make_bias_kernel(loads)
    kernel[(chunks, column_blocks(OC)), COLUMN_WARPS * WARP_SIZE, compute_stream()](scratch, dout, rows_per_chunk)
    accumulate([dbias], scratch, chunks)


# ----------------------------------------------------------------------------------------------------- partial sums


@cuda.jit
def early_kernel(first, second, third, partials, chunks):
    """As accumulate_partials_kernel; the loads of CHUNKS_AT_ONCE rows and of the result do not wait for each other."""
    staging = cuda.shared.array(STAGING_SHAPE, float32)
    result = first if cuda.blockIdx.y == 0 else second if cuda.blockIdx.y == 1 else third
    C = result.shape[0]
    adder, first_column = cuda.threadIdx.x // ADDER_THREADS, cuda.threadIdx.x % ADDER_THREADS * WIDTH
    c = cuda.blockIdx.x * BLOCK_COLUMNS + first_column
    column = cuda.blockIdx.x * BLOCK_COLUMNS + cuda.threadIdx.x
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(ELEMENTS_AT_ONCE, float32)
    before = ZERO
    if cuda.threadIdx.x < BLOCK_COLUMNS and column < C:
        before = load1(result, column)
    for k in range(WIDTH):
        total[k] = ZERO
    if c < C:
        for start in range(adder, chunks, CHUNKS_AT_ONCE * ADDERS):
            for i in range(CHUNKS_AT_ONCE):
                chunk = start + i * ADDERS
                if chunk < chunks:
                    load8(partials, (chunk * cuda.gridDim.y + cuda.blockIdx.y) * C + c, x, i * WIDTH)
                else:
                    for k in range(WIDTH):
                        x[i * WIDTH + k] = ZERO
            for i in range(CHUNKS_AT_ONCE):
                for k in range(WIDTH):
                    total[k] += x[i * WIDTH + k]
    for k in range(WIDTH):
        staging[adder, first_column + k] = total[k]
    cuda.syncthreads()
    if cuda.threadIdx.x < BLOCK_COLUMNS and column < C:
        block_total = staging[0, cuda.threadIdx.x]
        for other in range(1, ADDERS):
            block_total += staging[other, cuda.threadIdx.x]
        store1(result, column, before + block_total)


def accumulate_partials(results, partials, chunks):
    """reductions.accumulate_partials, early."""
    first, second, third = (*results, *results[:1], *results[:1])[:3]
    grid = (ceil_div(first.shape[0], BLOCK_COLUMNS), len(results))
    early_kernel[grid, ADDERS * ADDER_THREADS, compute_stream()](first, second, third, partials, chunks)


# --------------------------------------------------------------------------------------------------- sum of squares


@functools.cache
def make_sum_of_squares_kernel(VECTORS):
    """sum_of_squares_kernel with one search per block and VECTORS loads. With as many as the package's the bits are the same."""
    WORDS = VECTORS * WIDTH

    @cuda.jit(device=True)
    def find_block(ranges, base, span):
        """(whether the elements base, ..., base + span - 1 lie in one range, from local positions to those in grads)."""
        r = find_range(ranges, base)
        return base + span <= ranges[r + 1, START], ranges[r, IN_GRADS] - ranges[r, START]

    @cuda.jit
    def block_range_kernel(partials, grads, ranges):
        count = ranges[ranges.shape[0] - 1, START]
        words = cuda.local.array(WORDS, uint32)
        x = cuda.local.array(WIDTH, float32)
        total = ZERO
        vector_span = cuda.blockDim.x * WIDTH
        span = VECTORS * vector_span
        step, own = cuda.gridDim.x * span, cuda.threadIdx.x * WIDTH
        base = cuda.blockIdx.x * span
        together, shift = False, 0
        if base < count:
            together, shift = find_block(ranges, base, span)
        while base < count:
            if together:
                for j in range(VECTORS):
                    load8_words(grads, base + shift + own + j * vector_span, words, j * WIDTH)
            else:
                for j in range(VECTORS):
                    i = base + own + j * vector_span
                    if i < count:
                        r = find_range(ranges, i)
                        load8_words(grads, i - ranges[r, START] + ranges[r, IN_GRADS], words, j * WIDTH)
                    else:
                        for k in range(WIDTH):
                            words[j * WIDTH + k] = 0
            base += step
            if base < count:
                together, shift = find_block(ranges, base, span)
            for j in range(VECTORS):
                widen8(grads, words, j * WIDTH, x)
                for k in range(WIDTH):
                    total += x[k] * x[k]
        total = block_sum(total)
        if cuda.threadIdx.x == 0:
            partials[cuda.blockIdx.x] = total

    return block_range_kernel


def sum_of_squares(partials, grads, ranges, *, vectors=global_norm.VECTORS):
    """fast.global_norm.sum_of_squares with one search per block."""
    kernel = make_sum_of_squares_kernel(vectors)
    kernel[global_norm.BLOCKS, global_norm.THREADS, compute_stream()](partials, grads, ranges)
