"""The encoder: looking rows up is easy; adding to them in a fixed order, when one token fills every tenth position, is not.

forward    plain                a block per position: 4 bytes per load
           eight_per_thread     16 bytes per load, but each thread needs two divisions and a token
           fast                 a warp per position: whole rows of two sequences on their way at once, no division
backward   plain                a block per row of dwte, which scans all positions for its token
           block_per_token      the host sorts positions by token: a block reads only its own; that of the most frequent token finishes last
           fast                 the positions of a token are cut into pieces, whose sums a second kernel adds
"""

import numpy as np
from numba import cuda, float32

from dev.kernels import buffer, in_both_precisions
from gpt2_numba.gpu.backend import SIMULATING, compute_stream, copy_to_host, to_device
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import COLUMN_WARPS, COLUMNS_PER_WARP, WARP_SIZE, add_up_warps
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers import encoder
from gpt2_numba.layers.fast import encoder as fast

ZERO = np.float32(0.0)
THREADS = WARP_SIZE if SIMULATING else 256


@cuda.jit
def eight_per_thread_kernel(out, tokens, wte, wpe):
    """One thread computes eight channels of a row."""
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


@in_both_precisions
def eight_per_thread(out, tokens, wte, wpe):
    """Wide loads. Before, four times as many instructions moved the same bytes."""
    eight_per_thread_kernel[ceil_div(out.size, THREADS * WIDTH), THREADS, compute_stream()](out, tokens, wte, wpe)


@in_both_precisions
def fast_forward(out, tokens, wte, wpe):
    """The trainer's kernel: no divisions of indices. Faster in bfloat16, where they took longer than the memory accesses; not in float32."""
    fast.encoder_forward(out, tokens, wte, wpe)


_sorted = {}  # identity of a device array of tokens -> the array, its places and pieces


def places_and_pieces(tokens, V):
    """The positions sorted by token, on the device. The host sorts them once per array, so the time of sorting is not the kernel's."""
    if id(tokens) not in _sorted:
        _sorted[id(tokens)] = tokens, *map(to_device, fast.places_by_token(copy_to_host(tokens), V))
    return _sorted[id(tokens)][1:]


@cuda.jit
def block_per_token_kernel(dwte, dout, places, pieces):
    """A block sums COLUMNS_PER_WARP channels over a token's positions: a warp takes every COLUMN_WARPS-th, then the warp sums are added."""
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    C, piece = dout.shape[1], cuda.blockIdx.x
    token, first, count = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2]
    if count == 0:  # not a token's first piece: true for all threads of the block or none, so all reach the barriers below
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


@in_both_precisions
def block_per_token(dwte, dwpe, dout, tokens):
    """Only the positions of a block's own token are read. Before, every block compared all tokens with its own."""
    (Vp, C), T = dwte.shape, tokens.shape[1]
    places, pieces = places_and_pieces(tokens, Vp)
    fast.encoder_backward_wpe_kernel[ceil_div(T * C, THREADS * WIDTH), THREADS, compute_stream()](dwpe, dout, T)
    grid = (len(pieces) - 1, ceil_div(C, COLUMNS_PER_WARP))
    block_per_token_kernel[grid, COLUMN_WARPS * WARP_SIZE, compute_stream()](dwte, dout, places, pieces)


@in_both_precisions
def fast_backward(dwte, dwpe, dout, tokens):
    """The trainer's kernels. Before, the block of the most frequent token was still at work when all others were done."""
    places, pieces = places_and_pieces(tokens, dwte.shape[0])
    scratch = buffer("scratch", max(1, fast.encoder_scratch_size(*dout.shape)))
    fast.encoder_backward(dwte, dwpe, dout, places, pieces, scratch, tokens.shape[1])


LADDER = {
    "encoder_forward": (encoder.encoder_forward, eight_per_thread, fast_forward),
    "encoder_backward": (encoder.encoder_backward, block_per_token, fast_backward),
}
