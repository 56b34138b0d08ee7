"""From partial sums to the norm, and to the scale that clips it.

    norm = sqrt(Σ partials)        scale = max_norm / norm  if norm > max_norm, else 1;  NaN if norm or loss[0] is not finite

`partials` [r] is float32, of any length, also more than a block has threads; `loss` [r] is float32 (1,): all that matters is whether it is
finite; `max_norm` is a float32. `result` [w] is float32 (2,): result[0] is the norm, whatever it is, and result[1] the scale, which AdamW
reads on the GPU. One block of 32 threads. `block_sum(value)` is the one of chapter 00: all threads must call it, and all get the sum.
math.sqrt and math.isfinite work in kernels. This function is your own GPT-2's.

    python -m tutorials.check 09_norm_and_scale
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(math.nan)


@cuda.jit
def norm_and_scale_kernel(result, partials, loss, max_norm):
    """One block."""
    # your lines:
    total = ZERO
    for i in range(cuda.threadIdx.x, partials.shape[0], cuda.blockDim.x):
        total += partials[i]
    norm = math.sqrt(block_sum(total))
    if cuda.threadIdx.x == 0:
        scale = max_norm / norm if norm > max_norm else ONE
        result[0] = norm
        result[1] = scale if math.isfinite(norm) and math.isfinite(loss[0]) else NAN
    # end of your lines


def norm_and_scale(result, partials, loss, max_norm):
    """Launch one block. A Python float would be float64 in the kernel, so it gets a float32."""
    norm_and_scale_kernel[1, THREADS](result, partials, loss, np.float32(max_norm))
