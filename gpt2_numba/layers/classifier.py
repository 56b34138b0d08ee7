"""The classifier's end: softmax over the vocabulary, cross-entropy against the next token, and the gradient of both in one.

    loss[n] = log Σ_v exp(logits[n, v]) - logits[n, targets[n]]

    dlogits[n, v] = (softmax(logits[n])[v] - [v = targets[n]]) dloss

The probabilities are never stored: the gradient overwrites the logits where they stand, since (N, Vp) is the largest array of all
(6.6 GB for 64 x 1024 tokens in bfloat16). The vocabulary is padded from V to Vp columns, so that rows are aligned; the padding
takes no part in the softmax and gets the gradient zero.

The training kernel reads a row once and writes it once, with one exponential a logit: in between a block has the row in registers, up to
104 logits a thread. That leaves a multiprocessor no room for a second block which would read while this one computes. So the block itself
does: it stays, takes row after row, and the next two are meanwhile copied to shared memory. One H200, 50,304 columns in bfloat16: 94 % of the
copy rate, 71 to 74 with the kernel after it, which is for rows of which shared memory has room for one only.

    | array          | shape, type | classifier_forward (validation) | classifier_forward_backward (training) |
    | -------------- | ----------- | ------------------------------- | -------------------------------------- |
    | logits         | (N, Vp)     | [r]                             | [r], then [w]: dlogits                 |
    | targets        | (N,) int32  | [r] in [0, V)                   | [r]                                    |
    | losses         | (N,) float32| [w] nats                        | [w] nats                               |
"""

import functools

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, device_properties, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.float32_math import LOG2_E, exp2, log, maximum
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store1, store8
from gpt2_numba.gpu.reductions import LOWEST, block_max, block_sum
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy8_async,
    launch_with_shared_memory,
    most_shared_bytes,
    shared_numbers,
    wait_for_copies,
)

ZERO = np.float32(0.0)
THREADS = 64 if SIMULATING else 1024  # one block a row of 50,304 logits: about six loads a thread
TRAINING_THREADS = 32 if SIMULATING else 512  # more have fewer registers each; with 640 the kernel was a tenth slower
SPAN = TRAINING_THREADS * WIDTH  # columns that a training block takes side by side
MOST_EIGHTS = 13  # of columns that a thread has registers for: rows of up to 53,248 logits
PLACES = 2  # for rows in shared memory


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def classifier_forward_ref(losses, logits, targets, V):
    """The definition. Arguments as in the table above; float32 or float64."""
    rows = np.arange(len(targets))
    largest = logits[:, :V].max(axis=1)
    total = np.exp(logits[:, :V] - largest[:, None]).sum(axis=1)
    losses[:] = np.log(total) + largest - logits[rows, targets]


def classifier_forward_backward_ref(losses, logits, targets, dloss, V):
    """Loss, and the gradient in place of the logits."""
    rows = np.arange(len(targets))
    used = logits[:, :V]
    at_target = logits[rows, targets]
    largest = used.max(axis=1)
    used -= largest[:, None]
    np.exp(used, out=used)
    total = used.sum(axis=1)
    losses[:] = np.log(total) + largest - at_target
    used *= (dloss / total)[:, None]
    logits[rows, targets] -= dloss
    logits[:, V:] = 0


def accumulate_mean_ref(mean, values):
    """mean[0] += the mean of values, summed in float64 and rounded once."""
    mean += values.dtype.type(values.mean(dtype=np.float64))


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(device=True)
def mask_padding(x, v, V, first=0):
    """Of x[first : first + 8], the logits from column v on, those that are padding become the lowest number."""
    if v + WIDTH > V:
        for k in range(WIDTH):
            x[first + k] = x[first + k] if v + k < V else LOWEST


@cuda.jit(device=True)
def largest_and_total(logits, row, V):
    """(m, Σ_v exp(logits[row, v] - m)), m the largest of the row's V logits, in one pass. All threads of the block get it.

    Each thread rescales its sum whenever it meets a larger logit; at the end all sums are rescaled to the row's largest
    (Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", arXiv:1805.02867).
    """
    Vp = logits.shape[1]
    x = cuda.local.array(WIDTH, float32)
    largest, total = LOWEST, ZERO
    for v in range(cuda.threadIdx.x * WIDTH, V, cuda.blockDim.x * WIDTH):
        load8(logits, row * Vp + v, x)
        mask_padding(x, v, V)
        before = largest
        for k in range(WIDTH):
            largest = maximum(largest, x[k])
        total *= exp2((before - largest) * LOG2_E)
        for k in range(WIDTH):
            total += exp2((x[k] - largest) * LOG2_E)
    of_row = block_max(largest)
    return of_row, block_sum(total * exp2((largest - of_row) * LOG2_E))


@cuda.jit(cache=True)
def classifier_forward_kernel(losses, logits, targets, V):
    """One block a row."""
    row = cuda.blockIdx.x
    largest, total = largest_and_total(logits, row, V)
    if cuda.threadIdx.x == 0:
        losses[row] = log(total) + largest - load1(logits, row * logits.shape[1] + targets[row])


def eights_of_columns(Vp):
    """How many eights of a row's columns a thread of the next kernel holds."""
    return -(-Vp // SPAN)


@functools.cache
def make_training_kernel(V, Vp):
    """classifier_forward_backward_kernel for rows of V logits and Vp - V of padding."""
    EIGHTS = eights_of_columns(Vp)
    WHOLE = V // SPAN  # of these eights: in every thread logits, all of them. The compiler drops what need not be asked of them
    HELD, OTHERS = EIGHTS * WIDTH, PLACES - 1
    BOUNDS = {} if SIMULATING else {"launch_bounds": (TRAINING_THREADS, 1)}

    @cuda.jit(device=True)
    def send_for(numbers, place, logits, row):
        """Ask for this thread's logits of a row: one group of copies, an empty one after the last row."""
        if row < logits.shape[0]:
            for e in range(EIGHTS):
                v = e * SPAN + cuda.threadIdx.x * WIDTH
                if e < WHOLE or v < Vp:
                    copy8_async(numbers, place * EIGHTS * SPAN + v, logits, row * Vp + v)
        commit_copies()

    @cuda.jit(cache=True, **BOUNDS)
    def classifier_forward_backward_kernel(losses, logits, targets, dloss):
        """A block takes every so-maniest row. A thread works on the same columns all the time, so it waits for its own copies only."""
        numbers = shared_numbers(logits)
        thread, step = cuda.threadIdx.x, cuda.gridDim.x
        x = cuda.local.array(HELD, float32)  # eight by eight: logits, then their exponentials, then gradients
        for ahead in range(PLACES):
            send_for(numbers, ahead, logits, cuda.blockIdx.x + ahead * step)
        place = 0
        for row in range(cuda.blockIdx.x, logits.shape[0], step):
            target = targets[row]
            at_target = load1(logits, row * Vp + target)  # before the barriers of block_max; gradients are written after them
            wait_for_copies(OTHERS)
            for e in range(EIGHTS):
                load8(numbers, (place * EIGHTS + e) * SPAN + thread * WIDTH, x, e * WIDTH)
            for e in range(WHOLE, EIGHTS):
                mask_padding(x, e * SPAN + thread * WIDTH, V, e * WIDTH)
            send_for(numbers, place, logits, row + PLACES * step)

            largest, total = LOWEST, ZERO
            for i in range(HELD):
                largest = maximum(largest, x[i])
            largest = block_max(largest)
            for i in range(HELD):
                x[i] = exp2((x[i] - largest) * LOG2_E)  # 0 for padding
                total += x[i]
            total = block_sum(total)
            if thread == 0:
                losses[row] = log(total) + largest - at_target

            scale = dloss / total
            for i in range(HELD):
                x[i] *= scale
            for e in range(EIGHTS):
                v = e * SPAN + thread * WIDTH
                if e < WHOLE or v < Vp:
                    store8(logits, row * Vp + v, x, e * WIDTH)
            if thread == target // WIDTH % TRAINING_THREADS:  # the thread that has just stored the target's gradient, without its -1
                store1(logits, row * Vp + target, exp2((at_target - largest) * LOG2_E) * scale - dloss)
            place = (place + 1) % PLACES

    return classifier_forward_backward_kernel


@cuda.jit(device=True)
def write_gradients(logits, row, source, start, target, V, largest, scale, dloss):
    """Overwrite a row with its gradients. source: where the logits stand, from element `start` on: the row itself, or a copy of it."""
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
    """The same for rows of which only one fits into shared memory, such as 50,304 in float32: a block a row, two exponentials a logit."""
    numbers = shared_numbers(logits)
    row, Vp = cuda.blockIdx.x, logits.shape[1]
    first, step = cuda.threadIdx.x * WIDTH, cuda.blockDim.x * WIDTH
    for v in range(first, Vp, step):
        copy8_async(numbers, v, logits, row * Vp + v)
    commit_copies()
    target = targets[row]
    at_target = load1(logits, row * Vp + target)  # before the barriers of block_max, and the gradients are written after them
    wait_for_copies(0)

    x = cuda.local.array(WIDTH, float32)
    largest, total = LOWEST, ZERO
    for v in range(first, V, step):
        load8(numbers, v, x)
        mask_padding(x, v, V)
        for k in range(WIDTH):
            largest = maximum(largest, x[k])
    of_row = block_max(largest)
    for v in range(first, V, step):
        load8(numbers, v, x)
        mask_padding(x, v, V)
        for k in range(WIDTH):
            total += exp2((x[k] - of_row) * LOG2_E)
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        losses[row] = log(total) + of_row - at_target
    write_gradients(logits, row, numbers, 0, target, V, of_row, dloss / total, dloss)


@cuda.jit(cache=True)
def classifier_forward_backward_long_kernel(losses, logits, targets, dloss, V):
    """The same for rows that are too long for shared memory: the second pass over the row finds most of it in the L2 cache."""
    row, Vp = cuda.blockIdx.x, logits.shape[1]
    target = targets[row]
    at_target = load1(logits, row * Vp + target)
    largest, total = largest_and_total(logits, row, V)
    if cuda.threadIdx.x == 0:
        losses[row] = log(total) + largest - at_target
    write_gradients(logits, row, logits, row * Vp, target, V, largest, dloss / total, dloss)


@cuda.jit(cache=True)
def accumulate_mean_kernel(mean, values):
    """One block: a thread adds up every so-maniest eight values, then the block its threads."""
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
    """Cross-entropy of every row; the logits stay. The arrays decide: NumPy runs the reference, device arrays the kernel.

    losses [w] (N,) float32, nats   logits [r] (N, Vp)   targets [r] (N,) int32 in [0, V)   V at most Vp
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    _check("classifier_forward", losses, logits, targets, V)
    if on_host(logits):
        return classifier_forward_ref(losses, logits, targets, V)
    classifier_forward_kernel[logits.shape[0], THREADS, compute_stream()](losses, logits, targets, V)


def classifier_forward_backward(losses, logits, targets, dloss, V):
    """Cross-entropy of every row; the logits become their own gradients, times dloss.

    losses [w] (N,) float32, nats   logits [r], then [w] (N, Vp)   targets [r] (N,) int32 in [0, V)
    dloss  float, the gradient of each row's loss: 1 / (N * grad_accum_steps) for a mean   V at most Vp
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    _check("classifier_forward_backward", losses, logits, targets, V)
    if on_host(logits):
        return classifier_forward_backward_ref(losses, logits, targets, logits.dtype.type(dloss), V)
    N, Vp = logits.shape
    eights = eights_of_columns(Vp)
    row_bytes, places_bytes = Vp * logits.dtype.itemsize, PLACES * eights * SPAN * logits.dtype.itemsize
    arguments = losses, logits, targets, np.float32(dloss)
    if eights <= MOST_EIGHTS and places_bytes <= most_shared_bytes():
        blocks = max(1, 4 // eights) * (3 if SIMULATING else device_properties()[1])  # of long rows one to a multiprocessor
        launch_with_shared_memory(make_training_kernel(V, Vp), min(N, blocks), TRAINING_THREADS, places_bytes, *arguments)
    elif row_bytes <= most_shared_bytes():
        launch_with_shared_memory(classifier_forward_backward_shared_kernel, N, TRAINING_THREADS, row_bytes, *arguments, V)
    else:
        classifier_forward_backward_long_kernel[N, THREADS, compute_stream()](*arguments, V)


def accumulate_mean(mean, values):
    """mean[0] += the mean of values: how the losses of micro-steps are gathered without waiting for the GPU.

    mean [+] (1,) float32   values [r] (N,) float32.   Raises ValueError or TypeError where a shape or type does not fit.
    """
    check_arrays("accumulate_mean", {"N": values.shape[0]}, mean=(mean, "f32 1"), values=(values, "f32 N"))
    if on_host(values):
        return accumulate_mean_ref(mean, values)
    accumulate_mean_kernel[1, THREADS, compute_stream()](mean, values)


def _check(function, losses, logits, targets, V):
    N, Vp = logits.shape
    if not 0 < V <= Vp:
        raise ValueError(f"{function}: V must be between 1 and Vp = {Vp}, got {V}")
    check_arrays(function, {"N": N, "Vp": Vp}, logits=(logits, "N Vp"), losses=(losses, "f32 N"), targets=(targets, "i32 N"))
    if not on_host(logits):
        check_width(function, Vp=Vp)
