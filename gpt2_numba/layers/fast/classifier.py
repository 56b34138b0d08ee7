"""The classifier's end, fast: a row of 50,304 logits is read once and written once, with one exponential per logit.

What is different from the plain kernels of layers/classifier.py, and what it gains. Figures: one H200, 2026-11-22, bf16, V = 50,257, as
shares of the rate of a device-to-device copy; 65,536 rows (GPT-2 124M) / 16,384 rows (1558M).

    Memory is moved 16 bytes at a time: eight neighbouring logits per load or store, whatever their type (gpu/memory_access.py).

    Exponentials are powers of two, exp(x) = exp2(x log2 e): one special instruction. A multiprocessor executes 16 of them per cycle, so
    their count matters. Fewer instructions took a first version of this kernel from 57 to 80 %.

    The largest logit and the sum take one pass (in classifier_forward, and for rows too long for what follows): a thread rescales its sum
    whenever it meets a larger logit, so the row is read once less than in the plain kernel.

    The row stays in registers, up to 104 logits per thread, from its one read to its one write: the exponentials of the sum become the
    gradients, so there is one per logit instead of two.

    The blocks are persistent: each processes row after row, and the next two are copied to shared memory meanwhile (cp.async). With a row
    in registers a multiprocessor has no room for a second block, which would read while the first computes, so the block does both itself:
    94 / 90 % with a cool GPU, 95 / 95 % after 20 ms of matrix products; with one slot in shared memory instead of two 75 / 70 % and
    76 / 75 %.

    If shared memory holds only one row, such as 50,304 logits in float32, another kernel is used: one block per row, two exponentials per
    logit. It reaches 74 %, and in bfloat16, in the measurement above, 75 / 66 % cool and 74 / 71 % hot. Rows that are longer still are read
    twice, the second time mostly from the L2 cache.

    | array          | shape, type                 | classifier_forward (validation) | classifier_forward_backward (training)  |
    | -------------- | --------------------------- | ------------------------------- | --------------------------------------- |
    | logits         | (N, Vp) float32 or bfloat16 | [r] Vp a multiple of 8          | [rw] become dlogits                     |
    | targets        | (N,) int32                  | [r] in [0, V)                   | [r]                                     |
    | losses         | (N,) float32                | [w] nats                        | [w] nats                                |
"""

import functools

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream, device_properties
from gpt2_numba.gpu.float32_math import LOG2_E, exp2, log, maximum
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store1, store8
from gpt2_numba.gpu.reductions import LOWEST, block_max, block_sum
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy8_async,
    launch_with_shared_memory,
    max_shared_bytes,
    shared_elements,
    wait_for_copies,
)
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.classifier import check_classifier

ZERO = np.float32(0.0)
THREADS = 64 if SIMULATING else 1024  # of a block that has one row of 50,304 logits: about six loads per thread
TRAINING_THREADS = 32 if SIMULATING else 512  # more threads would have fewer registers each: 640 were a tenth slower
SPAN = TRAINING_THREADS * WIDTH  # columns that a training block takes at once
MAX_VECTORS = 13  # times eight columns, for which a thread has registers: rows of up to 53,248 logits
SLOTS = 2  # for rows in shared memory
ROWS_AHEAD = SLOTS - 1  # rows still on their way when a row is moved to registers


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def mask_padding(x, v, V, first=0):
    """Set to LOWEST what is padding in x[first : first + 8], the logits from column v on."""
    if v + WIDTH > V:
        for k in range(WIDTH):
            x[first + k] = x[first + k] if v + k < V else LOWEST


@cuda.jit(device=True)
def row_max_and_sum_exp(logits, row, V):
    """(largest, Σ_v exp(logits[row, v] - largest)) over the row's V logits, in one pass. All threads of the block call it and get both.

    Each thread rescales its sum whenever it meets a larger logit; at the end all sums are rescaled to the row's largest
    (Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", arXiv:1805.02867).
    """
    Vp = logits.shape[1]
    x = cuda.local.array(WIDTH, float32)
    largest, sum_exp = LOWEST, ZERO
    for v in range(cuda.threadIdx.x * WIDTH, V, cuda.blockDim.x * WIDTH):
        load8(logits, row * Vp + v, x)
        mask_padding(x, v, V)
        previous = largest
        for k in range(WIDTH):
            largest = maximum(largest, x[k])
        sum_exp *= exp2((previous - largest) * LOG2_E)
        for k in range(WIDTH):
            sum_exp += exp2((x[k] - largest) * LOG2_E)
    row_max = block_max(largest)
    return row_max, block_sum(sum_exp * exp2((largest - row_max) * LOG2_E))


@cuda.jit(cache=True)
def classifier_forward_kernel(losses, logits, targets, V):
    """One block per row."""
    row = cuda.blockIdx.x
    largest, sum_exp = row_max_and_sum_exp(logits, row, V)
    if cuda.threadIdx.x == 0:
        losses[row] = log(sum_exp) + largest - load1(logits, row * logits.shape[1] + targets[row])


def vectors_per_thread(Vp):
    """How many times eight of a row's columns each thread of the next kernel holds."""
    return ceil_div(Vp, SPAN)


@functools.cache
def make_training_kernel(V, Vp):
    """classifier_forward_backward_kernel for rows of V logits and Vp - V of padding.

    Thread t has columns j * SPAN + t * 8 + k of its block's rows, j < VECTORS, k < 8.
    """
    VECTORS = vectors_per_thread(Vp)
    UNPADDED = V // SPAN  # the j below which no thread has padding: there the compiler drops the conditions, which always hold
    PER_THREAD = VECTORS * WIDTH  # columns
    BOUNDS = {} if SIMULATING else {"launch_bounds": (TRAINING_THREADS, 1)}

    @cuda.jit(device=True)
    def begin_copy(ring, slot, logits, row):
        """Begin to copy this thread's logits of a row to a slot: one group of copies, an empty one beyond the last row."""
        if row < logits.shape[0]:
            for j in range(VECTORS):
                v = j * SPAN + cuda.threadIdx.x * WIDTH
                if j < UNPADDED or v < Vp:
                    copy8_async(ring, slot * VECTORS * SPAN + v, logits, row * Vp + v)
        commit_copies()

    @cuda.jit(cache=True, **BOUNDS)
    def classifier_forward_backward_kernel(losses, logits, targets, dloss):
        """A block strides over the rows. A thread has the same columns in all of them, so it waits for its own copies only."""
        ring = shared_elements(logits)  # (SLOTS, VECTORS, SPAN), flat
        thread, step = cuda.threadIdx.x, cuda.gridDim.x
        x = cuda.local.array(PER_THREAD, float32)  # logits, then their exponentials, then their gradients
        for ahead in range(SLOTS):
            begin_copy(ring, ahead, logits, cuda.blockIdx.x + ahead * step)
        slot = 0
        for row in range(cuda.blockIdx.x, logits.shape[0], step):
            target = targets[row]
            at_target = load1(logits, row * Vp + target)  # before the barriers of block_max, since the gradient overwrites it after them
            wait_for_copies(ROWS_AHEAD)
            for j in range(VECTORS):
                if j < UNPADDED or j * SPAN + thread * WIDTH < Vp:  # what begin_copy has copied
                    load8(ring, (slot * VECTORS + j) * SPAN + thread * WIDTH, x, j * WIDTH)
            for j in range(UNPADDED, VECTORS):
                mask_padding(x, j * SPAN + thread * WIDTH, V, j * WIDTH)
            begin_copy(ring, slot, logits, row + SLOTS * step)

            largest, sum_exp = LOWEST, ZERO
            for i in range(PER_THREAD):
                largest = maximum(largest, x[i])
            largest = block_max(largest)
            for i in range(PER_THREAD):
                x[i] = exp2((x[i] - largest) * LOG2_E)  # 0 for padding
                sum_exp += x[i]
            sum_exp = block_sum(sum_exp)
            if thread == 0:
                losses[row] = log(sum_exp) + largest - at_target

            scale = dloss / sum_exp
            for i in range(PER_THREAD):
                x[i] *= scale
            for j in range(VECTORS):
                v = j * SPAN + thread * WIDTH
                if j < UNPADDED or v < Vp:
                    store8(logits, row * Vp + v, x, j * WIDTH)
            if thread == target // WIDTH % TRAINING_THREADS:  # the thread that has just stored the target's gradient, but without - dloss
                store1(logits, row * Vp + target, exp2((at_target - largest) * LOG2_E) * scale - dloss)
            slot = (slot + 1) % SLOTS

    return classifier_forward_backward_kernel


# Nine parameters: the row may be in memory or in shared memory, and each thread passes what it has in registers.
@cuda.jit(device=True)
def write_gradients(logits, row, source, start, target, V, largest, scale, dloss):
    """Overwrite a row with its gradients. source holds its logits from element `start` on: the row itself, or a copy of it."""
    Vp = logits.shape[1]
    x = cuda.local.array(WIDTH, float32)
    for v in range(cuda.threadIdx.x * WIDTH, Vp, cuda.blockDim.x * WIDTH):
        load8(source, start + v, x)
        for k in range(WIDTH):
            x[k] = exp2((x[k] - largest) * LOG2_E) * scale
        if v <= target < v + WIDTH:
            for k in range(WIDTH):
                x[k] -= dloss if v + k == target else ZERO
        if v + WIDTH > V:
            for k in range(WIDTH):
                x[k] = x[k] if v + k < V else ZERO
        store8(logits, row * Vp + v, x)


@cuda.jit(cache=True)
def classifier_forward_backward_shared_kernel(losses, logits, targets, dloss, V):
    """The same if only one row fits into shared memory, such as 50,304 in float32: one block per row, two exponentials per logit."""
    row_copy = shared_elements(logits)
    row, Vp = cuda.blockIdx.x, logits.shape[1]
    first, step = cuda.threadIdx.x * WIDTH, cuda.blockDim.x * WIDTH
    for v in range(first, Vp, step):
        copy8_async(row_copy, v, logits, row * Vp + v)
    commit_copies()
    target = targets[row]
    at_target = load1(logits, row * Vp + target)  # before the barriers of block_max, since the gradient overwrites it after them
    wait_for_copies(0)

    x = cuda.local.array(WIDTH, float32)
    largest, sum_exp = LOWEST, ZERO
    for v in range(first, V, step):
        load8(row_copy, v, x)
        mask_padding(x, v, V)
        for k in range(WIDTH):
            largest = maximum(largest, x[k])
    row_max = block_max(largest)
    for v in range(first, V, step):
        load8(row_copy, v, x)
        mask_padding(x, v, V)
        for k in range(WIDTH):
            sum_exp += exp2((x[k] - row_max) * LOG2_E)
    sum_exp = block_sum(sum_exp)
    if cuda.threadIdx.x == 0:
        losses[row] = log(sum_exp) + row_max - at_target
    write_gradients(logits, row, row_copy, 0, target, V, row_max, dloss / sum_exp, dloss)


@cuda.jit(cache=True)
def classifier_forward_backward_long_kernel(losses, logits, targets, dloss, V):
    """The same for rows that are too long for shared memory: the second pass over the row finds most of it in the L2 cache."""
    row, Vp = cuda.blockIdx.x, logits.shape[1]
    target = targets[row]
    at_target = load1(logits, row * Vp + target)
    largest, sum_exp = row_max_and_sum_exp(logits, row, V)
    if cuda.threadIdx.x == 0:
        losses[row] = log(sum_exp) + largest - at_target
    write_gradients(logits, row, logits, row * Vp, target, V, largest, dloss / sum_exp, dloss)


@cuda.jit(cache=True)
def accumulate_mean_kernel(mean, values):
    """One block, whose threads stride over the values, eight at a time."""
    N = values.shape[0]
    x = cuda.local.array(WIDTH, float32)
    total = ZERO
    for i in range(cuda.threadIdx.x * WIDTH, N, cuda.blockDim.x * WIDTH):
        if i + WIDTH <= N:
            load8(values, i, x)
            for k in range(WIDTH):
                total += x[k]
        else:
            for k in range(i, N):
                total += values[k]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        mean[0] += total / float32(N)


# -------------------------------------------------------------------------------------------------------- launchers


def classifier_forward(losses, logits, targets, V):
    """Cross-entropy of every row; the logits are left unchanged.

    losses [w] (N,) float32, nats   logits [r] (N, Vp)   targets [r] (N,) int32 in [0, V)   V at most Vp
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    _check("classifier_forward", losses, logits, targets, V)
    classifier_forward_kernel[logits.shape[0], THREADS, compute_stream()](losses, logits, targets, V)


def classifier_forward_backward(losses, logits, targets, dloss, V):
    """Cross-entropy of every row; the logits are overwritten with their gradient.

    losses [w] (N,) float32, nats   logits [rw] (N, Vp)   targets [r] (N,) int32 in [0, V)   V at most Vp
    dloss  float, the derivative of the training loss with respect to each row's loss: 1 / (N * grad_accum_steps) for a mean
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    _check("classifier_forward_backward", losses, logits, targets, V)
    N, Vp = logits.shape
    vectors = vectors_per_thread(Vp)
    row_bytes, ring_bytes = Vp * logits.dtype.itemsize, SLOTS * vectors * SPAN * logits.dtype.itemsize
    arguments = losses, logits, targets, np.float32(dloss)
    if vectors <= MAX_VECTORS and ring_bytes <= max_shared_bytes():
        blocks = max(1, 4 // vectors) * (3 if SIMULATING else device_properties()[1])  # for long rows one per multiprocessor
        launch_with_shared_memory(make_training_kernel(V, Vp), min(N, blocks), TRAINING_THREADS, ring_bytes, *arguments)
    elif row_bytes <= max_shared_bytes():
        launch_with_shared_memory(classifier_forward_backward_shared_kernel, N, TRAINING_THREADS, row_bytes, *arguments, V)
    else:
        classifier_forward_backward_long_kernel[N, THREADS, compute_stream()](*arguments, V)


def accumulate_mean(mean, values):
    """mean[0] += the mean of values: adds up the mean losses of a step's batches on the device, so that the host need not wait.

    mean [+] (1,) float32   values [r] (N,) float32.   Raises ValueError or TypeError if a shape or type does not fit.
    """
    check_arrays("accumulate_mean", {"N": values.shape[0]}, mean=(mean, "f32 1"), values=(values, "f32 N"))
    check_on_device("accumulate_mean", values, "layers/classifier.py")
    accumulate_mean_kernel[1, THREADS, compute_stream()](mean, values)


def _check(function, losses, logits, targets, V):
    check_classifier(function, losses, logits, targets, V)
    check_on_device(function, logits, "layers/classifier.py")
    check_width(function, Vp=logits.shape[1])
