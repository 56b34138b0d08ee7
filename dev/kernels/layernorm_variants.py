"""LayerNorm's fast kernels in other forms, to be measured by dev/bench/variants.py beside the package's own.

Backward, limited by memory in theory and by latency in fact: 78 and 63 % of the copy rate for GPT-2 124M and 1558M.

    overlapped    a warp per row, as in the package, and the same bits. A row's mean and rstd are loaded one row ahead, instead of where the
                  first subtraction waits for them. Columns are compared with C only in the last group of a thread, so that the loads of the
                  others need not wait for branches.
    teams         a thread has eight columns, so a row belongs to a team of C / 256 warps, and a multiprocessor holds about twenty warps at
                  any width. The row is read once from the ring and stays in registers between the two passes, as xhat and dxhat; so do the
                  eight weights. A team processes ROWS rows between two barriers of its own. Teams have contiguous shares of the rows. Other
                  bits: the sums over rows and columns are in another order.

Forward, 80 and 88 % at 1,600 channels, where two warps share a row and meet at four barriers:

    one_warp      a warp per row at any width: no barrier. All loads of a row are under way before the first is widened.
    one_meeting   several warps per row: each computes the mean and the squared deviations of its own columns, and these are combined after
                  one barrier. E[x²] - E[x]² never occurs.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numba import cuda, float32, uint32

from dev.kernels import buffer
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, load8_words, round8, store1, store8, widen8
from gpt2_numba.gpu.reductions import ALL_LANES, COLUMNS_PER_WARP, WARP_SIZE, accumulate_partials, exchange, warp_sum
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy8_async,
    launch_with_shared_memory,
    max_shared_bytes,
    shared_elements,
    wait_for_copies,
)
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.fast import layernorm as fast
from gpt2_numba.layers.layernorm import EPS

ONE, ZERO = np.float32(1.0), np.float32(0.0)
INP, DOUT, DINP = range(3)
COPIED_ARRAYS = 3
BLOCKS = 3 if SIMULATING else 132  # per block that a multiprocessor holds: an H200 and an H100 have 132

if SIMULATING:
    import threading

    from gpt2_numba.gpu.simulator import meet_warp

    def from_lane(value, lane):
        """The `value` of another lane of the warp. Twin for the simulator."""
        return meet_warp(value, list)[lane]

    def sync_team(team, threads):
        """Wait for the other threads of a team, `threads` consecutive ones. Twin for the simulator."""
        thread = threading.current_thread()
        thread.block.meet_in_warp(thread, None, lambda values: None, threads, "team")

else:
    from numba import types
    from numba.cuda.extending import intrinsic

    from gpt2_numba.gpu.inline_ptx import inline_ptx

    @cuda.jit(device=True)
    def from_lane(value, lane):
        """The `value` of another lane of the warp. All 32 must call it."""
        return cuda.shfl_sync(ALL_LANES, value, lane)

    @intrinsic
    def sync_team(typingctx, team, threads):
        """Wait for the other threads of a team, `threads` consecutive ones: whole warps. At most 15 teams. PTX ISA: bar.sync."""

        def codegen(context, builder, signature, args):
            inline_ptx(builder, "{ .reg .u32 b; add.u32 b, $0, 1; bar.sync b, $1; }", [], args, touches_memory=True)
            return context.get_dummy_value()

        return types.void(types.uint32, types.uint32), codegen


# ------------------------------------------------------------------------------------------------------ block's sums


def make_store_block_sums(C, TEAMS, TEAM_THREADS, VECTORS):
    """The device function that adds up the teams' column sums, as in the package."""
    SPAN = TEAM_THREADS * WIDTH

    @cuda.jit(device=True)
    def store_block_sums(partials, start, sums, team, thread):
        """partials[start : start + C] = the teams' column sums, added first team to last, over the rings. All threads must call."""
        team_sums = shared_elements(partials)  # (TEAMS, VECTORS, SPAN), flat
        cuda.syncthreads()
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

    return store_block_sums


# ---------------------------------------------------------------------------------------------- backward: overlapped


@dataclass(frozen=True)
class OverlappedShape:
    """Warps that share a row, teams of them in a block, blocks that a multiprocessor holds, and whether comparisons with C are left out."""

    warps: int = 1
    teams: int = 8
    blocks_per_multiprocessor: int = 1
    folded: bool = True


@functools.cache
def make_overlapped_kernel(C, has_dinp_sums, shape, ROWS_AHEAD):
    """(overlapped_backward_kernel, threads per block). shape: an OverlappedShape."""
    WARPS, TEAMS = shape.warps, shape.teams
    TEAM_THREADS = WARPS * WARP_SIZE
    SPAN = TEAM_THREADS * WIDTH
    VECTORS = ceil_div(C, SPAN)
    # Groups of columns that all threads have: in the copies, and in the second pass. In the first, the loads of all groups together would
    # take more registers than there are.
    FULL = C // SPAN if shape.folded else 0
    PER_THREAD, SLOTS = VECTORS * WIDTH, ROWS_AHEAD + 1
    SUMS = 3 if has_dinp_sums else 2
    WARP_SUMS = 2 * TEAMS * WARPS * 2  # (half, team, warp, which sum), flat
    ONE_OVER_C = np.float32(1 / C)
    BOUNDS = {} if SIMULATING else {"launch_bounds": (TEAMS * TEAM_THREADS, shape.blocks_per_multiprocessor)}
    store_block_sums = make_store_block_sums(C, TEAMS, TEAM_THREADS, VECTORS)

    @cuda.jit(device=True)
    def in_ring(team, slot, array, j, thread):
        return (((team * SLOTS + slot) * COPIED_ARRAYS + array) * VECTORS + j) * SPAN + thread * WIDTH

    @cuda.jit(device=True)
    def begin_copy(rings, team, slot, inp, dout, dinp, row, thread):
        if row < inp.shape[0]:
            for j in range(VECTORS):
                c = j * SPAN + thread * WIDTH
                if j < FULL or c < C:
                    copy8_async(rings, in_ring(team, slot, INP, j, thread), inp, row * C + c)
                    copy8_async(rings, in_ring(team, slot, DOUT, j, thread), dout, row * C + c)
                    copy8_async(rings, in_ring(team, slot, DINP, j, thread), dinp, row * C + c)
        commit_copies()

    @cuda.jit(**BOUNDS)
    def overlapped_backward_kernel(dinp, partials, dout, inp, weight, mean, rstd):
        """As layernorm_backward_kernel."""
        rings = shared_elements(inp)
        warp_sums = cuda.shared.array(WARP_SUMS, float32)
        team, thread = cuda.threadIdx.x // TEAM_THREADS, cuda.threadIdx.x % TEAM_THREADS
        lane, warp = thread % WARP_SIZE, thread // WARP_SIZE
        N, first, step = inp.shape[0], cuda.blockIdx.x * TEAMS + team, cuda.gridDim.x * TEAMS
        dw = cuda.local.array(PER_THREAD, float32)
        db = cuda.local.array(PER_THREAD, float32)
        dinp_sum = cuda.local.array(PER_THREAD, float32)
        x = cuda.local.array(WIDTH, float32)
        dy = cuda.local.array(WIDTH, float32)
        dx = cuda.local.array(WIDTH, float32)
        w = cuda.local.array(WIDTH, float32)
        for i in range(PER_THREAD):
            dw[i], db[i], dinp_sum[i] = ZERO, ZERO, ZERO

        for ahead in range(ROWS_AHEAD):
            begin_copy(rings, team, ahead, inp, dout, dinp, first + ahead * step, thread)
        slot, half, last = 0, 0, N - 1
        next_mean, next_rstd = load1(mean, min(first, last)), load1(rstd, min(first, last))
        for row in range(first, N, step):
            m, s = next_mean, next_rstd
            following = min(row + step, last)
            next_mean, next_rstd = load1(mean, following), load1(rstd, following)
            begin_copy(rings, team, slot - 1 if slot > 0 else ROWS_AHEAD, inp, dout, dinp, row + ROWS_AHEAD * step, thread)
            wait_for_copies(ROWS_AHEAD)

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
                sums_of_team = (half * TEAMS + team) * WARPS * 2
                if lane == 0:
                    store1(warp_sums, sums_of_team + warp * 2, sum_dxhat)
                    store1(warp_sums, sums_of_team + warp * 2 + 1, sum_dxhat_xhat)
                if TEAMS == 1:  # one barrier per row: the halves alternate
                    cuda.syncthreads()
                else:
                    sync_team(team, TEAM_THREADS)
                sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
                for other in range(WARPS):
                    sum_dxhat += load1(warp_sums, sums_of_team + other * 2)
                    sum_dxhat_xhat += load1(warp_sums, sums_of_team + other * 2 + 1)
            mean_dxhat = sum_dxhat * ONE_OVER_C
            mean_dxhat_xhat = sum_dxhat_xhat * ONE_OVER_C
            for j in range(VECTORS):
                c = j * SPAN + thread * WIDTH
                if j < FULL or c < C:
                    load8(rings, in_ring(team, slot, INP, j, thread), x)
                    load8(rings, in_ring(team, slot, DOUT, j, thread), dy)
                    load8(rings, in_ring(team, slot, DINP, j, thread), dx)
                    load8(weight, c, w)
                    for k in range(WIDTH):
                        dx[k] += s * (dy[k] * w[k] - mean_dxhat - (x[k] - m) * s * mean_dxhat_xhat)
                    store8(dinp, row * C + c, dx)
                    if has_dinp_sums:
                        round8(dinp, dx)  # after the store, whose rounding it can share
                        for k in range(WIDTH):
                            dinp_sum[j * WIDTH + k] += dx[k]
            slot, half = slot + 1 if slot < ROWS_AHEAD else 0, half ^ 1

        start = cuda.blockIdx.x * SUMS * C
        store_block_sums(partials, start, dw, team, thread)
        store_block_sums(partials, start + C, db, team, thread)
        if has_dinp_sums:
            store_block_sums(partials, start + 2 * C, dinp_sum, team, thread)

    return overlapped_backward_kernel, TEAMS * TEAM_THREADS


# Eleven parameters: the first ten are the fast launcher's.
def overlapped(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch, dinp_sums=None, *, shape):
    """fast.layernorm_backward with the overlapped kernel."""
    N, C = inp.shape
    vectors, itemsize = ceil_div(C, shape.warps * COLUMNS_PER_WARP), inp.dtype.itemsize
    slot_bytes = COPIED_ARRAYS * shape.teams * shape.warps * vectors * COLUMNS_PER_WARP * itemsize
    per_multiprocessor = shape.blocks_per_multiprocessor
    ahead = max(0, min(fast.MOST_ROWS_AHEAD, max_shared_bytes() // per_multiprocessor // slot_bytes - 1))
    kernel, threads = make_overlapped_kernel(C, dinp_sums is not None, shape, ahead)
    blocks = min(BLOCKS * per_multiprocessor, N)
    partials = buffer("partials", BLOCKS * per_multiprocessor * 3 * C)
    launch_with_shared_memory(kernel, blocks, threads, (ahead + 1) * slot_bytes, dinp, partials, dout, inp, weight, mean, rstd)
    accumulate_partials([dweight, dbias] if dinp_sums is None else [dweight, dbias, dinp_sums], partials, blocks)


# --------------------------------------------------------------------------------------------------- backward: teams


def team_warps(C):
    """Warps of a team: one for every 256 columns."""
    return ceil_div(C, COLUMNS_PER_WARP)


@functools.cache
def make_team_kernel(C, has_dinp_sums, TEAMS, ROWS, AHEAD, blocks_per_multiprocessor=1):
    """(team_backward_kernel, threads per block): TEAMS per block, ROWS (1, 2 or 4) rows at a time, AHEAD times ROWS rows copied ahead.

    The number of rows must be a multiple of ROWS. Threads beyond the last column take the last eight once more, with a weight of 0, and store nothing: so no load waits for a branch.
    """
    WARPS = team_warps(C)
    TEAM_THREADS = WARPS * WARP_SIZE
    SPAN, SLOTS = TEAM_THREADS * WIDTH, AHEAD + 1
    KEPT = ROWS * WIDTH
    SUMS = 3 if has_dinp_sums else 2
    ROW_SUMS = 2 * ROWS  # value 2 r is Σ dxhat of row r, value 2 r + 1 is Σ dxhat * xhat
    LANES = WARP_SIZE // ROW_SUMS  # that hold the same value after add_up_lanes
    SHIFT = {8: 2, 4: 3, 2: 4}[ROW_SUMS]  # LANES = 2 ** SHIFT
    ROUNDS = ceil_div(WARPS, LANES)
    WARP_SUMS = 2 * TEAMS * WARPS * ROW_SUMS  # (half, team, warp, value), flat
    ONE_OVER_C = np.float32(1 / C)
    BOUNDS = {} if SIMULATING else {"launch_bounds": (TEAMS * TEAM_THREADS, blocks_per_multiprocessor)}
    store_block_sums = make_store_block_sums(C, TEAMS, TEAM_THREADS, 1)

    @cuda.jit(device=True)
    def in_ring(team, slot, r, array, thread):
        """Index of a thread's eight elements in the rings, which are (TEAMS, SLOTS, ROWS, COPIED_ARRAYS, SPAN), flat."""
        return (((team * SLOTS + slot) * ROWS + r) * COPIED_ARRAYS + array) * SPAN + thread * WIDTH

    @cuda.jit(device=True)
    def begin_copy(rings, team, slot, inp, dout, dinp, row, stop, c, thread):
        """Begin to copy this thread's elements of ROWS rows: one group, an empty one beyond the last row."""
        if row < stop:
            for r in range(ROWS):
                copy8_async(rings, in_ring(team, slot, r, INP, thread), inp, (row + r) * C + c)
                copy8_async(rings, in_ring(team, slot, r, DOUT, thread), dout, (row + r) * C + c)
                copy8_async(rings, in_ring(team, slot, r, DINP, thread), dinp, (row + r) * C + c)
        commit_copies()

    @cuda.jit(device=True)
    def swap(values, low, high, is_upper, distance):
        """values[low] = the sum of one of the two values over this lane and the lane at `distance`: the lower lane keeps low."""
        sent = values[low] if is_upper else values[high]
        own = values[high] if is_upper else values[low]
        values[low] = own + exchange(sent, distance)

    @cuda.jit(device=True)
    def add_up_lanes(values, lane):
        """The warp's sum of values[lane // LANES]: each step halves the values of a lane, so 8 values take 9 shuffles, not 40."""
        if ROW_SUMS == 8:
            for i in range(4):
                swap(values, i, i + 4, lane & 16 != 0, 16)
            for i in range(2):
                swap(values, i, i + 2, lane & 8 != 0, 8)
            swap(values, 0, 1, lane & 4 != 0, 4)
        elif ROW_SUMS == 4:
            for i in range(2):
                swap(values, i, i + 2, lane & 16 != 0, 16)
            swap(values, 0, 1, lane & 8 != 0, 8)
        else:
            swap(values, 0, 1, lane & 16 != 0, 16)
        total = values[0]
        if LANES > 8:
            total += exchange(total, 8)
        if LANES > 4:
            total += exchange(total, 4)
        total += exchange(total, 2)
        return total + exchange(total, 1)

    @cuda.jit(device=True)
    def add_up_team(values, warp_sums, half, team, warp, lane):
        """values[...] = the team's sums, the same in every thread."""
        total = add_up_lanes(values, lane)
        own = (half * TEAMS + team) * WARPS * ROW_SUMS + (lane >> SHIFT)  # value of warp 0
        if lane & LANES - 1 == 0:
            store1(warp_sums, own + warp * ROW_SUMS, total)
        # The halves alternate, so one barrier is enough: a warp writes this half again two batches later.
        if TEAMS == 1:
            cuda.syncthreads()
        else:
            sync_team(team, TEAM_THREADS)
        total = ZERO
        for i in range(ROUNDS):
            other = i * LANES + (lane & LANES - 1)
            if other < WARPS:
                total += load1(warp_sums, own + other * ROW_SUMS)
        if LANES > 8:
            total += exchange(total, 8)
        if LANES > 4:
            total += exchange(total, 4)
        total += exchange(total, 2)
        total += exchange(total, 1)
        for i in range(ROW_SUMS):
            values[i] = from_lane(total, i * LANES)

    @cuda.jit(**BOUNDS)
    def team_backward_kernel(dinp, partials, dout, inp, weight, mean, rstd):
        """Each team goes through its share of the rows. partials [w] (blocks, SUMS, C), flat."""
        rings = shared_elements(inp)
        warp_sums = cuda.shared.array(WARP_SUMS, float32)
        team, thread = cuda.threadIdx.x // TEAM_THREADS, cuda.threadIdx.x % TEAM_THREADS
        lane, warp = thread % WARP_SIZE, thread // WARP_SIZE
        N, teams, number = inp.shape[0], cuda.gridDim.x * TEAMS, cuda.blockIdx.x * TEAMS + team
        first, stop = N // ROWS * number // teams * ROWS, N // ROWS * (number + 1) // teams * ROWS
        has_columns = thread * WIDTH < C
        c = min(thread * WIDTH, C - WIDTH)
        dw = cuda.local.array(WIDTH, float32)
        db = cuda.local.array(WIDTH, float32)
        dinp_sum = cuda.local.array(WIDTH, float32)
        w = cuda.local.array(WIDTH, float32)
        x = cuda.local.array(KEPT, float32)  # then xhat
        dy = cuda.local.array(KEPT, float32)  # then dxhat
        dx = cuda.local.array(WIDTH, float32)
        m = cuda.local.array(ROWS, float32)
        s = cuda.local.array(ROWS, float32)
        next_m = cuda.local.array(ROWS, float32)
        next_s = cuda.local.array(ROWS, float32)
        values = cuda.local.array(ROW_SUMS, float32)
        load8(weight, c, w)
        for k in range(WIDTH):
            dw[k], db[k], dinp_sum[k] = ZERO, ZERO, ZERO
            if not has_columns:
                w[k] = ZERO

        for ahead in range(AHEAD):
            begin_copy(rings, team, ahead, inp, dout, dinp, first + ahead * ROWS, stop, c, thread)
        for r in range(ROWS):
            next_m[r], next_s[r] = load1(mean, min(first + r, N - 1)), load1(rstd, min(first + r, N - 1))
        slot, half = 0, 0
        for row in range(first, stop, ROWS):
            following = row + ROWS if row + ROWS < stop else row
            for r in range(ROWS):
                m[r], s[r] = next_m[r], next_s[r]
                next_m[r], next_s[r] = load1(mean, following + r), load1(rstd, following + r)
            begin_copy(rings, team, slot - 1 if slot > 0 else AHEAD, inp, dout, dinp, row + AHEAD * ROWS, stop, c, thread)
            wait_for_copies(AHEAD)
            for r in range(ROWS):
                load8(rings, in_ring(team, slot, r, INP, thread), x, r * WIDTH)
                load8(rings, in_ring(team, slot, r, DOUT, thread), dy, r * WIDTH)
            for r in range(ROWS):
                sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
                for k in range(WIDTH):
                    xhat = (x[r * WIDTH + k] - m[r]) * s[r]
                    gradient = dy[r * WIDTH + k]
                    dxhat = gradient * w[k]
                    dw[k] += gradient * xhat
                    db[k] += gradient
                    sum_dxhat += dxhat
                    sum_dxhat_xhat += dxhat * xhat
                    x[r * WIDTH + k], dy[r * WIDTH + k] = xhat, dxhat
                values[2 * r], values[2 * r + 1] = sum_dxhat, sum_dxhat_xhat
            add_up_team(values, warp_sums, half, team, warp, lane)

            for r in range(ROWS):
                if has_columns:
                    load8(rings, in_ring(team, slot, r, DINP, thread), dx)
                    shift, slope = s[r] * (values[2 * r] * ONE_OVER_C), s[r] * (values[2 * r + 1] * ONE_OVER_C)
                    for k in range(WIDTH):
                        dx[k] += s[r] * dy[r * WIDTH + k] - shift - slope * x[r * WIDTH + k]
                    store8(dinp, (row + r) * C + c, dx)
                    if has_dinp_sums:
                        round8(dinp, dx)  # after the store, whose rounding it can share
                        for k in range(WIDTH):
                            dinp_sum[k] += dx[k]
            slot, half = slot + 1 if slot < AHEAD else 0, half ^ 1

        start = cuda.blockIdx.x * SUMS * C
        store_block_sums(partials, start, dw, team, thread)
        store_block_sums(partials, start + C, db, team, thread)
        if has_dinp_sums:
            store_block_sums(partials, start + 2 * C, dinp_sum, team, thread)

    return team_backward_kernel, TEAMS * TEAM_THREADS


def team_memory(C, teams, rows, ahead, itemsize):
    """Bytes of a block's rings, which must also hold the teams' column sums."""
    span = team_warps(C) * COLUMNS_PER_WARP
    return teams * span * max((ahead + 1) * rows * COPIED_ARRAYS * itemsize, 4)


# Eleven parameters: the first ten are the fast launcher's. shape: (teams per block, rows at a time, times as many rows ahead, blocks per
# multiprocessor).
def teams(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch, dinp_sums=None, *, shape):
    """fast.layernorm_backward with teams."""
    N, C = inp.shape
    teams_per_block, rows, ahead, per_multiprocessor = shape
    if N % rows:
        rows = 1
    while ahead and team_memory(C, teams_per_block, rows, ahead, inp.dtype.itemsize) * per_multiprocessor > max_shared_bytes():
        ahead -= 1
    kernel, threads = make_team_kernel(C, dinp_sums is not None, teams_per_block, rows, ahead, per_multiprocessor)
    blocks = BLOCKS * per_multiprocessor
    results = [dweight, dbias] if dinp_sums is None else [dweight, dbias, dinp_sums]
    partials = buffer("team partials", blocks * 3 * C)
    nbytes = team_memory(C, teams_per_block, rows, ahead, inp.dtype.itemsize)
    launch_with_shared_memory(kernel, blocks, threads, nbytes, dinp, partials, dout, inp, weight, mean, rstd)
    accumulate_partials(results, partials, blocks)


# ---------------------------------------------------------------------------------------------------------- forward


@functools.cache
def make_forward_kernels(C, WARPS, ROWS):
    """(forward kernel, residual kernel, rows per block, threads): WARPS per row; ROWS rows per block if that is one."""
    THREADS = WARPS * WARP_SIZE
    SPAN = THREADS * WIDTH
    VECTORS, FULL = ceil_div(C, SPAN), C // SPAN
    PER_THREAD = VECTORS * WIDTH
    if WARPS > 1:
        ROWS = 1
    ONE_OVER_C = np.float32(1 / C)
    BOTH = 2 * WARPS

    @cuda.jit(device=True)
    def combine(own_mean, deviations, columns, warp, lane):
        """(mean, Σ (x - mean)²) of a row from those of its warps: a warp's columns lie `own_mean - mean` from the row's mean."""
        means_and_deviations = cuda.shared.array(BOTH, float32)
        counts = cuda.shared.array(WARPS, float32)
        if lane == 0:
            means_and_deviations[2 * warp] = own_mean
            means_and_deviations[2 * warp + 1] = deviations
            counts[warp] = columns
        cuda.syncthreads()
        total = ZERO
        for other in range(WARPS):
            total += means_and_deviations[2 * other] * counts[other]
        m = total * ONE_OVER_C
        total = ZERO
        for other in range(WARPS):
            distance = means_and_deviations[2 * other] - m
            total += means_and_deviations[2 * other + 1] + counts[other] * distance * distance
        return m, total

    @cuda.jit(device=True)
    def normalise(out, mean, rstd, x, weight, bias, row, thread):
        """From the row in x to out, mean and rstd."""
        w = cuda.local.array(WIDTH, float32)
        b = cuda.local.array(WIDTH, float32)
        total = ZERO
        columns = ZERO
        for j in range(VECTORS):
            if j < FULL or (j * THREADS + thread) * WIDTH < C:
                columns += np.float32(WIDTH)
                for k in range(WIDTH):
                    total += x[j * WIDTH + k]
        if WARPS == 1:
            m = warp_sum(total) * ONE_OVER_C
        else:
            columns = warp_sum(columns)
            m = warp_sum(total) / columns if columns > ZERO else ZERO
        total = ZERO
        for j in range(VECTORS):
            if j < FULL or (j * THREADS + thread) * WIDTH < C:
                for k in range(WIDTH):
                    total += (x[j * WIDTH + k] - m) * (x[j * WIDTH + k] - m)
        total = warp_sum(total)
        if WARPS > 1:
            m, total = combine(m, total, columns, thread // WARP_SIZE, thread % WARP_SIZE)
        s = ONE / sqrt(total * ONE_OVER_C + EPS)
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if j < FULL or c < C:
                load8(weight, c, w)
                load8(bias, c, b)
                for k in range(WIDTH):
                    w[k] = (x[j * WIDTH + k] - m) * s * w[k] + b[k]
                store8(out, row * C + c, w)
        if thread == 0:
            mean[row] = m
            rstd[row] = s

    @cuda.jit
    def row_forward_kernel(out, mean, rstd, inp, weight, bias):
        """Load the row, normalise it."""
        row = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // THREADS
        thread = cuda.threadIdx.x % THREADS
        if row >= inp.shape[0]:
            return
        words = cuda.local.array(PER_THREAD, uint32)
        x = cuda.local.array(PER_THREAD, float32)
        eight = cuda.local.array(WIDTH, float32)
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if j < FULL or c < C:
                load8_words(inp, row * C + c, words, j * WIDTH)
        for j in range(VECTORS):
            if j < FULL or (j * THREADS + thread) * WIDTH < C:
                widen8(inp, words, j * WIDTH, eight)
                for k in range(WIDTH):
                    x[j * WIDTH + k] = eight[k]
        normalise(out, mean, rstd, x, weight, bias, row, thread)

    @cuda.jit
    def row_residual_forward_kernel(residual, out, mean, rstd, inp, branch, weight, bias):
        """Load the row of inp and of branch, store their sum, normalise it."""
        row = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // THREADS
        thread = cuda.threadIdx.x % THREADS
        if row >= inp.shape[0]:
            return
        inp_words = cuda.local.array(PER_THREAD, uint32)
        branch_words = cuda.local.array(PER_THREAD, uint32)
        x = cuda.local.array(PER_THREAD, float32)
        eight = cuda.local.array(WIDTH, float32)
        other = cuda.local.array(WIDTH, float32)
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if j < FULL or c < C:
                load8_words(inp, row * C + c, inp_words, j * WIDTH)
                load8_words(branch, row * C + c, branch_words, j * WIDTH)
        for j in range(VECTORS):
            c = (j * THREADS + thread) * WIDTH
            if j < FULL or c < C:
                widen8(inp, inp_words, j * WIDTH, eight)
                widen8(branch, branch_words, j * WIDTH, other)
                for k in range(WIDTH):
                    eight[k] += other[k]
                round8(residual, eight)
                store8(residual, row * C + c, eight)
                for k in range(WIDTH):
                    x[j * WIDTH + k] = eight[k]
        normalise(out, mean, rstd, x, weight, bias, row, thread)

    return row_forward_kernel, row_residual_forward_kernel, ROWS, ROWS * THREADS


def layernorm_forward(out, mean, rstd, inp, weight, bias, *, warps, rows):
    """fast.layernorm_forward with another number of warps per row, or of rows per block."""
    kernel, _, rows, threads = make_forward_kernels(inp.shape[1], warps, rows)
    kernel[ceil_div(inp.shape[0], rows), threads, compute_stream()](out, mean, rstd, inp, weight, bias)


def residual_layernorm_forward(residual, out, mean, rstd, inp, branch, weight, bias, *, warps, rows):
    """fast.residual_layernorm_forward with another number of warps per row, or of rows per block."""
    _, kernel, rows, threads = make_forward_kernels(inp.shape[1], warps, rows)
    kernel[ceil_div(inp.shape[0], rows), threads, compute_stream()](residual, out, mean, rstd, inp, branch, weight, bias)
