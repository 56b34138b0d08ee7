"""The sum of the squares of all gradients, in partial sums.

    Σ partials  grows by  Σ_i grads[i]²

`grads` [r] is float32 (count,), for any count; `partials` [+] is float32, and has a number for each block of the launch: block b adds the
sum of its share to partials[b]. Which share it takes is yours to choose, but each gradient belongs to one block, and neighbouring threads
read neighbouring gradients. A model stores its gradients in several arrays and calls this once for each: what partials hold is added to.
The order of all additions must be fixed, so no atomic ones. `block_sum(value)` is the one of chapter 00: all threads of the block must call
it, and all get the sum. cuda.gridsize(1) is the number of all threads. This function is your own GPT-2's.

    python -m tutorials.check 09_sum_of_squares
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
ZERO = np.float32(0)


@cuda.jit
def sum_of_squares_kernel(partials, grads):
    """Block b adds its share to partials[b]."""
    # your lines:
    # end of your lines


def sum_of_squares(partials, grads):
    """Launch a block for each partial sum."""
    sum_of_squares_kernel[partials.shape[0], THREADS](partials, grads)
