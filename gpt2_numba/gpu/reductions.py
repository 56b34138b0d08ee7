"""Sums and maxima over the threads of a warp and of a block, and over the rows of a matrix, each in a fixed order.

Floating-point addition is not associative: the order of a sum determines its last bits. Here the order depends only on the shape of the
data, never on which thread is faster, so repeating a run reproduces its bits. There are no atomics.

The plain kernels have their own block_sum and block_max in block_sum.py, which are simpler to read: halving in shared memory, for a power
of two of threads. The fast kernels need these: two barriers instead of ten for 256 threads, and any number of whole warps. The two add in
different orders, so replacing one by the other would change bits.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import maximum
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store1
from gpt2_numba.integers import ceil_div

WARP_SIZE = 32
ALL_LANES = 0xFFFFFFFF
MAX_WARPS = 32  # per block: the hardware's limit is 1,024 threads
LOWEST = np.float32(-1.0e38)  # start value of a maximum; differences from it stay finite, even times a few
ZERO = np.float32(0.0)

if SIMULATING:
    from gpt2_numba.gpu.simulator import butterfly, install, meet_warp, sync_team

    install()

    def warp_sum(value):
        """The sum of `value` over the 32 threads of a warp, returned to every thread. Twin for the simulator."""
        return butterfly(value, np.add)

    def warp_max(value):
        """The largest `value` of the 32 threads of a warp, returned to every thread. Twin for the simulator."""
        return butterfly(value, np.maximum)

    warp_largest = warp_max

    def exchange(value, distance):
        """The `value` of the lane whose number differs in the bit `distance`. Twin for the simulator."""
        return butterfly(value, lambda own, other: other, (distance,))

    def from_lane(value, lane):
        """The `value` of lane number `lane` of the warp. Twin for the simulator."""
        return meet_warp(value, list)[lane]

else:
    from numba import types
    from numba.cuda.extending import intrinsic

    from gpt2_numba.gpu.inline_ptx import inline_ptx

    @cuda.jit(device=True)
    def warp_sum(value):
        """The sum of `value` (float32) over the 32 threads of a warp, returned to every thread. All 32 must call it."""
        for distance in (16, 8, 4, 2, 1):
            value += cuda.shfl_xor_sync(ALL_LANES, value, distance)
        return value

    @cuda.jit(device=True)
    def warp_max(value):
        """The largest `value` (float32) of the 32 threads of a warp, returned to every thread. All 32 must call it."""
        for distance in (16, 8, 4, 2, 1):
            value = maximum(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
        return value

    @cuda.jit(device=True)
    def warp_largest(value):
        """The largest `value` (int32) of the 32 threads of a warp, returned to every thread. All 32 must call it."""
        for distance in (16, 8, 4, 2, 1):
            value = max(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
        return value

    @cuda.jit(device=True)
    def exchange(value, distance):
        """The `value` (float32) of the lane whose number differs in the bit `distance`: 1, 2, 4, 8 or 16. All 32 must call it."""
        return cuda.shfl_xor_sync(ALL_LANES, value, distance)

    @cuda.jit(device=True)
    def from_lane(value, lane):
        """The `value` (float32) of lane `lane` of the warp. `lane` must be the same in all 32 threads, and all must call it."""
        return cuda.shfl_sync(ALL_LANES, value, lane)

    @intrinsic
    def sync_team(typingctx, team, threads):
        """Wait for the other threads of this team, number 0 to 14. All teams of the block have `threads` threads, in whole warps.

        What the team's threads wrote to shared memory before is then visible to all of them. PTX ISA: bar.sync with a barrier of the
        team's own; barrier 0 is that of cuda.syncthreads.
        """

        def codegen(context, builder, signature, args):
            barrier = builder.add(args[0], args[0].type(1))
            inline_ptx(builder, "bar.sync $0, $1;", [], [barrier, args[1]], touches_memory=True)
            return context.get_dummy_value()

        return types.void(types.uint32, types.uint32), codegen


@cuda.jit(device=True)
def keep_half(values, count, lane, distance):
    """values[0:count] = half of values[0 : 2 * count] plus the same half of lane ^ distance's: the lower lane keeps the lower half."""
    is_upper = lane & distance != 0
    for i in range(count):
        kept, sent = (values[count + i], values[i]) if is_upper else (values[i], values[count + i])
        values[i] = kept + exchange(sent, distance)


@cuda.jit(device=True)
def warp_sum_of_eight(values, lane):
    """Lane L gets the sum of values[L // 4] (float32) over the 32 threads of a warp. Overwrites values[0:4]. All 32 must call it.

    Three steps halve the number of values that a lane has, so eight sums take 4 + 2 + 1 + 2 shuffles instead of 8 * 5.
    """
    keep_half(values, 4, lane, 16)
    keep_half(values, 2, lane, 8)
    keep_half(values, 1, lane, 4)
    total = values[0] + exchange(values[0], 2)
    return total + exchange(total, 1)


@cuda.jit(device=True)
def block_sum(value):
    """The sum of `value` (float32) over all threads of a block, returned to every thread. All must call it.

    The block must consist of whole warps, of any number; block_sum.py's function of the same name needs a power of two of threads.
    """
    warp_sums = cuda.shared.array(MAX_WARPS, float32)
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    value = warp_sum(value)
    cuda.syncthreads()  # warp_sums is the same memory in every call: a thread may still be reading the previous sums
    if lane == 0:
        warp_sums[warp] = value
    cuda.syncthreads()
    value = warp_sums[lane] if lane < cuda.blockDim.x // WARP_SIZE else ZERO
    return warp_sum(value)


@cuda.jit(device=True)
def block_max(value):
    """The largest `value` (float32) of all threads of a block, returned to every thread. Same rules as block_sum."""
    warp_maxima = cuda.shared.array(MAX_WARPS, float32)
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    value = warp_max(value)
    cuda.syncthreads()
    if lane == 0:
        warp_maxima[warp] = value
    cuda.syncthreads()
    value = warp_maxima[lane] if lane < cuda.blockDim.x // WARP_SIZE else LOWEST
    return warp_max(value)


# Sums over the rows of a matrix (N, C), for gradients of biases and of LayerNorm's parameters, take two steps:
#   1. The rows are divided into chunks. A block takes one chunk and COLUMNS_PER_WARP columns; each of its warps adds up every
#      COLUMN_WARPS-th row, eight columns per thread; `add_up_warps` adds the warps' sums; the total goes to row `chunk` of `partials`.
#   2. `accumulate_partials` adds up the rows of `partials` and adds their sum to the result.
COLUMNS_PER_WARP = WARP_SIZE * WIDTH
COLUMN_WARPS = 2 if SIMULATING else 8  # the simulator starts an operating-system thread for each CUDA thread
# Chunks times column blocks: about the blocks of 256 threads that an H200 runs at once, four on each of its 132 multiprocessors.
COLUMN_BLOCKS = 8 if SIMULATING else 528


def column_blocks(C):
    """Number of blocks side by side that cover C columns."""
    return ceil_div(C, COLUMNS_PER_WARP)


def max_chunks(C):
    """Maximum number of chunks for a matrix of C columns."""
    return max(1, COLUMN_BLOCKS // column_blocks(C))


def chunk_rows(N, C):
    """(number of chunks, rows per chunk) of an (N, C) matrix. They depend on its shape alone, so that bits are reproducible."""
    rows = max(COLUMN_WARPS, ceil_div(N, max_chunks(C)))
    return ceil_div(N, rows), rows


def partials_size(C):
    """Maximum size of a matrix of partial sums over C columns, in float32 elements."""
    return max_chunks(C) * C


LOADS_IN_FLIGHT = 4  # per thread, in sums over rows: a single one would not saturate the memory bandwidth
IN_FLIGHT = LOADS_IN_FLIGHT * WIDTH  # elements


@cuda.jit(device=True)
def add_rows8(total, array, start, stride, count):
    """total[0:8] += the eight elements of `array` at start + r * stride, r = 0, 1, ..., count - 1, in this order."""
    x = cuda.local.array(IN_FLIGHT, float32)
    for first in range(0, count, LOADS_IN_FLIGHT):
        for r in range(LOADS_IN_FLIGHT):
            if first + r < count:
                load8(array, start + (first + r) * stride, x, r * WIDTH)
            else:
                for k in range(WIDTH):
                    x[r * WIDTH + k] = ZERO
        for k in range(IN_FLIGHT):
            total[k % WIDTH] += x[k]


@cuda.jit(device=True)
def add_up_warps(values):
    """Set values[0:8] of each lane of warp 0 to its sum over the block's COLUMN_WARPS warps, first to last. All threads must call it."""
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


# Step 2: a block takes 32 columns with ADDERS rows of threads. A row of threads, an adder, is four threads with eight columns each.
BLOCK_COLUMNS = 32
ADDER_THREADS = BLOCK_COLUMNS // WIDTH
ADDERS = 8 if SIMULATING else 64
STAGING_SHAPE = (ADDERS, BLOCK_COLUMNS + 1)  # padded by a column, so that the eight adders of a warp write to different banks


@cuda.jit(cache=True)
def accumulate_partials_kernel(first, second, third, partials, chunks):
    """Adder r adds up chunks r, r + ADDERS, ...; then the adders' sums are added, first to last. blockIdx.y selects the result."""
    staging = cuda.shared.array(STAGING_SHAPE, float32)
    result = first if cuda.blockIdx.y == 0 else second if cuda.blockIdx.y == 1 else third
    C = result.shape[0]
    adder, first_column = cuda.threadIdx.x // ADDER_THREADS, cuda.threadIdx.x % ADDER_THREADS * WIDTH
    c = cuda.blockIdx.x * BLOCK_COLUMNS + first_column
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
        staging[adder, first_column + k] = total[k]
    cuda.syncthreads()
    column = cuda.blockIdx.x * BLOCK_COLUMNS + cuda.threadIdx.x
    if cuda.threadIdx.x < BLOCK_COLUMNS and column < C:
        block_total = staging[0, cuda.threadIdx.x]
        for other in range(1, ADDERS):
            block_total += staging[other, cuda.threadIdx.x]
        store1(result, column, load1(result, column) + block_total)


def accumulate_partials(results, partials, chunks):
    """Step 2: add `chunks` rows of partial sums to each of up to three results, in one launch.

    results  [+] list of arrays (C,), float32 or bfloat16, C a multiple of 8
    partials [r] float32, flat: (chunks, number of results, C)
    """
    first, second, third = (*results, *results[:1], *results[:1])[:3]
    grid = (ceil_div(first.shape[0], BLOCK_COLUMNS), len(results))
    threads = ADDERS * ADDER_THREADS
    accumulate_partials_kernel[grid, threads, compute_stream()](first, second, third, partials, chunks)
