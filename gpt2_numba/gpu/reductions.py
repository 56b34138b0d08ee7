"""Sums and maxima over the threads of a warp and of a block, and over the rows of a matrix, each in a fixed order.

Floating-point addition is not associative: the order of a sum decides its last bits. Every order here is fixed by the data's
shape, never by which thread happens to come first, so the same run gives the same bits again. There are no atomics.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8

WARP_SIZE = 32
ALL_LANES = 0xFFFFFFFF
MAX_WARPS = 32  # of a block: 1,024 threads are the hardware's limit
LOWEST = np.float32(-3.0e38)  # identity of a maximum; finite, so that LOWEST - LOWEST is not NaN
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
            value = max(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
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
#   2. `accumulate_partials` adds the rows of `partials`, first to last, to the result.
COLUMNS_PER_WARP = WARP_SIZE * WIDTH
COLUMN_WARPS = 2 if SIMULATING else 8  # the simulator starts an operating-system thread for each CUDA thread
MAX_CHUNKS = 128  # with 3 blocks of columns (C = 768) about three blocks for each of an H200's 132 multiprocessors


def chunk_rows(N):
    """Into how many chunks N rows are cut, and how many rows each has. Depends on N alone, so that bits repeat."""
    rows = max(COLUMN_WARPS, -(-N // MAX_CHUNKS))
    return -(-N // rows), rows


def partials_size(C):
    """How many float32 one matrix of partial sums over C columns may need."""
    return MAX_CHUNKS * C


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


@cuda.jit
def accumulate_partials_kernel(result, partials, first, chunks):
    """result[c] += partials[first + chunk * C + c], summed over the chunks. One thread for eight columns."""
    C = result.shape[0]
    c = cuda.grid(1) * WIDTH
    if c >= C:
        return
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(WIDTH, float32)
    for k in range(WIDTH):
        total[k] = ZERO
    for chunk in range(chunks):
        load8(partials, first + chunk * C + c, x)
        for k in range(WIDTH):
            total[k] += x[k]
    load8(result, c, x)
    for k in range(WIDTH):
        total[k] += x[k]
    store8(result, c, total)


def accumulate_partials(result, partials, first, chunks):
    """Step 2: add `chunks` rows of partial sums to `result`.

    result   [+] (C,), float32 or bfloat16, C a multiple of 8
    partials [r] float32, flat; row `chunk` starts at first + chunk * C
    """
    threads = WARP_SIZE
    blocks = -(-result.shape[0] // (threads * WIDTH))
    accumulate_partials_kernel[blocks, threads, compute_stream()](result, partials, first, chunks)
