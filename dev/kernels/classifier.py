"""The classifier's end: how often a row of 50,304 logits travels.

training    three_passes                 largest, sum, gradients: the row is read three times, two bytes a load
            second_read_from_cache       largest and sum in one pass; of the second read some comes from the L2 cache
            row_in_shared_memory         one read; but two exponentials a logit, and nothing is read while a block computes or writes
            the package                  the row stays in registers: one exponential; the block's next rows come meanwhile
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import exp, log, maximum
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store1, store8
from gpt2_numba.gpu.reductions import LOWEST, block_max, block_sum
from gpt2_numba.gpu.shared_memory import launch_with_shared_memory
from gpt2_numba.layers.fast.classifier import TRAINING_THREADS, classifier_forward_backward_shared_kernel, largest_and_total

ZERO = np.float32(0.0)
THREADS = 64 if SIMULATING else 1024


@cuda.jit
def three_passes_kernel(losses, logits, targets, dloss, V):
    """The definition: a block a row, a thread every so-maniest logit."""
    row, first, step = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    Vp, target = logits.shape[1], targets[row]
    largest, total = LOWEST, ZERO
    for v in range(first, V, step):
        largest = maximum(largest, load1(logits, row * Vp + v))
    largest = block_max(largest)
    for v in range(first, V, step):
        total += exp(load1(logits, row * Vp + v) - largest)
    total = block_sum(total)
    if first == 0:
        losses[row] = log(total) + largest - load1(logits, row * Vp + target)
    cuda.syncthreads()  # the target's logit has been read: it may be overwritten
    for v in range(first, Vp, step):
        gradient = exp(load1(logits, row * Vp + v) - largest) / total - (float32(1) if v == target else ZERO)
        store1(logits, row * Vp + v, gradient * dloss if v < V else ZERO)


@cuda.jit
def second_read_from_cache_kernel(losses, logits, targets, dloss, V):
    """Largest and sum in one pass: a thread rescales its sum whenever it meets a larger logit. 16 bytes a load."""
    row, Vp = cuda.blockIdx.x, logits.shape[1]
    target = targets[row]
    largest, total = largest_and_total(logits, row, V)
    if cuda.threadIdx.x == 0:
        losses[row] = log(total) + largest - load1(logits, row * Vp + target)
    cuda.syncthreads()
    scale = dloss / total
    x = cuda.local.array(WIDTH, float32)
    for v in range(cuda.threadIdx.x * WIDTH, Vp, cuda.blockDim.x * WIDTH):
        load8(logits, row * Vp + v, x)
        for k in range(WIDTH):
            x[k] = exp(x[k] - largest) * scale - (dloss if v + k == target else ZERO) if v + k < V else ZERO
        store8(logits, row * Vp + v, x)


def three_passes(losses, logits, targets, dloss, V):
    """Largest, sum, gradients: each reads the row."""
    three_passes_kernel[len(logits), THREADS, compute_stream()](losses, logits, targets, np.float32(dloss), V)


def second_read_from_cache(losses, logits, targets, dloss, V):
    """Two passes over the row."""
    second_read_from_cache_kernel[len(logits), THREADS, compute_stream()](losses, logits, targets, np.float32(dloss), V)


def row_in_shared_memory(losses, logits, targets, dloss, V):
    """The package's own kernel for rows of float32."""
    nbytes, arguments = logits.shape[1] * logits.dtype.itemsize, (losses, logits, targets, np.float32(dloss), V)
    launch_with_shared_memory(classifier_forward_backward_shared_kernel, len(logits), TRAINING_THREADS, nbytes, *arguments)


LADDER = {"classifier_forward_backward": (three_passes, second_read_from_cache, row_in_shared_memory)}
