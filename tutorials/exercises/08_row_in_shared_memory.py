"""Loss and gradient of a row that is read once.

    losses[n]     = log Σ_w exp(logits[n, w]) - logits[n, targets[n]]
    dlogits[n, v] = exp(logits[n, v]) / Σ_w exp(logits[n, w]) - [v = targets[n]]

`logits` [r] and `dlogits` [w] are float32 (N, V), for any N and for V up to 256; `targets` [r] is int32 (N,), each in [0, V); `losses` [w] is
float32 (N,). No padding this time. The launch is given: a block of 32 threads for each row. `row_copy` is shared memory, seen by all threads of
the block, with room for the row. Read each logit from global memory ONCE, into `row_copy`, and make all passes from there; the target's logit is
there, too. (`dlogits` is not to be used as a notebook: it is in global memory.) Which of your accesses to `row_copy` need a barrier between them,
and which of these have one already, inside block_max or block_sum?

    python -m tutorials.check 08_row_in_shared_memory
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.block_sum import block_max, block_sum

THREADS, MOST_COLUMNS = 32, 256
ZERO, ONE, MINUS_INFINITY = np.float32(0), np.float32(1), np.float32(-np.inf)


@cuda.jit
def loss_and_gradient_kernel(losses, dlogits, logits, targets):
    """A block for each row, which is in shared memory from its one read to its one write."""
    row_copy = cuda.shared.array(MOST_COLUMNS, float32)
    row, V, target = cuda.blockIdx.x, logits.shape[1], targets[cuda.blockIdx.x]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x
    # your lines:
    # end of your lines


def loss_and_gradient(losses, dlogits, logits, targets):
    """Launch a block for each row."""
    loss_and_gradient_kernel[logits.shape[0], THREADS](losses, dlogits, logits, targets)
