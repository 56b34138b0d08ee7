"""The encoder's fast kernels in other forms, to be measured by dev/bench/variants.py beside the package's own. All have the same bits.

Forward: a warp waits for its token, then for 512 bytes of the token's row at a time.

    rows_at_once   the whole row is on its way at once, for `sequences` sequences of the batch at the same position: wpe's row is read once

Backward: a warp waits for its piece, for the places in it, then for 512 bytes of each row, in about 2.5 µs; 32 warps per multiprocessor
that move 1.5 KB each in this time cannot exceed 2.6 TB/s, which is what was measured.

    whole_rows     a warp adds up all channels of its piece, so it moves three (768 channels) to seven times as much in the same time; and
                   a thread of the kernel for wpe has eight loads in flight, not four
"""

import functools

import numpy as np
from numba import cuda, float32, int32, uint32

from gpt2_numba.gpu.backend import compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8, load8_words, store8, widen8
from gpt2_numba.gpu.reductions import COLUMNS_PER_WARP, WARP_SIZE
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.fast import encoder as fast

ZERO = np.float32(0.0)
WPE_LOADS = 8  # in flight per thread


@functools.cache
def make_forward_kernel(C, SEQUENCES):
    """encoder_forward_kernel for C channels, with SEQUENCES rows per warp."""
    VECTORS, FULL = ceil_div(C, COLUMNS_PER_WARP), C // COLUMNS_PER_WARP
    ROW_WORDS = VECTORS * WIDTH
    ROWS_WORDS = SEQUENCES * ROW_WORDS

    @cuda.jit
    def rows_at_once_kernel(out, tokens, wte, wpe):
        """A warp computes the rows of position t in the sequences from b on."""
        lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
        B, T = tokens.shape
        t, b = cuda.blockIdx.x * fast.ROWS_PER_BLOCK + warp, cuda.blockIdx.y * SEQUENCES
        if t >= T:
            return
        token = cuda.local.array(SEQUENCES, int32)
        rows = cuda.local.array(ROWS_WORDS, uint32)
        position = cuda.local.array(ROW_WORDS, uint32)
        x = cuda.local.array(WIDTH, float32)
        p = cuda.local.array(WIDTH, float32)
        for i in range(SEQUENCES):
            token[i] = tokens[min(b + i, B - 1), t]
        for j in range(VECTORS):
            c = j * COLUMNS_PER_WARP + lane * WIDTH
            if j < FULL or c < C:
                load8_words(wpe, t * C + c, position, j * WIDTH)
        for i in range(SEQUENCES):
            for j in range(VECTORS):
                c = j * COLUMNS_PER_WARP + lane * WIDTH
                if j < FULL or c < C:
                    load8_words(wte, token[i] * C + c, rows, (i * VECTORS + j) * WIDTH)
        for i in range(SEQUENCES):
            if b + i < B:
                for j in range(VECTORS):
                    c = j * COLUMNS_PER_WARP + lane * WIDTH
                    if j < FULL or c < C:
                        widen8(wte, rows, (i * VECTORS + j) * WIDTH, x)
                        widen8(wpe, position, j * WIDTH, p)
                        for k in range(WIDTH):
                            x[k] += p[k]
                        store8(out, ((b + i) * T + t) * C + c, x)

    return rows_at_once_kernel


def rows_at_once(out, tokens, wte, wpe, *, sequences):
    """fast.encoder_forward with whole rows in flight."""
    B, T = tokens.shape
    grid = (ceil_div(T, fast.ROWS_PER_BLOCK), ceil_div(B, sequences))
    make_forward_kernel(out.shape[1], sequences)[grid, fast.ROWS_PER_BLOCK * WARP_SIZE, compute_stream()](out, tokens, wte, wpe)


@functools.cache
def make_wpe_kernel(LOADS):
    """encoder_backward_wpe_kernel with LOADS loads in flight."""
    WORDS = LOADS * WIDTH

    @cuda.jit
    def wpe_kernel(dwpe, dout, T):
        N, C = dout.shape
        index = cuda.grid(1) * WIDTH
        if index >= T * C:
            return
        total = cuda.local.array(WIDTH, float32)
        words = cuda.local.array(WORDS, uint32)
        x = cuda.local.array(WIDTH, float32)
        load8(dwpe, index, total)
        for first in range(0, N // T, LOADS):
            for i in range(LOADS):
                if first + i < N // T:
                    load8_words(dout, index + (first + i) * T * C, words, i * WIDTH)
                else:
                    for k in range(WIDTH):
                        words[i * WIDTH + k] = 0
            for i in range(LOADS):
                widen8(dout, words, i * WIDTH, x)
                for k in range(WIDTH):
                    total[k] += x[k]
        store8(dwpe, index, total)

    return wpe_kernel


@functools.cache
def make_wte_kernel(C, ROWS):
    """encoder_backward_wte_kernel with whole rows: ROWS of them in flight per warp."""
    VECTORS, FULL = ceil_div(C, COLUMNS_PER_WARP), C // COLUMNS_PER_WARP
    PER_THREAD = VECTORS * WIDTH
    WORDS = ROWS * PER_THREAD

    @cuda.jit
    def whole_rows_kernel(dwte, sums, dout, places, pieces):
        """One warp adds up the rows of one piece. The sum goes where the package's kernel puts it."""
        lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
        piece = cuda.blockIdx.x * fast.PIECES_PER_BLOCK + warp
        if piece >= pieces.shape[0] - 1:
            return
        token, start, count = pieces[piece, fast.TOKEN], pieces[piece, fast.START], pieces[piece, fast.COUNT]
        stop = pieces[piece + 1, fast.START]
        if token < 0:
            return
        is_whole = count == 1
        total = cuda.local.array(PER_THREAD, float32)
        words = cuda.local.array(WORDS, uint32)
        before = cuda.local.array(PER_THREAD, uint32)
        x = cuda.local.array(WIDTH, float32)
        for i in range(PER_THREAD):
            total[i] = ZERO
            before[i] = 0
        if is_whole:
            for j in range(VECTORS):
                c = j * COLUMNS_PER_WARP + lane * WIDTH
                if j < FULL or c < C:
                    load8_words(dwte, token * C + c, before, j * WIDTH)
            for j in range(VECTORS):
                widen8(dwte, before, j * WIDTH, x)
                for k in range(WIDTH):
                    total[j * WIDTH + k] = x[k]
        for first in range(start, stop, ROWS):
            for i in range(ROWS):
                if first + i < stop:
                    place = places[first + i]
                    for j in range(VECTORS):
                        c = j * COLUMNS_PER_WARP + lane * WIDTH
                        if j < FULL or c < C:
                            load8_words(dout, place * C + c, words, (i * VECTORS + j) * WIDTH)
            for i in range(ROWS):
                if first + i < stop:
                    for j in range(VECTORS):
                        widen8(dout, words, (i * VECTORS + j) * WIDTH, x)
                        for k in range(WIDTH):
                            total[j * WIDTH + k] += x[k]
        for j in range(VECTORS):
            c = j * COLUMNS_PER_WARP + lane * WIDTH
            if j < FULL or c < C:
                if is_whole:
                    store8(dwte, token * C + c, total, j * WIDTH)
                else:
                    store8(sums, piece * C + c, total, j * WIDTH)

    return whole_rows_kernel


def whole_rows(dwte, dwpe, dout, places, pieces, scratch, T, *, rows):
    """fast.encoder_backward with whole rows."""
    N, C = dout.shape
    P, stream, threads = pieces.shape[0] - 1, compute_stream(), fast.PIECES_PER_BLOCK * WARP_SIZE
    make_wpe_kernel(WPE_LOADS)[ceil_div(T * C, fast.THREADS * WIDTH), fast.THREADS, stream](dwpe, dout, T)
    make_wte_kernel(C, rows)[ceil_div(P, fast.PIECES_PER_BLOCK), threads, stream](dwte, scratch, dout, places, pieces)
    if split := 2 * N // fast.PLACES_PER_PIECE:
        grid = (ceil_div(split, fast.PIECES_PER_BLOCK), ceil_div(C, COLUMNS_PER_WARP))
        fast.encoder_backward_pieces_kernel[grid, threads, stream](dwte, scratch, pieces)
