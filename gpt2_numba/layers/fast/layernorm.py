"""LayerNorm, fast: every row is read and written once, and work that neighbouring layers would do on it is fused in.

Formulas and plain kernels: layers/layernorm.py. What is different here, and what it gains. LayerNorm is limited by memory, so figures are
shares of the rate of a device-to-device copy; one H200, 2026-11-22, bf16: 65,536 rows of 768 channels (GPT-2 124M) / 16,384 rows of 1,600
(1558M).

    Memory is moved 16 bytes at a time: eight neighbouring elements per load or store, whatever their type (gpu/memory_access.py).

    A row is read once and stays in registers. The plain kernel reads it three times: for the mean, the variance and the output. Up to 1,024
    channels a row belongs to one warp, so its sums need no barrier; longer rows are shared by several warps. Arrays in registers need a
    constant length, so the kernels are compiled for each C on first use.

    The residual addition is fused in. residual_layernorm_forward: residual = inp + branch, out = layernorm(residual), two reads and two
    writes instead of three and two. As one pass 99 / 92 %; as two kernels the addition ran at 100 % and LayerNorm at 77 %.

    Backward is one kernel. Two kernels, each reading inp and dout, reached 53 / 37 % with the same 16-byte loads. A warp works down its
    rows, and each thread keeps the dweight and dbias sums of its own columns in registers; they are combined once, at the end, in shared
    memory. A fixed number of blocks share the rows, and accumulate_partials adds up the blocks: no atomics, the same bits in every run.

    The next rows, up to three, are copied to shared memory (cp.async) while one is processed, since the column sums leave a thread no
    registers for loads in flight: 78 to 80 / 58 to 63 % with a cold cache; in the training step 120 / 87 µs, instead of 170 / 103 for two
    kernels. What limits it at 1,600 channels: three column sums of 56 elements per thread.

    dinp_sums are fused into backward. The linear layer below takes dinp as its dout, and its bias gradient is the column sums of dinp: a
    third sum in the same registers, and no kernel has to read dinp for it.

    | array               | shape, type                | forward | backward                                                      |
    | ------------------- | -------------------------- | ------- | ------------------------------------------------------------- |
    | inp, out            | (N, C) float32 or bfloat16 | [r] [w] | inp [r]. C a multiple of 8                                    |
    | branch, residual    | (N, C) same type           | [r] [w] | residual_layernorm_forward only; residual is backward's inp   |
    | mean, rstd          | (N,) float32               | [w]     | [r]                                                           |
    | weight, bias        | (C,) same type             | [r]     | weight [r]                                                    |
    | dout                | (N, C) same type           |         | [r]                                                           |
    | dinp                | (N, C) same type           |         | [+]                                                           |
    | dweight, dbias      | (C,) same type             |         | [+]                                                           |
    | dinp_sums           | (C,) same type             |         | [+] Σ_rows of the new dinp, as rounded; may be None           |
    | scratch             | flat, float32              |         | [w] each block's column sums: layernorm_scratch_size(C)       |
    | largest             | (1,) float32               | [+]     | [+] raised to the largest |out|, |dinp| (float8.py); or None  |
"""

import functools

import numpy as np
from numba import cuda, float32, int32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float8 import magnitude_bits, raise_largest
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, round8, store8
from gpt2_numba.gpu.reductions import (
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    block_sum,
    warp_largest,
    warp_sum,
)
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy8_async,
    launch_with_shared_memory,
    max_shared_bytes,
    shared_elements,
    wait_for_copies,
)
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.layernorm import EPS, SHAPE_HINT

ONE, ZERO = np.float32(1.0), np.float32(0.0)

# Forward: one warp per row up to 1,024 columns (32 elements per thread), several beyond that: at 1,600 two warps are faster than one.
MAX_FORWARD_COLUMNS = COLUMNS_PER_WARP * (2 if SIMULATING else 4)  # per warp
FORWARD_WARPS = 4  # per block: a multiprocessor holds many small blocks

# Backward: one warp per row while its column sums fit into the warp's registers (three sums of 64 elements per thread), else several.
MAX_BACKWARD_COLUMNS = COLUMNS_PER_WARP * (2 if SIMULATING else 8)  # per warp
MOST_ROWS_AHEAD = 3  # rows on their way to shared memory while one is processed
INP, DOUT, DINP = range(3)  # the arrays whose rows are copied ahead
COPIED_ARRAYS = 3
SUM_DXHAT, SUM_DXHAT_XHAT = range(2)  # the sums over a row


# ---------------------------------------------------------------------------------------------------------- kernels


@functools.cache
def make_forward_kernels(C, has_largest=False):
    """(layernorm_forward_kernel, residual_layernorm_forward_kernel, rows per block, threads per block) for rows of C channels.

    A thread of a row holds VECTORS times eight columns: x[j * 8 + k] is column (j * THREADS + thread) * 8 + k.
    has_largest: the kernels raise largest[0] to the largest |out|. Otherwise `largest` may be any array.
    """
    warps = ceil_div(C, MAX_FORWARD_COLUMNS)  # per row
    VECTORS = ceil_div(C, warps * COLUMNS_PER_WARP)
    ONE_WARP = warps == 1
    THREADS = warps * WARP_SIZE  # per row
    PER_THREAD = VECTORS * WIDTH
    ROWS = FORWARD_WARPS if ONE_WARP else 1
    ONE_OVER_C = np.float32(1 / C)

    @cuda.jit(device=True)
    def row_sum(value):
        return warp_sum(value) if ONE_WARP else block_sum(value)

    @cuda.jit(device=True)
    def normalise(out, mean, rstd, largest, x, weight, bias, row, thread):
        """From the row in x to out, mean and rstd."""
        w = cuda.local.array(WIDTH, float32)
        b = cuda.local.array(WIDTH, float32)
        total = ZERO
        for j in range(VECTORS):
            if (j * THREADS + thread) * WIDTH < C:
                for k in range(WIDTH):
                    total += x[j * WIDTH + k]
        m = row_sum(total) * ONE_OVER_C
        total = ZERO  # of the squared centred values: E[x²] - E[x]² would cancel
        for j in range(VECTORS):
            if (j * THREADS + thread) * WIDTH < C:
                for k in range(WIDTH):
                    total += (x[j * WIDTH + k] - m) * (x[j * WIDTH + k] - m)
        s = ONE / sqrt(row_sum(total) * ONE_OVER_C + EPS)
        bits = int32(0)  # of the largest |out|
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if c < C:
                load8(weight, c, w)
                load8(bias, c, b)
                for k in range(WIDTH):
                    w[k] = (x[j * WIDTH + k] - m) * s * w[k] + b[k]
                if has_largest:
                    round8(out, w)  # what is stored
                    for k in range(WIDTH):
                        bits = max(bits, magnitude_bits(w[k]))
                store8(out, row * C + c, w)
        if has_largest:
            bits = warp_largest(bits)
            if thread % WARP_SIZE == 0:
                raise_largest(largest, bits)
        if thread == 0:
            mean[row] = m
            rstd[row] = s

    @cuda.jit(cache=True)
    def layernorm_forward_kernel(out, mean, rstd, largest, inp, weight, bias):
        """Load the row, normalise it."""
        row = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // THREADS
        thread = cuda.threadIdx.x % THREADS
        if row >= inp.shape[0]:  # a row's threads leave together, so none is missing from the sums of another row
            return
        x = cuda.local.array(PER_THREAD, float32)
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if c < C:
                load8(inp, row * C + c, x, j * WIDTH)
        normalise(out, mean, rstd, largest, x, weight, bias, row, thread)

    @cuda.jit(cache=True)
    def residual_layernorm_forward_kernel(residual, out, mean, rstd, largest, inp, branch, weight, bias):
        """Load the row of inp and of branch, store their sum, normalise it."""
        row = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // THREADS
        thread = cuda.threadIdx.x % THREADS
        if row >= inp.shape[0]:
            return
        x = cuda.local.array(PER_THREAD, float32)
        y = cuda.local.array(PER_THREAD, float32)
        # All loads before the first store: the compiler moves no load past a store, which might be to the same address.
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if c < C:
                load8(inp, row * C + c, x, j * WIDTH)
                load8(branch, row * C + c, y, j * WIDTH)
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if c < C:
                for k in range(WIDTH):
                    x[j * WIDTH + k] += y[j * WIDTH + k]
                round8(residual, x, j * WIDTH)  # normalise the sum as stored, which is what backward reads
                store8(residual, row * C + c, x, j * WIDTH)
        normalise(out, mean, rstd, largest, x, weight, bias, row, thread)

    return layernorm_forward_kernel, residual_layernorm_forward_kernel, ROWS, ROWS * THREADS


def backward_shape(C):
    """(warps per row, eights of columns per thread, rows that a block processes at a time) of the backward kernel."""
    warps = ceil_div(C, MAX_BACKWARD_COLUMNS)
    # A block processes one row per team, the warps that share a row: COLUMN_WARPS teams per block when a team is one warp, otherwise one.
    return warps, ceil_div(C, warps * COLUMNS_PER_WARP), COLUMN_WARPS if warps == 1 else 1


def backward_blocks(C):
    """(blocks that share the rows, blocks per multiprocessor): two per multiprocessor for narrow rows, one for wide ones.

    The first does not depend on the GPU, since the bits of dweight and dbias depend on it. An H200 has 132 multiprocessors.
    """
    _, vectors, rows = backward_shape(C)
    per_multiprocessor = 2 if vectors <= 4 and rows > 1 else 1
    return 3 if SIMULATING else 132 * per_multiprocessor, per_multiprocessor


@functools.cache
def make_backward_kernel(C, has_dinp_sums, ROWS_AHEAD, has_largest=False):
    """(layernorm_backward_kernel, threads per block) for rows of C channels, ROWS_AHEAD of which are copied ahead.

    has_largest: the kernel raises largest[0] to the largest |dinp|. Otherwise `largest` may be any array.
    The warps that share a row are a team. Thread t of a team has columns j * SPAN + t * 8 + k of all the team's rows, j < VECTORS, k < 8.
    """
    WARPS, VECTORS, TEAMS = backward_shape(C)
    TEAM_THREADS = WARPS * WARP_SIZE
    PER_THREAD = VECTORS * WIDTH  # columns
    SPAN = TEAM_THREADS * WIDTH  # columns that a team takes at once
    SLOTS = ROWS_AHEAD + 1  # of a team's ring in shared memory, one per row
    SUMS = 3 if has_dinp_sums else 2
    WARP_SUMS_SHAPE = (2, WARPS, 2)  # half, warp, which sum
    ONE_OVER_C = np.float32(1 / C)
    _, blocks_per_multiprocessor = backward_blocks(C)
    BOUNDS = {} if SIMULATING else {"launch_bounds": (TEAMS * TEAM_THREADS, blocks_per_multiprocessor)}

    @cuda.jit(device=True)
    def in_ring(team, slot, array, j, thread):
        """Index of a thread's eight elements in the rings, which are (TEAMS, SLOTS, COPIED_ARRAYS, VECTORS, SPAN), flat."""
        return (((team * SLOTS + slot) * COPIED_ARRAYS + array) * VECTORS + j) * SPAN + thread * WIDTH

    @cuda.jit(device=True)
    def begin_copy(rings, team, slot, inp, dout, dinp, row, thread):
        """Begin to copy this thread's elements of a row to a slot: one group of copies, an empty one beyond the last row."""
        if row < inp.shape[0]:
            for j in range(VECTORS):
                c = j * SPAN + thread * WIDTH
                if c < C:
                    copy8_async(rings, in_ring(team, slot, INP, j, thread), inp, row * C + c)
                    copy8_async(rings, in_ring(team, slot, DOUT, j, thread), dout, row * C + c)
                    copy8_async(rings, in_ring(team, slot, DINP, j, thread), dinp, row * C + c)
        commit_copies()

    @cuda.jit(device=True)
    def store_block_sums(partials, start, sums, team, thread):
        """partials[start : start + C] = the teams' column sums, added first team to last. All threads must call.

        A team's sums overwrite the rings. They fit: 3 arrays * at least 2 bytes per element >= 4 bytes per sum.
        """
        team_sums = shared_elements(partials)  # (TEAMS, VECTORS, SPAN), flat
        cuda.syncthreads()  # every thread has finished reading the ring, or the sums of the call before
        for j in range(VECTORS):
            store8(team_sums, (team * VECTORS + j) * SPAN + thread * WIDTH, sums, j * WIDTH)
        cuda.syncthreads()
        total = cuda.local.array(WIDTH, float32)
        x = cuda.local.array(WIDTH, float32)
        for c in range(cuda.threadIdx.x * WIDTH, C, TEAMS * TEAM_THREADS * WIDTH):
            load8(team_sums, c, total)
            for other in range(1, TEAMS):
                load8(team_sums, other * VECTORS * SPAN + c, x)
                for k in range(WIDTH):
                    total[k] += x[k]
            store8(partials, start + c, total)

    @cuda.jit(cache=True, **BOUNDS)
    def layernorm_backward_kernel(dinp, partials, largest, dout, inp, weight, mean, rstd):
        """Each team reads and writes its rows once; each thread keeps the column sums of its own columns in registers.

        While a row is processed, the next ROWS_AHEAD are on their way to shared memory. A thread reads only what it has copied itself, so
        it waits for its own copies alone. It reads them twice, since the column sums leave no registers to keep them.
        partials [w] (blocks, SUMS, C), flat: this block's sums for dweight, dbias and, if has_dinp_sums, dinp_sums.
        """
        rings = shared_elements(inp)
        warp_sums = cuda.shared.array(WARP_SUMS_SHAPE, float32)
        thread, team = cuda.threadIdx.x % TEAM_THREADS, cuda.threadIdx.x // TEAM_THREADS
        lane, warp = thread % WARP_SIZE, thread // WARP_SIZE
        N, first, step = inp.shape[0], cuda.blockIdx.x * TEAMS + team, cuda.gridDim.x * TEAMS
        dw = cuda.local.array(PER_THREAD, float32)
        db = cuda.local.array(PER_THREAD, float32)
        dinp_sum = cuda.local.array(PER_THREAD, float32)
        x = cuda.local.array(WIDTH, float32)  # eight columns of a row: inp, dout, dinp; and of weight
        dy = cuda.local.array(WIDTH, float32)
        dx = cuda.local.array(WIDTH, float32)
        w = cuda.local.array(WIDTH, float32)
        for i in range(PER_THREAD):
            dw[i], db[i], dinp_sum[i] = ZERO, ZERO, ZERO
        bits = int32(0)  # of the largest |dinp|

        for ahead in range(ROWS_AHEAD):
            begin_copy(rings, team, ahead, inp, dout, dinp, first + ahead * step, thread)
        slot, half = 0, 0
        for row in range(first, N, step):
            m, s = mean[row], rstd[row]
            begin_copy(rings, team, (slot + ROWS_AHEAD) % SLOTS, inp, dout, dinp, row + ROWS_AHEAD * step, thread)
            wait_for_copies(ROWS_AHEAD)  # all groups but the last ROWS_AHEAD: this row's copies have arrived

            # First pass: the row's terms of dweight and dbias, and the two sums over the row that dinp needs.
            sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
            for j in range(VECTORS):
                c = j * SPAN + thread * WIDTH
                if c < C:
                    load8(rings, in_ring(team, slot, INP, j, thread), x)
                    load8(rings, in_ring(team, slot, DOUT, j, thread), dy)
                    load8(weight, c, w)
                    for k in range(WIDTH):
                        xhat = (x[k] - m) * s
                        dxhat = dy[k] * w[k]
                        dw[j * WIDTH + k] += dy[k] * xhat
                        db[j * WIDTH + k] += dy[k]
                        sum_dxhat += dxhat
                        sum_dxhat_xhat += dxhat * xhat
            sum_dxhat, sum_dxhat_xhat = warp_sum(sum_dxhat), warp_sum(sum_dxhat_xhat)
            if WARPS > 1:
                if lane == 0:
                    warp_sums[half, warp, SUM_DXHAT] = sum_dxhat
                    warp_sums[half, warp, SUM_DXHAT_XHAT] = sum_dxhat_xhat
                # All threads of the block take equally many rows, and so meet here, since WARPS > 1 implies TEAMS == 1. The halves
                # alternate, so one barrier per row is enough: a warp writes this half again two rows later. By then it has passed the next
                # row's barrier, which every warp reaches only after reading this half.
                cuda.syncthreads()
                sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
                for other in range(WARPS):
                    sum_dxhat += warp_sums[half, other, SUM_DXHAT]
                    sum_dxhat_xhat += warp_sums[half, other, SUM_DXHAT_XHAT]
            mean_dxhat = sum_dxhat * ONE_OVER_C
            mean_dxhat_xhat = sum_dxhat_xhat * ONE_OVER_C

            # Second pass: dinp. dxhat loses its mean and its component along xhat, since adding a constant to a row, or scaling it about
            # its mean, leaves xhat as it is.
            for j in range(VECTORS):
                c = j * SPAN + thread * WIDTH
                if c < C:
                    load8(rings, in_ring(team, slot, INP, j, thread), x)
                    load8(rings, in_ring(team, slot, DOUT, j, thread), dy)
                    load8(rings, in_ring(team, slot, DINP, j, thread), dx)
                    load8(weight, c, w)
                    for k in range(WIDTH):
                        dx[k] += s * (dy[k] * w[k] - mean_dxhat - (x[k] - m) * s * mean_dxhat_xhat)
                    if has_dinp_sums or has_largest:
                        round8(dinp, dx)  # what is stored
                    if has_largest:
                        for k in range(WIDTH):
                            bits = max(bits, magnitude_bits(dx[k]))
                    if has_dinp_sums:
                        for k in range(WIDTH):
                            dinp_sum[j * WIDTH + k] += dx[k]
                    store8(dinp, row * C + c, dx)
            slot, half = (slot + 1) % SLOTS, half ^ 1

        if has_largest:
            bits = warp_largest(bits)
            if lane == 0:
                raise_largest(largest, bits)
        start = cuda.blockIdx.x * SUMS * C
        store_block_sums(partials, start, dw, team, thread)
        store_block_sums(partials, start + C, db, team, thread)
        if has_dinp_sums:
            store_block_sums(partials, start + 2 * C, dinp_sum, team, thread)

    return layernorm_backward_kernel, TEAMS * TEAM_THREADS


# -------------------------------------------------------------------------------------------------------- launchers


def layernorm_scratch_size(C):
    """Elements of scratch, float32, that `layernorm_backward` needs."""
    blocks, _ = backward_blocks(C)
    return 3 * blocks * C


def layernorm_forward(out, mean, rstd, inp, weight, bias, largest=None):
    """Normalise the rows of inp.

    out  [w] (N, C)   mean, rstd [w] (N,) float32, kept for backward   inp [r] (N, C)   weight, bias [r] (C,)
    largest [+] (1,) float32 or None: raised to the largest |out|, for layers/fast/float8.py
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_forward", {"N": N, "C": C, "1": 1}, SHAPE_HINT,
        out=(out, "N C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"), inp=(inp, "N C"), weight=(weight, "C"), bias=(bias, "C"),
        largest=(largest, "f32 1"),
    )  # fmt: skip
    check_on_device("layernorm_forward", inp, "layers/layernorm.py")
    check_width("layernorm_forward", C=C)
    kernel, _, rows, threads = make_forward_kernels(C, largest is not None)
    largest = mean if largest is None else largest
    kernel[ceil_div(N, rows), threads, compute_stream()](out, mean, rstd, largest, inp, weight, bias)


# Nine parameters: those of the two layers that it fuses, and a by-product.
def residual_layernorm_forward(residual, out, mean, rstd, inp, branch, weight, bias, largest=None):
    """Add a branch to the residual stream and normalise the sum: residual = inp + branch, out = layernorm(residual).

    residual, out [w] (N, C)   mean, rstd [w] (N,) float32   inp, branch [r] (N, C)   weight, bias [r] (C,)
    largest [+] (1,) float32 or None: raised to the largest |out|
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "residual_layernorm_forward", {"N": N, "C": C, "1": 1}, SHAPE_HINT,
        residual=(residual, "N C"), out=(out, "N C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"), largest=(largest, "f32 1"),
        inp=(inp, "N C"), branch=(branch, "N C"), weight=(weight, "C"), bias=(bias, "C"),
    )  # fmt: skip
    check_on_device("residual_layernorm_forward", inp, "layers/layernorm.py")
    check_width("residual_layernorm_forward", C=C)
    _, kernel, rows, threads = make_forward_kernels(C, largest is not None)
    largest = mean if largest is None else largest
    kernel[ceil_div(N, rows), threads, compute_stream()](residual, out, mean, rstd, largest, inp, branch, weight, bias)


# Eleven parameters: eight are the plain launcher's; scratch comes from the caller, since nothing is allocated during training; by-products.
def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch, dinp_sums=None, largest=None):
    """Gradients of layernorm_forward, accumulated.

    dinp [+] (N, C), may be dout itself   dweight, dbias [+] (C,)   dout, inp [r] (N, C)   weight [r] (C,)
    mean, rstd [r] (N,) float32   scratch [w] float32, flat, at least layernorm_scratch_size(C)
    dinp_sums [+] (C,) or None: the column sums of the new dinp   largest [+] (1,) float32 or None: raised to the largest |dinp|
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_backward", {"N": N, "C": C, "1": 1}, SHAPE_HINT,
        dinp=(dinp, "N C"), largest=(largest, "f32 1"), dweight=(dweight, "C"), dbias=(dbias, "C"), dout=(dout, "N C"), inp=(inp, "N C"),
        weight=(weight, "C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"), dinp_sums=(dinp_sums, "C"),
    )  # fmt: skip
    check_on_device("layernorm_backward", inp, "layers/layernorm.py")
    check_width("layernorm_backward", C=C)
    check_scratch("layernorm_backward", scratch, layernorm_scratch_size(C))
    results = [dweight, dbias] if dinp_sums is None else [dweight, dbias, dinp_sums]
    warps, vectors, rows = backward_shape(C)
    row_columns = warps * vectors * COLUMNS_PER_WARP  # C, rounded up to what the row's threads take
    slot_bytes = COPIED_ARRAYS * rows * row_columns * inp.dtype.itemsize  # one row of each array for every team
    blocks, blocks_per_multiprocessor = backward_blocks(C)
    rows_ahead = max(0, min(MOST_ROWS_AHEAD, max_shared_bytes() // blocks_per_multiprocessor // slot_bytes - 1))
    kernel, threads = make_backward_kernel(C, dinp_sums is not None, rows_ahead, largest is not None)
    blocks, nbytes = min(blocks, N), (rows_ahead + 1) * slot_bytes
    largest = scratch if largest is None else largest
    launch_with_shared_memory(kernel, blocks, threads, nbytes, dinp, scratch, largest, dout, inp, weight, mean, rstd)
    accumulate_partials(results, scratch, blocks)
