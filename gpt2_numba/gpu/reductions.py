"""Sums and maxima over the threads of a warp and of a block, and over the rows of a matrix, each in a fixed order.

Floating-point addition is not associative: the order of a sum decides its last bits. Every order here is fixed by the data's
shape, never by which thread happens to come first, so the same run gives the same bits again. There are no atomics.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import maximum
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store1

WARP_SIZE = 32
ALL_LANES = 0xFFFFFFFF
MAX_WARPS = 32  # of a block: 1,024 threads are the hardware's limit
LOWEST = np.float32(-1.0e38)  # identity of a maximum; finite, and so is any difference to it, times a few
ZERO = np.float32(0.0)

if SIMULATING:
    from gpt2_numba.gpu.simulator import butterfly, install

    install()

    def warp_sum(value):
        """Sum of `value` over the 32 threads of a warp; every thread gets it. Twin for the simulator."""
        return butterfly(value, np.add)

    def warp_max(value):
        """Largest `value` among the 32 threads of a warp; every thread gets it. Twin for the simulator."""
        return butterfly(value, np.maximum)

else:

    @cuda.jit(device=True)
    def warp_sum(value):
        """Sum of `value` (float32) over the 32 threads of a warp; every thread gets it. All 32 must call."""
        for distance in (16, 8, 4, 2, 1):
            value += cuda.shfl_xor_sync(ALL_LANES, value, distance)
        return value

    @cuda.jit(device=True)
    def warp_max(value):
        """Largest `value` (float32) among the 32 threads of a warp; every thread gets it. All 32 must call."""
        for distance in (16, 8, 4, 2, 1):
            value = maximum(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
        return value


@cuda.jit(device=True)
def block_sum(value):
    """Sum of `value` (float32) over all threads of a block (whole warps); every thread gets it. All must call."""
    of_warps = cuda.shared.array(MAX_WARPS, float32)
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    value = warp_sum(value)
    cuda.syncthreads()  # a block may call this twice: nobody still reads the sums of the first time
    if lane == 0:
        of_warps[warp] = value
    cuda.syncthreads()
    value = of_warps[lane] if lane < cuda.blockDim.x // WARP_SIZE else ZERO
    return warp_sum(value)


@cuda.jit(device=True)
def block_max(value):
    """Largest `value` (float32) among all threads of a block (whole warps); every thread gets it. All must call."""
    of_warps = cuda.shared.array(MAX_WARPS, float32)
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    value = warp_max(value)
    cuda.syncthreads()
    if lane == 0:
        of_warps[warp] = value
    cuda.syncthreads()
    value = of_warps[lane] if lane < cuda.blockDim.x // WARP_SIZE else LOWEST
    return warp_max(value)


# Sums over the rows of a matrix (N, C), for gradients of biases and of LayerNorm's parameters, take two steps:
#   1. The rows are cut into chunks. A block takes one chunk and COLUMNS_PER_WARP columns; each of its warps adds up every
#      COLUMN_WARPS-th row, eight columns a thread; `add_up_warps` joins the warps; the chunk's sum goes to row `chunk` of `partials`.
#   2. `accumulate_partials` adds up the rows of `partials` and adds them to the result.
COLUMNS_PER_WARP = WARP_SIZE * WIDTH
COLUMN_WARPS = 2 if SIMULATING else 8  # the simulator starts an operating-system thread for each CUDA thread
# Chunks times blocks of columns: about as many blocks of 256 threads as an H200 holds at once, four on each of its 132 multiprocessors.
COLUMN_BLOCKS = 8 if SIMULATING else 528


def column_blocks(C):
    """How many blocks lie side by side over C columns."""
    return -(-C // COLUMNS_PER_WARP)


def most_chunks(C):
    """Into how many chunks the rows of C columns are cut at most."""
    return max(1, COLUMN_BLOCKS // column_blocks(C))


def chunk_rows(N, C):
    """Into how many chunks the rows of an (N, C) matrix are cut, and how many rows each has. Depends on its shape alone: bits repeat."""
    rows = max(COLUMN_WARPS, -(-N // most_chunks(C)))
    return -(-N // rows), rows


def partials_size(C):
    """How many float32 one matrix of partial sums over C columns may need."""
    return most_chunks(C) * C


@cuda.jit(device=True)
def add_up_warps(values):
    """values[0:8] of lane i in warp 0 becomes the sum over the block's COLUMN_WARPS warps, first to last. All must call."""
    staging = cuda.shared.array((COLUMN_WARPS, COLUMNS_PER_WARP), float32)
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    cuda.syncthreads()
    for k in range(WIDTH):
        staging[warp, k * WARP_SIZE + lane] = values[k]  # neighbouring threads write neighbouring words: no bank conflicts
    cuda.syncthreads()
    if warp == 0:
        for k in range(WIDTH):
            total = staging[0, k * WARP_SIZE + lane]
            for other in range(1, COLUMN_WARPS):
                total += staging[other, k * WARP_SIZE + lane]
            values[k] = total


# Step 2: a block takes 32 columns, four threads side by side with eight columns each, and ADDERS rows of threads one below the other.
ADDED_COLUMNS = 32
THREADS_SIDE_BY_SIDE = ADDED_COLUMNS // WIDTH
ADDERS = 8 if SIMULATING else 64
STAGING = (ADDERS, ADDED_COLUMNS + 1)  # one column more: then the eight rows of threads of a warp write to different banks


@cuda.jit(cache=True)
def accumulate_partials_kernel(first, second, third, partials, chunks):
    """Adder r adds up chunks r, r + ADDERS, ...; then the adders' sums are added, first to last. blockIdx.y: which result."""
    staging = cuda.shared.array(STAGING, float32)
    result = first if cuda.blockIdx.y == 0 else second if cuda.blockIdx.y == 1 else third
    C = result.shape[0]
    adder, side = cuda.threadIdx.x // THREADS_SIDE_BY_SIDE, cuda.threadIdx.x % THREADS_SIDE_BY_SIDE
    c = cuda.blockIdx.x * ADDED_COLUMNS + side * WIDTH
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(WIDTH, float32)
    for k in range(WIDTH):
        total[k] = ZERO
    if c < C:
        for chunk in range(adder, chunks, ADDERS):
            load8(partials, (chunk * cuda.gridDim.y + cuda.blockIdx.y) * C + c, x)
            for k in range(WIDTH):
                total[k] += x[k]
    for k in range(WIDTH):
        staging[adder, side * WIDTH + k] = total[k]
    cuda.syncthreads()
    column = cuda.blockIdx.x * ADDED_COLUMNS + cuda.threadIdx.x
    if cuda.threadIdx.x < ADDED_COLUMNS and column < C:
        of_all = staging[0, cuda.threadIdx.x]
        for other in range(1, ADDERS):
            of_all += staging[other, cuda.threadIdx.x]
        store1(result, column, load1(result, column) + of_all)


def accumulate_partials(results, partials, chunks):
    """Step 2: add `chunks` rows of partial sums to each of up to three results, in one launch.

    results  [+] list of arrays (C,), float32 or bfloat16, C a multiple of 8
    partials [r] float32, flat: (chunks, number of results, C)
    """
    first, second, third = (*results, *results[:1], *results[:1])[:3]
    grid = (-(-first.shape[0] // ADDED_COLUMNS), len(results))
    threads = ADDERS * THREADS_SIDE_BY_SIDE
    accumulate_partials_kernel[grid, threads, compute_stream()](first, second, third, partials, chunks)
