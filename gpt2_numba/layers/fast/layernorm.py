"""Layer normalisation, fast: every row travels from memory once, and what its neighbours in the model need of it is made in passing.

What is different from the plain kernels of layers/layernorm.py, and what it gains. All of it is bound by memory, so figures are shares of
the rate of a device-to-device copy; one H200, 2026-11-22, bf16, rows of 768 channels (GPT-2 124M) / 1,600 (1558M).

    Memory is moved 16 bytes at a time: eight neighbouring numbers to a step, whatever their type (gpu/memory_access.py).

    A row is read once and stays in registers, where the plain kernel reads it three times: for the mean, for the variance, for the output.
    A warp makes a row of up to 1,024 channels by itself, so its sums need no barrier; longer rows are shared by several warps. Arrays in
    registers need a constant length, so the kernels are made for each C when they are first needed.

    The residual stream's addition is fused in. residual_layernorm_forward: residual = inp + branch, out = layernorm(residual), two reads
    and two writes instead of three and two. In one pass 99 / 92 %; as two kernels they were at 100 % (addition) and 77 % (LayerNorm).

    Backward is one kernel instead of two, which read inp and dout twice: two with the same 16-byte loads reached 53 / 37 %. A warp goes down
    its rows, and every thread keeps, for its own columns, the sums for dweight and dbias in registers; they meet in shared memory once, at
    the end. A fixed number of blocks share the rows, and accumulate_partials adds up the blocks: no atomics, the same bits in every run.

    The rows to come are copied to shared memory while one is worked on (cp.async), up to three ahead, since with the sums of its columns a
    thread has no registers left for loads in flight: prototypes reached 82 / 73 % with copies ahead, 81 / 54 without. This kernel, with a
    cold cache: 78 to 80 / 58 to 63 %; in the training step 120 µs, two kernels 170 / 87 and 103. What limits it at 1,600 channels: three
    column sums of 56 numbers a thread.

    dinp_sums are made in passing. Behind LayerNorm in the backward pass a linear layer takes dinp as its dout, and its bias gradient is
    dinp's column sums: a third sum in the same registers, for which no kernel has to read dinp.

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
    | scratch             | flat, float32              |         | [w] column sums of each block: layernorm_scratch_size(C)      |
"""

import functools
import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.memory_access import WIDTH, load8, round8, store8
from gpt2_numba.gpu.reductions import (
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    block_sum,
    warp_sum,
)
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy8_async,
    launch_with_shared_memory,
    most_shared_bytes,
    shared_numbers,
    wait_for_copies,
)
from gpt2_numba.layers.layernorm import EPS

ONE, ZERO = np.float32(1.0), np.float32(0.0)

# Forward: one warp a row up to 1,024 columns (32 numbers a thread), several beyond that: at 1,600 two warps are faster than one.
MAX_FORWARD_COLUMNS = COLUMNS_PER_WARP * (2 if SIMULATING else 4)  # of a warp
FORWARD_WARPS = 4  # of a block: small blocks, of which a multiprocessor holds many

# Backward: one warp a row while its column sums fit into the warp's registers (three sums of 64 numbers a thread), else a team of warps.
MAX_BACKWARD_COLUMNS = COLUMNS_PER_WARP * (2 if SIMULATING else 8)  # of a warp
MOST_ROWS_AHEAD = 3  # of a warp that are on their way to shared memory while one is worked on


# ---------------------------------------------------------------------------------------------------------- kernels


@functools.cache
def make_forward_kernels(C):
    """(layernorm_forward_kernel, residual_layernorm_forward_kernel, rows and threads to a block) for rows of C channels."""
    warps = -(-C // MAX_FORWARD_COLUMNS)  # to a row
    EIGHTS = -(-C // (warps * COLUMNS_PER_WARP))  # of numbers that a thread holds
    ONE_WARP = warps == 1
    THREADS = warps * WARP_SIZE
    HELD = EIGHTS * WIDTH
    ROWS = FORWARD_WARPS if ONE_WARP else 1
    ONE_OVER_C = np.float32(1 / C)

    @cuda.jit(device=True)
    def row_sum(value):
        return warp_sum(value) if ONE_WARP else block_sum(value)

    @cuda.jit(device=True)
    def normalise(out, mean, rstd, x, weight, bias, row, thread):
        """The row is in the threads' x: number (e * THREADS + thread) * 8 + k is x[8 e + k] of `thread`."""
        w = cuda.local.array(WIDTH, float32)
        b = cuda.local.array(WIDTH, float32)
        total = ZERO
        for e in range(EIGHTS):
            if (e * THREADS + thread) * WIDTH < C:
                for k in range(WIDTH):
                    total += x[e * WIDTH + k]
        m = row_sum(total) * ONE_OVER_C
        total = ZERO  # squares of the centred values: E[x²] - E[x]² would cancel
        for e in range(EIGHTS):
            if (e * THREADS + thread) * WIDTH < C:
                for k in range(WIDTH):
                    total += (x[e * WIDTH + k] - m) * (x[e * WIDTH + k] - m)
        s = ONE / sqrt(row_sum(total) * ONE_OVER_C + EPS)
        for e in range(EIGHTS):
            c = (e * THREADS + thread) * WIDTH
            if c < C:
                load8(weight, c, w)
                load8(bias, c, b)
                for k in range(WIDTH):
                    w[k] = (x[e * WIDTH + k] - m) * s * w[k] + b[k]
                store8(out, row * C + c, w)
        if thread == 0:
            mean[row] = m
            rstd[row] = s

    @cuda.jit(cache=True)
    def layernorm_forward_kernel(out, mean, rstd, inp, weight, bias):
        """The row is read once, and stays in registers."""
        row = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // THREADS
        thread = cuda.threadIdx.x % THREADS
        if row >= inp.shape[0]:  # all threads of a row leave together, so the sums below have all of their threads
            return
        x = cuda.local.array(HELD, float32)
        for e in range(EIGHTS):
            c = (e * THREADS + thread) * WIDTH
            if c < C:
                load8(inp, row * C + c, x, e * WIDTH)
        normalise(out, mean, rstd, x, weight, bias, row, thread)

    @cuda.jit(cache=True)
    def residual_layernorm_forward_kernel(residual, out, mean, rstd, inp, branch, weight, bias):
        """First residual = inp + branch: two reads and two writes instead of three and two."""
        row = cuda.blockIdx.x * ROWS + cuda.threadIdx.x // THREADS
        thread = cuda.threadIdx.x % THREADS
        if row >= inp.shape[0]:
            return
        x = cuda.local.array(HELD, float32)
        y = cuda.local.array(HELD, float32)
        for e in range(
            EIGHTS
        ):  # all loads before the first store: the compiler moves no load past a store, which might be to the same address
            c = (e * THREADS + thread) * WIDTH
            if c < C:
                load8(inp, row * C + c, x, e * WIDTH)
                load8(branch, row * C + c, y, e * WIDTH)
        for e in range(EIGHTS):
            c = (e * THREADS + thread) * WIDTH
            if c < C:
                for k in range(WIDTH):
                    x[e * WIDTH + k] += y[e * WIDTH + k]
                round8(residual, x, e * WIDTH)  # what is normalised is what is stored, as backward will find it
                store8(residual, row * C + c, x, e * WIDTH)
        normalise(out, mean, rstd, x, weight, bias, row, thread)

    return layernorm_forward_kernel, residual_layernorm_forward_kernel, ROWS, ROWS * THREADS


def backward_shape(C):
    """(eights of columns to a thread, warps to a row, rows to a block) of the backward kernel."""
    warps = -(-C // MAX_BACKWARD_COLUMNS)
    return -(-C // (warps * COLUMNS_PER_WARP)), warps, COLUMN_WARPS if warps == 1 else 1


def backward_blocks(C):
    """(blocks that share the rows, how many of them are to fit on a multiprocessor): two of narrow rows, one of wide ones.

    The first does not depend on the GPU, since the bits of dweight and dbias depend on it. An H200 has 132 multiprocessors.
    """
    eights, _, rows = backward_shape(C)
    at_once = 2 if eights <= 4 and rows > 1 else 1
    return 3 if SIMULATING else 132 * at_once, at_once


@functools.cache
def make_backward_kernel(C, has_dinp_sums, ROWS_AHEAD):
    """(layernorm_backward_kernel, threads to a block) for rows of C channels."""
    EIGHTS, WARPS, ROWS = backward_shape(C)
    TEAM = WARPS * WARP_SIZE  # threads that share a row
    HELD = EIGHTS * WIDTH  # columns of a thread
    PLACES = ROWS_AHEAD + 1  # for rows of a team in shared memory
    SPAN = TEAM * WIDTH  # columns that lie side by side
    WARP_SUMS = (2, WARPS, 2)  # half, warp, sum (of dxhat, of dxhat * xhat)
    SUMS = 3 if has_dinp_sums else 2
    ONE_OVER_C = np.float32(1 / C)
    _, AT_ONCE = backward_blocks(C)
    BOUNDS = {} if SIMULATING else {"launch_bounds": (ROWS * TEAM, AT_ONCE)}

    @cuda.jit(device=True)
    def place_of(team, place, which, e, thread):
        """Where in shared memory a thread keeps eight numbers of its team's row in `place`: which 0 of inp, 1 of dout, 2 of dinp."""
        return (((team * PLACES + place) * 3 + which) * EIGHTS + e) * SPAN + thread * WIDTH

    @cuda.jit(device=True)
    def begin_copy(numbers, team, place, inp, dout, dinp, row, thread):
        """Begin to copy this thread's numbers of a row: one group of copies, an empty one beyond the last row."""
        if row < inp.shape[0]:
            for e in range(EIGHTS):
                c = e * SPAN + thread * WIDTH
                if c < C:
                    copy8_async(numbers, place_of(team, place, 0, e, thread), inp, row * C + c)
                    copy8_async(numbers, place_of(team, place, 1, e, thread), dout, row * C + c)
                    copy8_async(numbers, place_of(team, place, 2, e, thread), dinp, row * C + c)
        commit_copies()

    @cuda.jit(device=True)
    def store_sums(partials, start, values, team, thread):
        """The block's column sums: those of its teams, first to last, by way of shared memory. All threads must call."""
        sums = shared_numbers(partials)
        cuda.syncthreads()  # no thread needs what this memory has held so far
        for e in range(EIGHTS):
            store8(sums, (team * EIGHTS + e) * SPAN + thread * WIDTH, values, e * WIDTH)
        cuda.syncthreads()
        total = cuda.local.array(WIDTH, float32)
        x = cuda.local.array(WIDTH, float32)
        for c in range(cuda.threadIdx.x * WIDTH, C, ROWS * TEAM * WIDTH):
            load8(sums, c, total)
            for other in range(1, ROWS):
                load8(sums, other * EIGHTS * SPAN + c, x)
                for k in range(WIDTH):
                    total[k] += x[k]
            store8(partials, start + c, total)

    @cuda.jit(cache=True, **BOUNDS)
    def layernorm_backward_kernel(dinp, partials, dout, inp, weight, mean, rstd):
        """Every row is read and written once; each thread keeps the column sums of its own columns in registers.

        While a row is worked on, the next ROWS_AHEAD are on their way to shared memory. A thread reads only what it has copied itself, so
        it waits for its own copies alone; it reads them twice, since the sums leave no registers to keep them.
        partials [w] (blocks, SUMS, C), flat: this block's sums for dweight, dbias and, if they are wanted, dinp_sums.
        """
        numbers = shared_numbers(inp)
        warp_sums = cuda.shared.array(WARP_SUMS, float32)
        thread, team = cuda.threadIdx.x % TEAM, cuda.threadIdx.x // TEAM
        lane, warp = thread % WARP_SIZE, thread // WARP_SIZE
        N, first, step = inp.shape[0], cuda.blockIdx.x * ROWS + team, cuda.gridDim.x * ROWS
        dw = cuda.local.array(HELD, float32)
        db = cuda.local.array(HELD, float32)
        ds = cuda.local.array(HELD, float32)
        x = cuda.local.array(WIDTH, float32)
        d = cuda.local.array(WIDTH, float32)
        w = cuda.local.array(WIDTH, float32)
        g = cuda.local.array(WIDTH, float32)
        for i in range(HELD):
            dw[i], db[i], ds[i] = ZERO, ZERO, ZERO

        for ahead in range(ROWS_AHEAD):
            begin_copy(numbers, team, ahead, inp, dout, dinp, first + ahead * step, thread)
        place, half = 0, 0
        for row in range(first, N, step):
            m, s = mean[row], rstd[row]
            begin_copy(numbers, team, (place + ROWS_AHEAD) % PLACES, inp, dout, dinp, row + ROWS_AHEAD * step, thread)
            wait_for_copies(ROWS_AHEAD)
            sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
            for e in range(EIGHTS):
                c = e * SPAN + thread * WIDTH
                if c < C:
                    load8(numbers, place_of(team, place, 0, e, thread), x)
                    load8(numbers, place_of(team, place, 1, e, thread), d)
                    load8(weight, c, w)
                    for k in range(WIDTH):
                        xhat = (x[k] - m) * s
                        dxhat = d[k] * w[k]
                        dw[e * WIDTH + k] += d[k] * xhat
                        db[e * WIDTH + k] += d[k]
                        sum_dxhat += dxhat
                        sum_dxhat_xhat += dxhat * xhat
            sum_dxhat, sum_dxhat_xhat = warp_sum(sum_dxhat), warp_sum(sum_dxhat_xhat)
            if WARPS > 1:
                if lane == 0:
                    warp_sums[half, warp, 0] = sum_dxhat
                    warp_sums[half, warp, 1] = sum_dxhat_xhat
                # The halves alternate, so one barrier a row is enough: before a warp writes this half again, all have passed the next row's
                # barrier.
                cuda.syncthreads()
                sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
                for other in range(WARPS):
                    sum_dxhat += warp_sums[half, other, 0]
                    sum_dxhat_xhat += warp_sums[half, other, 1]
            mean_dxhat = sum_dxhat * ONE_OVER_C
            mean_dxhat_xhat = sum_dxhat_xhat * ONE_OVER_C
            for e in range(EIGHTS):
                c = e * SPAN + thread * WIDTH
                if c < C:
                    load8(numbers, place_of(team, place, 0, e, thread), x)
                    load8(numbers, place_of(team, place, 1, e, thread), d)
                    load8(numbers, place_of(team, place, 2, e, thread), g)
                    load8(weight, c, w)
                    for k in range(WIDTH):
                        g[k] += s * (d[k] * w[k] - mean_dxhat - (x[k] - m) * s * mean_dxhat_xhat)
                    if has_dinp_sums:
                        round8(dinp, g)  # the sums are those of what is stored
                        for k in range(WIDTH):
                            ds[e * WIDTH + k] += g[k]
                    store8(dinp, row * C + c, g)
            place, half = (place + 1) % PLACES, half ^ 1

        start = cuda.blockIdx.x * SUMS * C
        store_sums(partials, start, dw, team, thread)
        store_sums(partials, start + C, db, team, thread)
        if has_dinp_sums:
            store_sums(partials, start + 2 * C, ds, team, thread)

    return layernorm_backward_kernel, ROWS * TEAM


# -------------------------------------------------------------------------------------------------------- launchers


def layernorm_scratch_size(C):
    """How many float32 `layernorm_backward` needs as scratch."""
    blocks, _ = backward_blocks(C)
    return 3 * blocks * C


def layernorm_forward(out, mean, rstd, inp, weight, bias):
    """Normalise the rows of inp.

    out  [w] (N, C)   mean, rstd [w] (N,) float32, kept for backward   inp [r] (N, C)   weight, bias [r] (C,)
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_forward", {"N": N, "C": C}, "Did you pass the parameters of another layer?",
        out=(out, "N C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"), inp=(inp, "N C"), weight=(weight, "C"), bias=(bias, "C"),
    )  # fmt: skip
    check_on_device("layernorm_forward", inp, "layers/layernorm.py")
    check_width("layernorm_forward", C=C)
    kernel, _, rows, threads = make_forward_kernels(C)
    kernel[-(-N // rows), threads, compute_stream()](out, mean, rstd, inp, weight, bias)


def residual_layernorm_forward(residual, out, mean, rstd, inp, branch, weight, bias):
    """The residual stream takes up a branch, and the sum is normalised: residual = inp + branch, out = layernorm(residual).

    residual, out [w] (N, C)   mean, rstd [w] (N,) float32   inp, branch [r] (N, C)   weight, bias [r] (C,)
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "residual_layernorm_forward", {"N": N, "C": C}, "Did you pass the parameters of another layer?",
        residual=(residual, "N C"), out=(out, "N C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"),
        inp=(inp, "N C"), branch=(branch, "N C"), weight=(weight, "C"), bias=(bias, "C"),
    )  # fmt: skip
    check_on_device("residual_layernorm_forward", inp, "layers/layernorm.py")
    check_width("residual_layernorm_forward", C=C)
    _, kernel, rows, threads = make_forward_kernels(C)
    kernel[-(-N // rows), threads, compute_stream()](residual, out, mean, rstd, inp, branch, weight, bias)


def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch, dinp_sums=None):
    """Gradients of layernorm_forward, accumulated.

    dinp [+] (N, C), may be dout itself   dweight, dbias [+] (C,)   dout, inp [r] (N, C)   weight [r] (C,)
    mean, rstd [r] (N,) float32   scratch [w] float32, flat, at least layernorm_scratch_size(C)
    dinp_sums [+] (C,) or None: the column sums of the new dinp
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_backward", {"N": N, "C": C}, "Did you pass the parameters of another layer?",
        dinp=(dinp, "N C"), dweight=(dweight, "C"), dbias=(dbias, "C"), dout=(dout, "N C"), inp=(inp, "N C"),
        weight=(weight, "C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"), dinp_sums=(dinp_sums, "C"),
    )  # fmt: skip
    check_on_device("layernorm_backward", inp, "layers/layernorm.py")
    check_width("layernorm_backward", C=C)
    check_scratch("layernorm_backward", scratch, layernorm_scratch_size(C))
    results = [dweight, dbias] if dinp_sums is None else [dweight, dbias, dinp_sums]
    rows_bytes = 3 * math.prod(backward_shape(C)) * COLUMNS_PER_WARP * inp.dtype.itemsize  # of inp, dout and dinp
    blocks, at_once = backward_blocks(C)
    rows_ahead = max(0, min(MOST_ROWS_AHEAD, most_shared_bytes() // at_once // rows_bytes - 1))
    kernel, threads = make_backward_kernel(C, dinp_sums is not None, rows_ahead)
    blocks, nbytes = min(blocks, N), (rows_ahead + 1) * rows_bytes
    launch_with_shared_memory(kernel, blocks, threads, nbytes, dinp, scratch, dout, inp, weight, mean, rstd)
    accumulate_partials(results, scratch, blocks)
