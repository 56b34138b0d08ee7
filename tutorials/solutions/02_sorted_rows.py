"""Touch less: a block reads only the rows of its own token.

    dwte[v, c] += the sum of dout[places[i], c] over starts[v] <= i < starts[v + 1]

`dwte` [+] is float32 of shape (V, C), `dout` [r] float32 (N, C). `places` [r] int32 (N,) and `starts` [r] int32 (V + 1,) are what
02_sort_places returns: places[starts[v] : starts[v + 1]] are the rows of dout whose token is v. The launch is given: a block for each v.
Read each row of dout once, and read and write a row of dwte at most once, and not at all if its token does not occur. The check counts the
pieces of memory.

    python -m tutorials.check 02_sorted_rows
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import THREADS

ZERO = np.float32(0)


@cuda.jit
def add_sorted_rows_kernel(dwte, dout, places, starts):
    """Block v adds up the rows of token v."""
    v = cuda.blockIdx.x
    # your lines:
    first, stop = starts[v], starts[v + 1]
    if first < stop:
        for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x):
            total = ZERO
            for i in range(first, stop):
                total += dout[places[i], c]
            dwte[v, c] += total
    # end of your lines


def add_sorted_rows(dwte, dout, places, starts):
    """Launch a block for each row of dwte."""
    add_sorted_rows_kernel[dwte.shape[0], THREADS](dwte, dout, places, starts)
