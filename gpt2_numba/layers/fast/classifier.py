"""The classifier's end, fast: a row of 50,304 logits is read once and written once, with one exponential for each logit.

What is different from the plain kernels of layers/classifier.py, and what it gains. Figures: one H200, 2026-11-22, bf16, V = 50,257, as
shares of the rate of a device-to-device copy; 65,536 rows (GPT-2 124M) / 16,384 rows (1558M).

    Memory is moved 16 bytes at a time: eight neighbouring logits to a step, whatever their type (gpu/memory_access.py).

    Exponentials are powers of two, exp(x) = exp2(x log2 e): one special instruction. A multiprocessor makes 16 of them in a cycle, so their
    number counts. With fewer instructions a first version of this kernel went from 57 to 80 %.

    Largest logit and sum in one pass (classifier_forward, and rows too long for what follows): a thread rescales its sum whenever it meets
    a larger logit, so the row is read once less than in the plain kernel.

    The row stays in registers, up to 104 logits a thread, from its one read to its one write: the exponentials of the sum become the
    gradients, so there is one for each logit instead of two.

    The block stays and takes row after row, and the next two are copied to shared memory meanwhile (cp.async). A row in registers leaves a
    multiprocessor no room for a second block, which would read while this one computes, so the block does both: 94 / 90 % with a cool GPU,
    95 / 95 % after 20 ms of matrix products; with one place in shared memory instead of two 75 / 70 and 76 / 75 %.

    Rows of which shared memory holds only one, such as 50,304 logits in float32, have a kernel of their own: a block a row, two
    exponentials a logit. It reaches 74 %, and in bfloat16, in the measurement above, 75 / 66 % cool and 74 / 71 % hot. Rows that are longer
    still are read twice, the second time mostly from the L2 cache.

    | array          | shape, type                 | classifier_forward (validation) | classifier_forward_backward (training)  |
    | -------------- | --------------------------- | ------------------------------- | --------------------------------------- |
    | logits         | (N, Vp) float32 or bfloat16 | [r] Vp a multiple of 8          | [r], then [w]: dlogits                  |
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
    most_shared_bytes,
    shared_numbers,
    wait_for_copies,
)
from gpt2_numba.layers.classifier import check_classifier

ZERO = np.float32(0.0)
THREADS = 64 if SIMULATING else 1024  # one block a row of 50,304 logits: about six loads a thread
TRAINING_THREADS = 32 if SIMULATING else 512  # more have fewer registers each; with 640 the kernel was a tenth slower
SPAN = TRAINING_THREADS * WIDTH  # columns that a training block takes side by side
MOST_EIGHTS = 13  # of columns that a thread has registers for: rows of up to 53,248 logits
PLACES = 2  # for rows in shared memory


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
    row_max = block_max(largest)
    return row_max, block_sum(total * exp2((largest - row_max) * LOG2_E))


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
    WHOLE = V // SPAN  # of these eights: in every thread logits, all of them. The compiler drops the conditions that they always meet
    HELD, OTHERS = EIGHTS * WIDTH, PLACES - 1
    BOUNDS = {} if SIMULATING else {"launch_bounds": (TRAINING_THREADS, 1)}

    @cuda.jit(device=True)
    def begin_copy(numbers, place, logits, row):
        """Begin to copy this thread's logits of a row: one group of copies, an empty one after the last row."""
        if row < logits.shape[0]:
            for e in range(EIGHTS):
                v = e * SPAN + cuda.threadIdx.x * WIDTH
                if e < WHOLE or v < Vp:
                    copy8_async(numbers, place * EIGHTS * SPAN + v, logits, row * Vp + v)
        commit_copies()

    @cuda.jit(cache=True, **BOUNDS)
    def classifier_forward_backward_kernel(losses, logits, targets, dloss):
        """A block takes every gridDim.x-th row. A thread has the same columns in all of them, so it waits for its own copies only."""
        numbers = shared_numbers(logits)
        thread, step = cuda.threadIdx.x, cuda.gridDim.x
        x = cuda.local.array(HELD, float32)  # eight by eight: logits, then their exponentials, then gradients
        for ahead in range(PLACES):
            begin_copy(numbers, ahead, logits, cuda.blockIdx.x + ahead * step)
        place = 0
        for row in range(cuda.blockIdx.x, logits.shape[0], step):
            target = targets[row]
            at_target = load1(logits, row * Vp + target)  # before the barriers of block_max; gradients are written after them
            wait_for_copies(OTHERS)
            for e in range(EIGHTS):
                if e < WHOLE or e * SPAN + thread * WIDTH < Vp:  # what send_for has asked for
                    load8(numbers, (place * EIGHTS + e) * SPAN + thread * WIDTH, x, e * WIDTH)
            for e in range(WHOLE, EIGHTS):
                mask_padding(x, e * SPAN + thread * WIDTH, V, e * WIDTH)
            begin_copy(numbers, place, logits, row + PLACES * step)

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
    """Overwrite a row with its gradients. source: holds the logits from element `start` on: the row itself, or a copy of it."""
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
    row_max = block_max(largest)
    for v in range(first, V, step):
        load8(numbers, v, x)
        mask_padding(x, v, V)
        for k in range(WIDTH):
            total += exp2((x[k] - row_max) * LOG2_E)
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        losses[row] = log(total) + row_max - at_target
    write_gradients(logits, row, numbers, 0, target, V, row_max, dloss / total, dloss)


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
    """One block. Its threads take turns, eight values each; then their sums are added."""
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
    """Cross-entropy of every row; the logits stay as they are.

    losses [w] (N,) float32, nats   logits [r] (N, Vp)   targets [r] (N,) int32 in [0, V)   V at most Vp
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    _check("classifier_forward", losses, logits, targets, V)
    classifier_forward_kernel[logits.shape[0], THREADS, compute_stream()](losses, logits, targets, V)


def classifier_forward_backward(losses, logits, targets, dloss, V):
    """Cross-entropy of every row; the logits become their own gradients, times dloss.

    losses [w] (N,) float32, nats   logits [r], then [w] (N, Vp)   targets [r] (N,) int32 in [0, V)
    dloss  float, the gradient of each row's loss: 1 / (N * grad_accum_steps) for a mean   V at most Vp
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    _check("classifier_forward_backward", losses, logits, targets, V)
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
    check_on_device("accumulate_mean", values, "layers/classifier.py")
    accumulate_mean_kernel[1, THREADS, compute_stream()](mean, values)


def _check(function, losses, logits, targets, V):
    check_classifier(function, losses, logits, targets, V)
    check_on_device(function, logits, "layers/classifier.py")
    check_width(function, Vp=logits.shape[1])
