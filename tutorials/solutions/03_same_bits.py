"""Sums whose bits depend on the launch.

    out[c] = Σ over the rows of inp[row, c]

`inp` is float32 (N, C) [r]. For a GPU of many multiprocessors the rows are cut into pieces: block (x, y) has 32 columns, and adds up their
rows of piece y, then of piece y + gridDim.y, ...; a second kernel adds up the pieces. `few` and `many`, float32 (C,) [w], are these sums,
computed with gridDim.y = 2, as on a small GPU, and with 5. Both are right up to rounding, and no test with a tolerance finds anything. But
the same training run, on a GPU with 132 multiprocessors and on one with 108, gives losses that part in the last digits, and soon
altogether.

Mend it with one line, in one of the three marked places: a piece must have 8 rows (the last one may have fewer), whatever the launch. Then
all bits agree, and the check compares all of them.

    python -m tutorials.check 03_same_bits
"""

import numpy as np
from numba import cuda

THREADS = 32
ZERO = np.float32(0)


@cuda.jit
def add_rows_kernel(partials, inp, rows):
    """partials[p, c] = the sum of column c over the rows of piece p, first to last. A piece has `rows` rows."""
    c = cuda.grid(1)
    if c >= inp.shape[1]:
        return
    # your lines:
    # end of your lines
    for piece in range(cuda.blockIdx.y, partials.shape[0], cuda.gridDim.y):
        total = ZERO
        for row in range(piece * rows, min(inp.shape[0], (piece + 1) * rows)):
            total += inp[row, c]
        partials[piece, c] = total


@cuda.jit
def add_pieces_kernel(out, partials):
    """out[c] = the sum over the pieces, first to last."""
    c = cuda.grid(1)
    if c < out.shape[0]:
        total = ZERO
        for piece in range(partials.shape[0]):
            total += partials[piece, c]
        # your lines:
        # end of your lines
        out[c] = total


def sum_rows(out, inp, blocks):
    """Launch both kernels. blocks: how many share the rows of 32 columns; as many as fit onto the GPU."""
    N, C = inp.shape
    columns = (C + THREADS - 1) // THREADS
    rows = (N + blocks - 1) // blocks  # of a piece
    # your lines:
    rows = 8
    # end of your lines
    pieces = (N + rows - 1) // rows
    partials = cuda.device_array((pieces, C), np.float32)
    add_rows_kernel[(columns, blocks), THREADS](partials, inp, rows)
    add_pieces_kernel[columns, THREADS](out, partials)


def sum_on_two_gpus(few, many, inp):
    """The same sums, as a small GPU and as a larger one compute them."""
    sum_rows(few, inp, 2)
    sum_rows(many, inp, 5)
