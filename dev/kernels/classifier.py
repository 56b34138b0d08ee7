"""The classifier: how often a row of 50,304 logits is read and written.

validation  plain                   maximum, sum: two reads, 4 bytes per load
            fast                    maximum and sum in one pass, 16 bytes per load
training    plain                   maximum, sum, gradients: three reads, 4 bytes per load
            online_softmax          maximum and sum in one pass, 16 bytes per load; part of the second read hits the L2 cache
            row_in_shared_memory    one read; but two exponentials per logit, and nothing is read while a block computes or writes
            fast                    the row stays in registers: one exponential; the block prefetches its next rows. float32: as before
mean        plain                   one block of 256 threads, 4 bytes per load
            fast                    one block of 1,024 threads, 16 bytes per load
"""

import numpy as np
from numba import cuda, float32

from dev.kernels import in_both_precisions
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float32_math import exp, log
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, store8
from gpt2_numba.gpu.shared_memory import launch_with_shared_memory, max_shared_bytes
from gpt2_numba.layers import classifier
from gpt2_numba.layers.fast import classifier as fast
from gpt2_numba.layers.fast.classifier import row_max_and_sum_exp

ZERO = np.float32(0.0)
THREADS = 64 if SIMULATING else 1024


@in_both_precisions
def fast_classifier_forward(losses, logits, targets, V):
    """The trainer's kernel for validation: one pass, 16 bytes per load. Before, the row was read twice, with narrow loads."""
    fast.classifier_forward(losses, logits, targets, V)


@cuda.jit
def online_softmax_kernel(losses, logits, targets, dloss, V):
    """Maximum and sum in one pass: a thread rescales its sum whenever it meets a larger logit. 16 bytes per load."""
    row, Vp = cuda.blockIdx.x, logits.shape[1]
    target = targets[row]
    largest, total = row_max_and_sum_exp(logits, row, V)
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


@in_both_precisions
def online_softmax(losses, logits, targets, dloss, V):
    """A thread rescales its sum when it meets a larger logit, so one pass gives maximum and sum. Before, each took a pass of its own."""
    online_softmax_kernel[len(logits), THREADS, compute_stream()](losses, logits, targets, np.float32(dloss), V)


@in_both_precisions
def row_in_shared_memory(losses, logits, targets, dloss, V):
    """The trainer's kernel for float32 rows: the gradient is computed from a copy in shared memory. Before, the row was read again.

    Rows that exceed the shared memory of a block are left to the rung before: 50,304 float32 values need 197 KB, which an A100 does not
    have.
    """
    nbytes, arguments = logits.shape[1] * logits.dtype.itemsize, (losses, logits, targets, np.float32(dloss), V)
    if nbytes > max_shared_bytes():
        return online_softmax(losses, logits, targets, dloss, V)
    launch_with_shared_memory(fast.classifier_forward_backward_shared_kernel, len(logits), fast.TRAINING_THREADS, nbytes, *arguments)


@in_both_precisions
def fast_forward_backward(losses, logits, targets, dloss, V):
    """The trainer's kernel. Before, memory was idle while a block computed."""
    fast.classifier_forward_backward(losses, logits, targets, dloss, V)


def fast_accumulate_mean(mean, values):
    """The trainer's kernel: 1,024 threads instead of 256, 16 bytes per load instead of 4."""
    fast.accumulate_mean(mean, values)


LADDER = {
    "classifier_forward": (classifier.classifier_forward, fast_classifier_forward),
    "classifier_forward_backward": (
        classifier.classifier_forward_backward, online_softmax, row_in_shared_memory, fast_forward_backward,
    ),
    "accumulate_mean": (classifier.accumulate_mean, fast_accumulate_mean),
}  # fmt: skip
