"""The encoder: looking rows up is easy; adding to them in a fixed order, when one word stands in every tenth place, is not.

forward     eight_per_thread             a thread makes eight numbers wherever they are: two divisions and a token to each load
            the package                  a warp makes a row: one token, no division

backward    block_per_token              dwte: a block adds up all places of a token; the most frequent word keeps everybody waiting
            the package                  a token's places are cut into pieces, and their sums added up by a second kernel
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import COLUMN_WARPS, COLUMNS_PER_WARP, WARP_SIZE, add_up_warps
from gpt2_numba.layers.fast.encoder import encoder_backward_wpe_kernel

ZERO = np.float32(0.0)
THREADS = WARP_SIZE if SIMULATING else 256


@cuda.jit
def eight_per_thread_kernel(out, tokens, wte, wpe):
    """One thread makes eight channels of one row."""
    C, T = out.shape[1], tokens.shape[1]
    index = cuda.grid(1) * WIDTH
    if index >= out.size:
        return
    row, c = index // C, index % C
    b, t = row // T, row % T
    x = cuda.local.array(WIDTH, float32)
    p = cuda.local.array(WIDTH, float32)
    load8(wte, tokens[b, t] * C + c, x)
    load8(wpe, t * C + c, p)
    for k in range(WIDTH):
        x[k] += p[k]
    store8(out, index, x)


def eight_per_thread(out, tokens, wte, wpe):
    """Threads know nothing of rows."""
    eight_per_thread_kernel[-(-out.size // (THREADS * WIDTH)), THREADS, compute_stream()](out, tokens, wte, wpe)


@cuda.jit
def block_per_token_kernel(dwte, dout, places, pieces):
    """One block adds up COLUMNS_PER_WARP channels of all places of a token: its warps take every so-maniest each, and join their sums."""
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    C, piece = dout.shape[1], cuda.blockIdx.x
    token, first, count = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2]
    if count == 0:  # not a token's first piece: the same for all threads of the block, so the barriers below have them all
        return
    last = pieces[piece + count, 1]
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(WIDTH, float32)
    for k in range(WIDTH):
        total[k] = ZERO
    if c < C:
        for i in range(first + warp, last, COLUMN_WARPS):
            load8(dout, places[i] * C + c, x)
            for k in range(WIDTH):
                total[k] += x[k]
    add_up_warps(total)
    if warp == 0 and c < C:
        load8(dwte, token * C + c, x)
        for k in range(WIDTH):
            x[k] += total[k]
        store8(dwte, token * C + c, x)


def block_per_token(dwte, dwpe, dout, places, pieces, scratch, T):
    """However many places it has."""
    C = dout.shape[1]
    encoder_backward_wpe_kernel[-(-T * C // (THREADS * WIDTH)), THREADS, compute_stream()](dwpe, dout, T)
    grid = (len(pieces) - 1, -(-C // COLUMNS_PER_WARP))
    block_per_token_kernel[grid, COLUMN_WARPS * WARP_SIZE, compute_stream()](dwte, dout, places, pieces)


LADDER = {"encoder_forward": (eight_per_thread,), "encoder_backward": (block_per_token,)}
