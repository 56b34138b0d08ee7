"""A sum that has the same bits for any number of blocks.

    out[0] = the sum of inp

`inp` is float32 (N,) [r], for any N > 0; `one`, `few` and `many`, float32 (1,) [w], each get its sum, computed with 1, with 3 and with 8
blocks of 32 threads. The launches are given. All three must have the same bits, so the order of the additions must not depend on the number
of blocks. It is this one:

    pieces      inp is cut into pieces of 64 elements; the last one may be shorter. In a piece, thread i adds up elements i and i + 32 of the
                piece, in this order, starting from zero. block_sum (chapter 00) adds up the 32 threads. The result goes to partials[piece].
    partials    One thread adds up the partials, from the first to the last, starting from zero. The result goes to out[0].

There may be more pieces than blocks, and more blocks than pieces. `partials` holds NaN until it is written. `block_sum(value)` returns the
sum over the threads of the block to each of them; all of them must call it.

    python -m tutorials.check 11_fixed_order_sum
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import block_sum

THREADS, PIECE = 32, 64
ZERO = np.float32(0)


@cuda.jit
def add_pieces_kernel(partials, inp):
    """partials[p] = the sum of piece p of inp."""
    i = cuda.threadIdx.x
    # your lines:
    for piece in range(cuda.blockIdx.x, partials.shape[0], cuda.gridDim.x):
        total = ZERO
        for n in range(piece * PIECE + i, min((piece + 1) * PIECE, inp.shape[0]), THREADS):
            total += inp[n]
        total = block_sum(total)
        if i == 0:
            partials[piece] = total
    # end of your lines


@cuda.jit
def add_partials_kernel(out, partials):
    """One thread. out[0] = the sum of partials."""
    # your lines:
    total = ZERO
    for piece in range(partials.shape[0]):
        total += partials[piece]
    out[0] = total
    # end of your lines


def sum_in_blocks(out, inp, blocks):
    """Launch both kernels. blocks: as many as suit the GPU."""
    pieces = (inp.shape[0] + PIECE - 1) // PIECE
    partials = cuda.to_device(np.full(pieces, np.nan, np.float32))
    add_pieces_kernel[blocks, THREADS](partials, inp)
    add_partials_kernel[1, 1](out, partials)


def sum_three_times(one, few, many, inp):
    """The same sum on three GPUs, so to speak."""
    sum_in_blocks(one, inp, 1)
    sum_in_blocks(few, inp, 3)
    sum_in_blocks(many, inp, 8)
