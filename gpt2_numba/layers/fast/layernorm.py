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

    Backward is one kernel. Two kernels, each reading inp and dout, reached 53 / 37 % with the same 16-byte loads. Up to 3,072 channels a
    thread has eight columns, so a row belongs to a team of C / 256 warps, rounded up. Between its two passes over a row, a thread keeps
    xhat, dxhat and the weights of its columns in registers; longer rows are read again from shared memory. Registers also hold the columns'
    sums for dweight and dbias, which are combined once, at the end, in shared memory. A fixed number of blocks share the rows, and
    accumulate_partials adds up the blocks: no atomics, the same bits in every run.

    In bfloat16, if 4 divides N, a team processes four rows between two barriers, which are its own: no team waits for another. It has eight
    sums to add up, two for each row; a warp does so with 9 shuffles instead of 40 (gpu/reductions.py), and 10 more combine the warps and
    tell all threads. Meanwhile the next four / eight rows are copied to shared memory (cp.async), which takes no registers: 86 / 75 % with
    a cold cache, 111 / 66 µs, and 85 / 74 % at the clock of a training step (2026-11-29). With a warp per row, and so 24 / 56 columns per
    thread, it took 121 / 82 µs: every row made its warp wait for its loads, and then for its sums.

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
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, round8, store8
from gpt2_numba.gpu.reductions import (
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    block_sum,
    exchange,
    from_lane,
    sync_team,
    warp_largest,
    warp_sum,
    warp_sum_of_eight,
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

# Backward: one block per multiprocessor. BACKWARD_WARPS warps leave 168 registers per thread, enough for eight columns. A row that would
# need more warps has several eights of columns per thread, and at most WIDE_WARPS warps, with 255 registers. Fastest on an H200,
# 2026-11-29: 768 columns: 4 teams of 3 warps, 4 rows at a time, 4 rows ahead; 1,600 columns: 1 team of 7 warps, 4 rows at a time, 8 rows
# ahead.
BACKWARD_WARPS, WIDE_WARPS = (2, 2) if SIMULATING else (12, 8)  # per block
BACKWARD_BLOCKS = 3 if SIMULATING else 132  # an H200's multiprocessors, on every GPU: the bits of dweight and dbias depend on it
# On their way to a block, as far as they fit. The memory's speed times its delay is 17 KB per multiprocessor; this leaves room for delays.
BYTES_AHEAD = 1 << (10 if SIMULATING else 16)
INP, DOUT, DINP = range(3)  # the arrays whose rows are copied ahead
COPIED_ARRAYS = 3
MOST_ROWS = 4  # that a team processes at a time
EIGHT = 2 * MOST_ROWS  # sums over their columns: sum 2 r is Σ dxhat of row r, sum 2 r + 1 is Σ dxhat * xhat


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
        total = ZERO  # of the squared centred values: E[x²] - E[x]² would lose its digits to cancellation
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
    """(teams per block, warps per team, eights of columns per thread) of the backward kernel."""
    eights = ceil_div(C, COLUMNS_PER_WARP)  # for each lane, if a row had a single warp
    vectors = 1 if eights <= BACKWARD_WARPS else ceil_div(eights, WIDE_WARPS)
    return max(1, BACKWARD_WARPS // eights), ceil_div(eights, vectors), vectors


def rows_at_a_time(N, C, itemsize):
    """Rows that a team processes between two barriers: 4; or 1, if a row by itself keeps the memory busy or if 4 does not divide N."""
    _, _, vectors = backward_shape(C)
    return MOST_ROWS if vectors == 1 and itemsize == 2 and N % MOST_ROWS == 0 else 1


def batches_ahead(batch_bytes):
    """Batches on their way to shared memory while one is processed: BYTES_AHEAD, as far as they fit. batch_bytes: of all teams together."""
    return max(0, min(ceil_div(BYTES_AHEAD, batch_bytes), max_shared_bytes() // batch_bytes - 1))


@functools.cache
def make_backward_kernel(C, ROWS, AHEAD, has_dinp_sums, has_largest=False):
    """(layernorm_backward_kernel, threads per block) for rows of C channels. ROWS divides the number of rows.

    The warps that share a row are a team. It processes batches of ROWS rows, and AHEAD batches are copied ahead. Thread t of a team has
    columns j * SPAN + t * 8 + k of all the team's rows, j < VECTORS, k < 8.
    has_largest: the kernel raises largest[0] to the largest |dinp|. Otherwise `largest` may be any array.
    """
    TEAMS, WARPS, VECTORS = backward_shape(C)
    TEAM_THREADS = WARPS * WARP_SIZE
    SPAN = TEAM_THREADS * WIDTH  # columns that a team takes at once
    KEEPS = VECTORS == 1  # whether a thread keeps xhat, dxhat and the weights in registers. Otherwise it loads them twice, and ROWS is 1.
    SLOTS = AHEAD + 1  # of a team's ring in shared memory, one per batch
    COLUMNS, KEPT = VECTORS * WIDTH, ROWS * WIDTH  # per thread: columns; elements of xhat, and of dxhat, that it holds at a time
    SUMS = 3 if has_dinp_sums else 2
    WARP_SUMS_SHAPE = (2, TEAMS, WARPS, EIGHT)  # half, team, warp, which sum
    LANES = WARP_SIZE // EIGHT  # that have the same one of a warp's eight sums
    ROUNDS = ceil_div(WARPS, LANES)  # in which they add up the warps' sums
    ONE_OVER_C = np.float32(1 / C)
    BOUNDS = {} if SIMULATING else {"launch_bounds": (TEAMS * TEAM_THREADS, 1)}

    @cuda.jit(device=True)
    def in_ring(team, slot, r, array, j, thread):
        """Index of a thread's eight elements in the rings, which are (TEAMS, SLOTS, ROWS, COPIED_ARRAYS, VECTORS, SPAN), flat."""
        return ((((team * SLOTS + slot) * ROWS + r) * COPIED_ARRAYS + array) * VECTORS + j) * SPAN + thread * WIDTH

    @cuda.jit(device=True)
    def clear_unused(rings, team, thread):
        """Set inp and dout to 0 in this thread's columns beyond C, where nothing is copied: they add nothing to the sums over a row."""
        zeros = cuda.local.array(WIDTH, float32)
        for k in range(WIDTH):
            zeros[k] = ZERO
        for j in range(VECTORS):
            if j * SPAN + thread * WIDTH >= C:
                for slot in range(SLOTS):
                    for r in range(ROWS):
                        store8(rings, in_ring(team, slot, r, INP, j, thread), zeros)
                        store8(rings, in_ring(team, slot, r, DOUT, j, thread), zeros)

    @cuda.jit(device=True)
    def begin_copy(rings, team, slot, inp, dout, dinp, row, stop, thread):
        """Begin to copy this thread's elements of the batch at `row` to a slot: one group of copies, an empty one from row `stop` on."""
        if row < stop:
            for j in range(VECTORS):
                c = j * SPAN + thread * WIDTH
                if c < C:
                    for r in range(ROWS):
                        copy8_async(rings, in_ring(team, slot, r, INP, j, thread), inp, (row + r) * C + c)
                        copy8_async(rings, in_ring(team, slot, r, DOUT, j, thread), dout, (row + r) * C + c)
                        copy8_async(rings, in_ring(team, slot, r, DINP, j, thread), dinp, (row + r) * C + c)
        commit_copies()

    @cuda.jit(device=True)
    def load_statistics(mean, rstd, row, m, s):
        """m, s = mean, rstd of the batch at `row`; if there is none, of the last batch of all."""
        row = min(row, mean.shape[0] - ROWS)
        for r in range(ROWS):
            m[r], s[r] = load1(mean, row + r), load1(rstd, row + r)

    @cuda.jit(device=True)
    def load_xhat_and_dout(rings, team, slot, r, j, thread, m, s, x, dy):
        """Eight of a thread's columns of row r of a batch: x[r * 8 : ] = xhat, dy[r * 8 : ] = dout."""
        load8(rings, in_ring(team, slot, r, INP, j, thread), x, r * WIDTH)
        load8(rings, in_ring(team, slot, r, DOUT, j, thread), dy, r * WIDTH)
        for k in range(r * WIDTH, r * WIDTH + WIDTH):
            x[k] = (x[k] - m[r]) * s[r]

    @cuda.jit(device=True)
    def add_up_team(sums, warp_sums, half, team, warp, lane):
        """sums[0 : 2 * ROWS] = their totals over the team, the same in every thread."""
        for i in range(2 * ROWS, EIGHT):
            sums[i] = ZERO
        total = warp_sum_of_eight(sums, lane)
        if WARPS > 1:
            which, first = lane // LANES, lane % LANES
            if first == 0:
                warp_sums[half, team, warp, which] = total
            # The halves alternate, so one barrier per batch is enough: a warp writes this half again two batches later. By then it has
            # passed the next batch's barrier, which every warp of the team reaches only after reading this half.
            sync_team(team, TEAM_THREADS)
            total = ZERO
            for i in range(ROUNDS):
                other = i * LANES + first
                if other < WARPS:
                    total += warp_sums[half, team, other, which]
            total += exchange(total, 2)
            total += exchange(total, 1)
        for i in range(2 * ROWS):
            sums[i] = from_lane(total, i * LANES)

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
        """Each team reads and writes an equal share of the rows; each thread keeps the sums of its own columns in registers.

        While a batch is processed, the next AHEAD are on their way to shared memory. A thread reads only what it has copied itself, so it
        waits for its own copies alone.
        partials [w] (blocks, SUMS, C), flat: this block's sums for dweight, dbias and, if has_dinp_sums, dinp_sums.
        """
        rings = shared_elements(inp)
        warp_sums = cuda.shared.array(WARP_SUMS_SHAPE, float32)
        team, thread = cuda.threadIdx.x // TEAM_THREADS, cuda.threadIdx.x % TEAM_THREADS
        lane, warp = thread % WARP_SIZE, thread // WARP_SIZE
        N, teams, number = inp.shape[0], cuda.gridDim.x * TEAMS, cuda.blockIdx.x * TEAMS + team
        first, stop = N // ROWS * number // teams * ROWS, N // ROWS * (number + 1) // teams * ROWS  # the team's rows
        dw = cuda.local.array(COLUMNS, float32)
        db = cuda.local.array(COLUMNS, float32)
        dinp_sum = cuda.local.array(COLUMNS, float32)
        x = cuda.local.array(KEPT, float32)  # xhat
        dy = cuda.local.array(KEPT, float32)  # dout, then dxhat
        dx = cuda.local.array(WIDTH, float32)  # dinp
        w = cuda.local.array(WIDTH, float32)
        m = cuda.local.array(ROWS, float32)
        s = cuda.local.array(ROWS, float32)
        next_m = cuda.local.array(ROWS, float32)
        next_s = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(EIGHT, float32)
        for i in range(COLUMNS):
            dw[i], db[i], dinp_sum[i] = ZERO, ZERO, ZERO
        bits = int32(0)  # of the largest |dinp|

        clear_unused(rings, team, thread)
        if KEEPS:
            load8(weight, min(thread * WIDTH, C - WIDTH), w)
        load_statistics(mean, rstd, first, next_m, next_s)
        for ahead in range(AHEAD):
            begin_copy(rings, team, ahead, inp, dout, dinp, first + ahead * ROWS, stop, thread)
        slot, free, half = 0, AHEAD, 0
        for row in range(first, stop, ROWS):
            for r in range(ROWS):
                m[r], s[r] = next_m[r], next_s[r]
            load_statistics(mean, rstd, row + ROWS, next_m, next_s)  # a batch ahead, too
            begin_copy(rings, team, free, inp, dout, dinp, row + AHEAD * ROWS, stop, thread)
            wait_for_copies(AHEAD)  # all groups but the last AHEAD: this batch's copies have arrived

            # First pass: the rows' terms of dweight and dbias, and the two sums over each row that dinp needs.
            for r in range(ROWS):
                sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
                for j in range(VECTORS):
                    load_xhat_and_dout(rings, team, slot, r, j, thread, m, s, x, dy)
                    if not KEEPS:
                        load8(weight, min(j * SPAN + thread * WIDTH, C - WIDTH), w)
                    for k in range(WIDTH):
                        xhat, gradient = x[r * WIDTH + k], dy[r * WIDTH + k]
                        dxhat = gradient * w[k]
                        dw[j * WIDTH + k] += gradient * xhat
                        db[j * WIDTH + k] += gradient
                        sum_dxhat += dxhat
                        sum_dxhat_xhat += dxhat * xhat
                        dy[r * WIDTH + k] = dxhat
                sums[2 * r], sums[2 * r + 1] = sum_dxhat, sum_dxhat_xhat
            add_up_team(sums, warp_sums, half, team, warp, lane)

            # Second pass: dinp. dxhat loses its mean and its component along xhat, since adding a constant to a row, or scaling it about
            # its mean, leaves xhat as it is.
            for j in range(VECTORS):
                c = j * SPAN + thread * WIDTH
                if c < C:
                    for r in range(ROWS):
                        load8(rings, in_ring(team, slot, r, DINP, j, thread), dx)
                        if not KEEPS:
                            load_xhat_and_dout(rings, team, slot, r, j, thread, m, s, x, dy)
                            load8(weight, c, w)
                            for k in range(WIDTH):
                                dy[k] *= w[k]
                        shift, slope = s[r] * (sums[2 * r] * ONE_OVER_C), s[r] * (sums[2 * r + 1] * ONE_OVER_C)
                        for k in range(WIDTH):
                            dx[k] += s[r] * dy[r * WIDTH + k] - shift - slope * x[r * WIDTH + k]
                        store8(dinp, (row + r) * C + c, dx)
                        if has_dinp_sums or has_largest:
                            round8(dinp, dx)  # what is stored; after the store, so that the compiler rounds once
                        for k in range(WIDTH):
                            if has_dinp_sums:
                                dinp_sum[j * WIDTH + k] += dx[k]
                            if has_largest:
                                bits = max(bits, magnitude_bits(dx[k]))
            slot, free, half = slot + 1 if slot < AHEAD else 0, slot, half ^ 1  # the slot just processed is free

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
    return 3 * BACKWARD_BLOCKS * C


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
    teams, warps, vectors = backward_shape(C)
    rows = rows_at_a_time(N, C, inp.dtype.itemsize)
    batch_bytes = COPIED_ARRAYS * teams * rows * warps * vectors * COLUMNS_PER_WARP * inp.dtype.itemsize
    ahead = batches_ahead(batch_bytes)
    kernel, threads = make_backward_kernel(C, rows, ahead, dinp_sums is not None, largest is not None)
    blocks, nbytes = min(BACKWARD_BLOCKS, ceil_div(N // rows, teams)), (ahead + 1) * batch_bytes
    largest = scratch if largest is None else largest
    launch_with_shared_memory(kernel, blocks, threads, nbytes, dinp, scratch, largest, dout, inp, weight, mean, rstd)
    accumulate_partials(results, scratch, blocks)
