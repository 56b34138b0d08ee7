"""A matrix product by tiles in shared memory.

    out[n, o] = Σ_c inp[n, c] weight[c, o]

`inp` (N, C) and `weight` (C, OC) are only read [r], `out` (N, OC) is written [w]; all are float32. Mind that `weight` is not stored as in
the chapter: it is (C, OC), the transpose. N, C and OC are multiples of 16. The launch is given: a block of 16 × 16 threads for each tile of
16 × 16 numbers of `out`, a thread for each number. Go along C in steps of 16. In each step the block loads a tile of `inp` and a tile of
`weight` into shared memory, a number of each for each thread, neighbouring threads neighbouring numbers; then every thread adds 16 products
to its sum. So a thread reads global memory 2 C / 16 times, not 2 C times: more is refused. Where must the threads wait for each other?

    python -m tutorials.check 04_tile
"""

import numpy as np
from numba import cuda, float32

TILE = 16
ZERO = np.float32(0)


@cuda.jit
def tile_kernel(out, inp, weight):
    """Thread (x, y) of the block writes out[row0 + y, col0 + x]."""
    a_tile = cuda.shared.array((TILE, TILE), float32)  # [row of out, k], from inp
    b_tile = cuda.shared.array((TILE, TILE), float32)  # [k, column of out], from weight
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    total = ZERO
    # your lines:
    for k0 in range(0, inp.shape[1], TILE):
        a_tile[y, x] = inp[row0 + y, k0 + x]
        b_tile[y, x] = weight[k0 + y, col0 + x]
        cuda.syncthreads()
        for k in range(TILE):
            total += a_tile[y, k] * b_tile[k, x]
        cuda.syncthreads()
    out[row0 + y, col0 + x] = total
    # end of your lines


def multiply(out, inp, weight):
    """Launch a block for each tile of out."""
    N, OC = out.shape
    tile_kernel[(OC // TILE, N // TILE), (TILE, TILE)](out, inp, weight)
