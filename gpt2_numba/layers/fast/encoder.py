"""The encoder, fast: a warp has whole rows on their way at once; in backward the rows of each token are found by sorting.

What is different from the plain kernels of layers/encoder.py, and what it gains. Figures: one H200, 2026-11-29, bf16, GPT-2 124M, 65,536
tokens / 1558M, 16,384 tokens.

    Memory is moved 16 bytes at a time: eight neighbouring channels per load or store, whatever their type (gpu/memory_access.py).

    A warp issues the loads of its whole rows before it uses the first (make_kernels), since the bytes that it has on their way while it
    waits determine how fast it can be. With 512 bytes of a row at a time forward took 45.3 / 29.8 µs and backward 254 / 118.

    Forward, a warp computes the rows of one position in two sequences, so that it reads the position's row of wpe once. Position and
    sequences come from the grid, so no thread divides to find its row: 43.9 / 27.0 µs, 97 / 95 % of the rate of a copy. With one sequence
    44.7 / 27.6, with four 44.8 µs.

    Backward, dwte[v] is the sum of dout over the places of token v, a place being an index n into the N rows. The plain kernel scans all
    places for every v. Here each place is read once: the host sorts the places by token (places_by_token), while the GPU still runs the
    forward pass, and a warp adds up the rows of one token in that order, two at a time: 154 / 87 µs with all three kernels, 0.15 % of a
    training step; four rows at a time: 225 µs (124M); one: 107 (1558M). No atomics: the bits are the same in every run.

    A token's places are cut into pieces of at most 64, one warp each, since token frequencies in natural text are uneven: most of the
    tokens in a batch occur once or twice, one fills every tenth place (three in ten in what was timed). If a token has several pieces,
    another kernel adds up their sums. Without pieces everything waited for the most frequent token: nearly three times as long
    (2026-11-22).

    dwpe[t] is the sum of a position's rows over the batch: a thread takes eight channels of one position.

    | array        | shape, type                         | forward | backward                                                      |
    | ------------ | ----------------------------------- | ------- | ------------------------------------------------------------- |
    | tokens       | (B, T) int32                        | [r]     | not needed: `places` and `pieces` hold the same information   |
    | wte          | (Vp, C) float32 or bfloat16         | [r]     | C a multiple of 8                                             |
    | wpe          | (maxT, C) same type                 | [r]     |                                                               |
    | out, dout    | (N, C) same type                    | [w]     | [r]                                                           |
    | dwte, dwpe   | (Vp, C), (maxT, C) same type        |         | [+] the classifier adds to dwte as well: it shares wte        |
    | places       | (N,) int32                          |         | [r] 0 ... N - 1, sorted by token                              |
    | pieces       | (P + 1, 3) int32                    |         | [r] one row per piece, see below                              |
    | scratch      | flat, float32                       |         | [w] the pieces' sums: encoder_scratch_size(N, C)              |

N = B * T; row n = b * T + t. Row p of `pieces`:

    token    the token whose places piece p holds
    start    where the piece begins in `places`; it ends where piece p + 1 begins
    count    in a token's first piece: how many pieces the token has; in the others 0

Tokens with several pieces come first, so that scratch needs rows for their pieces only. P, the most pieces that N places can have, depends
on N and V alone, so that arrays and launches are the same for every batch. The rows that a batch leaves over, at least one, hold -1, N, 0:
no token, no pieces, and an end for the last piece. With pieces of 3, the tokens 5 5 9 5 5 give

    places  0 1 3 4 2        pieces  (5, 0, 2)  (5, 3, 0)  (9, 4, 1)  (-1, 5, 0)
"""

import functools

import numpy as np
from numba import cuda, float32, int32, uint32

from gpt2_numba.gpu.argument_checks import check_arrays, check_grid, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8, load8_words, store8, widen8
from gpt2_numba.gpu.reductions import COLUMNS_PER_WARP, WARP_SIZE, add_rows8
from gpt2_numba.integers import ceil_div

ZERO = np.float32(0.0)
THREADS = WARP_SIZE if SIMULATING else 256  # per block, in backward for wpe
ROWS_PER_BLOCK = 2 if SIMULATING else 8  # positions in forward, one warp each
PIECES_PER_BLOCK = 2 if SIMULATING else 8  # one warp each
PLACES_PER_PIECE = 3 if SIMULATING else 64  # the bits depend on it
TOKEN, START, COUNT = range(3)  # columns of pieces

# What a warp has on its way at once. Longer rows are cut into parts, so that they fit in the registers of a warp.
MOST_EIGHTS = 2 if SIMULATING else 7  # of channels of a row, per lane: 7 * 32 * 8 = 1,792 channels per warp
SEQUENCES = 2  # in forward
ROWS = 2  # in backward
WPE_ROWS = 8  # in backward for wpe, where a thread has eight channels of each
WPE_WORDS = WPE_ROWS * WIDTH


# ------------------------------------------------------------------------------------------ places, sorted by token


def most_pieces(N, V):
    """P: the most pieces that N places of V different tokens can have."""
    return min(N, V) + N // PLACES_PER_PIECE


def places_by_token(tokens, V):
    """Sort the N places of a batch by token, the most frequent token first, and cut them into pieces, as `encoder_backward` needs them.

    tokens (B, T) int32 host array, all in [0, V). Returns places (N,) and pieces (P + 1, 3), int32. Tokens that are equally frequent are in
    ascending order, and so are the places of a token.
    """
    flat = tokens.reshape(-1)
    counts = np.bincount(flat, minlength=V)
    present = np.flatnonzero(counts)
    present = present[np.argsort(-counts[present], kind="stable")]
    sort_key = np.zeros(V, np.uint16 if len(present) <= 1 << 16 else np.int32)  # NumPy sorts 16-bit integers by radix: ten times faster
    sort_key[present] = np.arange(len(present))
    places = np.argsort(sort_key[flat], kind="stable").astype(np.int32)

    starts = np.cumsum(counts[present]) - counts[present]
    piece_counts = ceil_div(counts[present], PLACES_PER_PIECE)
    first_pieces = np.cumsum(piece_counts) - piece_counts
    used = piece_counts.sum()
    index_in_token = np.arange(used) - np.repeat(first_pieces, piece_counts)  # 0, 1, ... for the pieces of a token
    pieces = np.full((most_pieces(flat.size, V) + 1, 3), (-1, flat.size, 0), np.int32)
    pieces[:used, TOKEN] = np.repeat(present, piece_counts)
    pieces[:used, START] = np.repeat(starts, piece_counts) + PLACES_PER_PIECE * index_in_token
    pieces[first_pieces, COUNT] = piece_counts
    return places, pieces


# ---------------------------------------------------------------------------------------------------------- kernels


def row_parts(C):
    """(parts of a row of C channels, eights of channels of a lane in each part, how many of these are below C in every part and lane)."""
    parts = ceil_div(C, MOST_EIGHTS * COLUMNS_PER_WARP)
    eights = ceil_div(C, parts * COLUMNS_PER_WARP)
    in_last_part = C - (parts - 1) * eights * COLUMNS_PER_WARP
    return parts, eights, in_last_part // COLUMNS_PER_WARP


@functools.cache
def make_kernels(C):
    """(encoder_forward_kernel, encoder_backward_wte_kernel) for rows of C channels.

    A warp takes one part of its rows. Eight j of a lane, j < EIGHTS, are the channels from `channel(part, j)` on; those beyond C do not
    exist. The first FULL exist in every lane, so these loads have no condition: none waits for another.
    """
    _, EIGHTS, FULL = row_parts(C)
    PER_LANE = EIGHTS * WIDTH  # words of a row, elements of a sum
    WORDS, SUMMED_WORDS = SEQUENCES * PER_LANE, ROWS * PER_LANE

    @cuda.jit(device=True)
    def channel(part, j):
        return (part * EIGHTS + j) * COLUMNS_PER_WARP + cuda.threadIdx.x % WARP_SIZE * WIDTH

    @cuda.jit(device=True)
    def load_row(array, row, part, words, first):
        """words[first : ] = this lane's eights of a row, as stored: no load waits for the one before."""
        for j in range(EIGHTS):
            c = channel(part, j)
            if j < FULL or c < C:
                load8_words(array, row * C + c, words, first + j * WIDTH)

    @cuda.jit(cache=True)
    def encoder_forward_kernel(out, tokens, wte, wpe):
        """A warp takes position t = blockIdx.x * ROWS_PER_BLOCK + warp of SEQUENCES sequences from b on, part blockIdx.z of the row."""
        B, T = tokens.shape
        t, b, part = cuda.blockIdx.x * ROWS_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE, cuda.blockIdx.y * SEQUENCES, cuda.blockIdx.z
        if t >= T:
            return
        token = cuda.local.array(SEQUENCES, int32)
        rows = cuda.local.array(WORDS, uint32)
        position = cuda.local.array(PER_LANE, uint32)
        x = cuda.local.array(WIDTH, float32)
        p = cuda.local.array(WIDTH, float32)
        for i in range(SEQUENCES):
            token[i] = tokens[min(b + i, B - 1), t]  # beyond the last sequence its row again, which is not stored
        load_row(wpe, t, part, position, 0)
        for i in range(SEQUENCES):
            load_row(wte, token[i], part, rows, i * PER_LANE)
        for i in range(SEQUENCES):
            if b + i < B:
                for j in range(EIGHTS):
                    c = channel(part, j)
                    if j < FULL or c < C:
                        widen8(wte, rows, i * PER_LANE + j * WIDTH, x)
                        widen8(wpe, position, j * WIDTH, p)
                        for k in range(WIDTH):
                            x[k] += p[k]
                        store8(out, ((b + i) * T + t) * C + c, x)

    @cuda.jit(device=True)
    def add_row(total, dout, words, first, part):
        """total += the row of dout that `load_row` has loaded into words[first : ]."""
        x = cuda.local.array(WIDTH, float32)
        for j in range(EIGHTS):
            if j < FULL or channel(part, j) < C:
                widen8(dout, words, first + j * WIDTH, x)
                for k in range(WIDTH):
                    total[j * WIDTH + k] += x[k]

    @cuda.jit(cache=True)
    def encoder_backward_wte_kernel(dwte, sums, dout, places, pieces):
        """One warp adds up the rows of one piece. blockIdx.y: the part of the rows.

        The sum is added to the token's row of dwte or, if the token has several pieces, stored in row `piece` of sums.
        """
        piece, part = cuda.blockIdx.x * PIECES_PER_BLOCK + cuda.threadIdx.x // WARP_SIZE, cuda.blockIdx.y
        if piece >= pieces.shape[0] - 1 or pieces[piece, TOKEN] < 0:
            return
        token, start, stop, is_whole = pieces[piece, TOKEN], pieces[piece, START], pieces[piece + 1, START], pieces[piece, COUNT] == 1
        total = cuda.local.array(PER_LANE, float32)
        words = cuda.local.array(SUMMED_WORDS, uint32)
        for k in range(PER_LANE):
            total[k] = ZERO
        if is_whole:
            for j in range(EIGHTS):
                c = channel(part, j)
                if j < FULL or c < C:
                    load8(dwte, token * C + c, total, j * WIDTH)
        for first in range(start, stop, ROWS):
            for i in range(ROWS):
                if first + i < stop:
                    load_row(dout, places[first + i], part, words, i * PER_LANE)
            for i in range(ROWS):
                if first + i < stop:
                    add_row(total, dout, words, i * PER_LANE, part)
        for j in range(EIGHTS):
            c = channel(part, j)
            if j < FULL or c < C:
                if is_whole:
                    store8(dwte, token * C + c, total, j * WIDTH)
                else:
                    store8(sums, piece * C + c, total, j * WIDTH)

    return encoder_forward_kernel, encoder_backward_wte_kernel


@cuda.jit(cache=True)
def encoder_backward_wpe_kernel(dwpe, dout, T):
    """One thread adds up eight channels of one position t over the batch, b = 0, 1, ..., with WPE_ROWS loads on their way."""
    N, C = dout.shape
    index = cuda.grid(1) * WIDTH
    if index >= T * C:
        return
    total = cuda.local.array(WIDTH, float32)
    words = cuda.local.array(WPE_WORDS, uint32)
    x = cuda.local.array(WIDTH, float32)
    load8(dwpe, index, total)
    for first in range(0, N // T, WPE_ROWS):  # as add_rows8, but packed: in bfloat16 eight rows take the registers of four
        for i in range(WPE_ROWS):
            if first + i < N // T:
                load8_words(dout, index + (first + i) * T * C, words, i * WIDTH)
            else:
                for k in range(WIDTH):
                    words[i * WIDTH + k] = 0  # 0.0 in either type
        for i in range(WPE_ROWS):
            widen8(dout, words, i * WIDTH, x)
            for k in range(WIDTH):
                total[k] += x[k]
    store8(dwpe, index, total)


@cuda.jit(cache=True)
def encoder_backward_pieces_kernel(dwte, sums, pieces):
    """One warp adds up COLUMNS_PER_WARP channels of the sums of a token's pieces, if it has several, first to last."""
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    C = dwte.shape[1]
    piece = cuda.blockIdx.x * PIECES_PER_BLOCK + warp
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    if piece >= pieces.shape[0] - 1 or pieces[piece, COUNT] < 2 or c >= C:
        return
    token, count = pieces[piece, TOKEN], pieces[piece, COUNT]
    total = cuda.local.array(WIDTH, float32)
    load8(dwte, token * C + c, total)
    add_rows8(total, sums, piece * C + c, C, count)
    store8(dwte, token * C + c, total)


# -------------------------------------------------------------------------------------------------------- launchers


def encoder_forward(out, tokens, wte, wpe):
    """Look up token and position embeddings.

    out [w] (B*T, C)   tokens [r] (B, T) int32, all in [0, Vp)   wte [r] (Vp, C)   wpe [r] (maxT, C), maxT >= T
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    B, T = tokens.shape
    (Vp, C), maxT = wte.shape, wpe.shape[0]
    if T > maxT:
        raise ValueError(f"encoder_forward: tokens (B, T) = {tuple(tokens.shape)} are longer than wpe's {maxT} positions")
    check_arrays(
        "encoder_forward", {"B": B, "T": T, "N": B * T, "Vp": Vp, "C": C, "maxT": maxT},
        out=(out, "N C"), tokens=(tokens, "i32 B T"), wte=(wte, "Vp C"), wpe=(wpe, "maxT C"),
    )  # fmt: skip
    check_on_device("encoder_forward", out, "layers/encoder.py")
    check_width("encoder_forward", C=C)
    check_grid("encoder_forward", B=B)
    (parts, _, _), (kernel, _) = row_parts(C), make_kernels(C)
    grid = (ceil_div(T, ROWS_PER_BLOCK), ceil_div(B, SEQUENCES), parts)
    kernel[grid, ROWS_PER_BLOCK * WARP_SIZE, compute_stream()](out, tokens, wte, wpe)


def _most_pieces_of_split_tokens(N):
    """The most pieces that tokens with several can have. A token with p >= 2 pieces has at least p - 1 >= p / 2 full ones."""
    return 2 * N // PLACES_PER_PIECE


def encoder_scratch_size(N, C):
    """Elements of scratch, float32, that `encoder_backward` needs."""
    return _most_pieces_of_split_tokens(N) * C


def encoder_backward(dwte, dwpe, dout, places, pieces, scratch, T):
    """Gradients of encoder_forward, accumulated in a fixed order.

    dwte [+] (Vp, C)   dwpe [+] (maxT, C)   dout [r] (N, C)   places [r] (N,), pieces [r] (P + 1, 3) int32 from places_by_token
    scratch [w] float32, flat, at least encoder_scratch_size(N, C)   T: tokens per sequence, N = B * T
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = dout.shape
    (Vp, _), maxT, P = dwte.shape, dwpe.shape[0], pieces.shape[0] - 1
    if T > maxT or N % T or P < 1:
        raise ValueError(
            f"encoder_backward: T = {T} must divide N = {N} and be at most maxT = {maxT}, and pieces must have at least two rows"
        )
    check_arrays(
        "encoder_backward", {"N": N, "Vp": Vp, "C": C, "maxT": maxT, "P+1": P + 1},
        dwte=(dwte, "Vp C"), dwpe=(dwpe, "maxT C"), dout=(dout, "N C"), places=(places, "i32 N"), pieces=(pieces, "i32 P+1 3"),
    )  # fmt: skip
    check_on_device("encoder_backward", dout, "layers/encoder.py")
    check_width("encoder_backward", C=C)
    check_scratch("encoder_backward", scratch, encoder_scratch_size(N, C))
    stream, columns, threads = compute_stream(), ceil_div(C, COLUMNS_PER_WARP), PIECES_PER_BLOCK * WARP_SIZE
    encoder_backward_wpe_kernel[ceil_div(T * C, THREADS * WIDTH), THREADS, stream](dwpe, dout, T)
    (parts, _, _), (_, wte_kernel) = row_parts(C), make_kernels(C)
    wte_kernel[(ceil_div(P, PIECES_PER_BLOCK), parts), threads, stream](dwte, scratch, dout, places, pieces)
    if split := _most_pieces_of_split_tokens(N):
        encoder_backward_pieces_kernel[(ceil_div(split, PIECES_PER_BLOCK), columns), threads, stream](dwte, scratch, pieces)
