"""Two faults that never show as long as all sizes are multiples of the tile.

    out[n, o] = Σ_c inp[n, c] weight[o, c]

`inp` (N, C) and `weight` (OC, C) are only read [r], `out` (N, OC) is written [w]; all are float32, and now of *any* sizes. The kernel is
complete, and was tested with N = 8, C = 16, OC = 8: every number was right. With C = 18 all are wrong. Its author found one of two causes:
without it the numbers were still wrong, by other amounts, and with C = 2 some were NaN, some of the time. Here both are in the kernel.
There are four places for your lines: two of them are needed, two are not. Add lines, change none.

    python -m tutorials.check 04_tile_edges
"""

import numpy as np
from numba import cuda, float32

TILE = 4
ZERO = np.float32(0)


@cuda.jit
def edges_kernel(out, inp, weight):
    """Thread (x, y) of the block writes out[row0 + y, col0 + x]."""
    a_tile = cuda.shared.array((TILE, TILE), float32)  # [row of out, k]
    b_tile = cuda.shared.array((TILE, TILE), float32)  # [k, column of out]
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    (N, C), OC = inp.shape, weight.shape[0]
    steps = C // TILE
    # your lines:
    steps = (C + TILE - 1) // TILE
    # end of your lines
    total = ZERO
    for step in range(steps):
        c = step * TILE + x  # the column that this thread loads
        if row0 + y < N and c < C:
            a_tile[y, x] = inp[row0 + y, c]
        if col0 + y < OC and c < C:
            b_tile[x, y] = weight[col0 + y, c]
        # your lines:
        if row0 + y >= N or c >= C:
            a_tile[y, x] = ZERO
        if col0 + y >= OC or c >= C:
            b_tile[x, y] = ZERO
        # end of your lines
        cuda.syncthreads()
        for k in range(TILE):
            total += a_tile[y, k] * b_tile[k, x]
        # your lines:
        # end of your lines
        cuda.syncthreads()
    # your lines:
    # end of your lines
    if row0 + y < N and col0 + x < OC:
        out[row0 + y, col0 + x] = total


def multiply(out, inp, weight):
    """Launch a block for each tile of out, those that stick out included."""
    N, OC = out.shape
    blocks = (OC + TILE - 1) // TILE, (N + TILE - 1) // TILE
    edges_kernel[blocks, (TILE, TILE)](out, inp, weight)
