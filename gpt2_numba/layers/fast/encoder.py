"""The encoder, fast: a warp makes a row; and the rows of dout that belong to one token are found by sorting, however often it occurs.

What is different from the plain kernels of layers/encoder.py, and what it gains. Figures: one H200, 2026-11-22, bf16, GPT-2 124M, 65,536
tokens.

    Memory is moved 16 bytes at a time: eight neighbouring channels to a step, whatever their type (gpu/memory_access.py).

    Forward, a warp makes a row, so it looks up one token and divides nothing: in the training step 50 µs, 85 % of the rate of a copy.

    Backward, dwte[v] is the sum of dout over all places where the token v occurs. Here each place is read once, since the host has sorted
    the places by token (places_by_token), while the GPU is still at work on the forward pass, and a warp adds up the places of one token in
    that order. No atomics: the bits are the same in every run.

    A token's places are cut into pieces of at most 64, a warp each, since natural text is uneven: most of a batch's different tokens
    occur once or twice, and one of them in every tenth place. Where a token has several pieces, a second kernel adds up their sums. Without
    pieces the most frequent token kept everything waiting: 340 µs, and 666 with four loads in flight for each token; with both 128, 49 % of
    the rate of a copy and 0.1 % of a training step.

    dwpe[t] is the sum over the batch of a position's rows: a thread takes eight channels of one position.

    | array        | shape, type                         | forward | backward                                                      |
    | ------------ | ----------------------------------- | ------- | ------------------------------------------------------------- |
    | tokens       | (B, T) int32                        | [r]     | not needed: `places` and `pieces` say the same                |
    | wte          | (Vp, C) float32 or bfloat16         | [r]     | C a multiple of 8                                             |
    | wpe          | (maxT, C) same type                 | [r]     |                                                               |
    | out, dout    | (N, C) same type                    | [w]     | [r]                                                           |
    | dwte, dwpe   | (Vp, C), (maxT, C) same type        |         | [+] the classifier adds to dwte as well: it shares wte        |
    | places       | (N,) int32                          |         | [r] indices into N, sorted by token                           |
    | pieces       | (P + 1, 3) int32                    |         | [r] a row a piece: see below                                  |
    | scratch      | flat, float32                       |         | [w] sums of pieces: encoder_scratch_size(N, C)                |

N = B * T; row n = b * T + t.

A row of `pieces`: a token; where among `places` the piece begins (it ends where the next begins); how many pieces that token has, 0 if
this is not its first. Tokens with several pieces come first. The last row, and all that are left over, are -1, N, 0.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import COLUMNS_PER_WARP, WARP_SIZE

ZERO = np.float32(0.0)
THREADS = WARP_SIZE if SIMULATING else 256
ROWS_PER_BLOCK = 2 if SIMULATING else 8  # of the forward pass, a warp each
PIECES_PER_BLOCK = 2 if SIMULATING else 8  # a warp each
PLACES_OF_A_PIECE = 3 if SIMULATING else 64  # the bits depend on it
AT_A_TIME = 4  # loads that a thread of the backward pass has in flight
HELD = AT_A_TIME * WIDTH


# ------------------------------------------------------------------------------------------ places, sorted by token


def most_pieces(N, V):
    """P: into how many pieces N places are cut at most, if there are V different tokens."""
    return min(N, V) + N // PLACES_OF_A_PIECE


def places_by_token(tokens, V):
    """Sort the N places of a batch by their token, the most frequent tokens first: what `encoder_backward` needs.

    tokens (B, T) int32 host array, all in [0, V). Returns places (N,) and pieces (P + 1, 3), int32. Ties: by token, by place.
    """
    flat = tokens.reshape(-1)
    counts = np.bincount(flat, minlength=V)
    present = np.flatnonzero(counts)
    present = present[np.argsort(-counts[present], kind="stable")]
    rank = np.zeros(V, np.uint16 if len(present) <= 1 << 16 else np.int32)  # NumPy sorts 16-bit integers by radix: ten times faster
    rank[present] = np.arange(len(present))
    places = np.argsort(rank[flat], kind="stable").astype(np.int32)

    starts = np.cumsum(counts[present]) - counts[present]
    of_token = -(-counts[present] // PLACES_OF_A_PIECE)  # how many pieces
    firsts = np.cumsum(of_token) - of_token
    count = of_token.sum()
    pieces = np.full((most_pieces(flat.size, V) + 1, 3), (-1, flat.size, 0), np.int32)
    pieces[:count, 0] = np.repeat(present, of_token)
    pieces[:count, 1] = np.repeat(starts, of_token) + PLACES_OF_A_PIECE * (np.arange(count) - np.repeat(firsts, of_token))
    pieces[:count, 2] = 0
    pieces[firsts, 2] = of_token
    return places, pieces


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(cache=True)
def encoder_forward_kernel(out, tokens, wte, wpe):
    """One warp makes one row: position t = blockIdx.x * ROWS_PER_BLOCK + warp of sequence b = blockIdx.y."""
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    C, T = out.shape[1], tokens.shape[1]
    t, b = cuda.blockIdx.x * ROWS_PER_BLOCK + warp, cuda.blockIdx.y
    if t >= T:
        return
    token = tokens[b, t]
    x = cuda.local.array(WIDTH, float32)
    p = cuda.local.array(WIDTH, float32)
    for c in range(lane * WIDTH, C, COLUMNS_PER_WARP):
        load8(wte, token * C + c, x)
        load8(wpe, t * C + c, p)
        for k in range(WIDTH):
            x[k] += p[k]
        store8(out, (b * T + t) * C + c, x)


@cuda.jit(cache=True)
def encoder_backward_wpe_kernel(dwpe, dout, T):
    """One thread adds up eight channels of one position t over the batch, b = 0, 1, ..."""
    N, C = dout.shape
    index = cuda.grid(1) * WIDTH
    if index >= T * C:
        return
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(HELD, float32)
    load8(dwpe, index, total)
    for first in range(0, N * C, AT_A_TIME * T * C):
        for r in range(AT_A_TIME):
            start = first + r * T * C
            if start < N * C:
                load8(dout, start + index, x, r * WIDTH)
            else:
                for k in range(WIDTH):
                    x[r * WIDTH + k] = ZERO
        for k in range(HELD):
            total[k % WIDTH] += x[k]
    store8(dwpe, index, total)


@cuda.jit(cache=True)
def encoder_backward_wte_kernel(dwte, sums, dout, places, pieces):
    """One warp adds up COLUMNS_PER_WARP channels of the places of one piece.

    They go to the token's row of dwte, or, if it has several pieces, to row `piece` of sums.
    """
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    C = dout.shape[1]
    piece = cuda.blockIdx.x * PIECES_PER_BLOCK + warp
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    if piece >= pieces.shape[0] - 1 or pieces[piece, 0] < 0 or c >= C:
        return
    token, first, last, is_whole = pieces[piece, 0], pieces[piece, 1], pieces[piece + 1, 1], pieces[piece, 2] == 1
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(HELD, float32)
    for k in range(WIDTH):
        total[k] = ZERO
    if is_whole:
        load8(dwte, token * C + c, total)
    for i in range(first, last, AT_A_TIME):
        for r in range(AT_A_TIME):
            if i + r < last:
                load8(dout, places[i + r] * C + c, x, r * WIDTH)
            else:
                for k in range(WIDTH):
                    x[r * WIDTH + k] = ZERO
        for k in range(HELD):
            total[k % WIDTH] += x[k]
    if is_whole:
        store8(dwte, token * C + c, total)
    else:
        store8(sums, piece * C + c, total)


@cuda.jit(cache=True)
def encoder_backward_pieces_kernel(dwte, sums, pieces):
    """One warp adds up COLUMNS_PER_WARP channels of the sums of a token's pieces, if it has several, first to last."""
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    C = dwte.shape[1]
    piece = cuda.blockIdx.x * PIECES_PER_BLOCK + warp
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    if piece >= pieces.shape[0] - 1 or pieces[piece, 2] < 2 or c >= C:
        return
    token, last = pieces[piece, 0], piece + pieces[piece, 2]
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(HELD, float32)
    load8(dwte, token * C + c, total)
    for i in range(piece, last, AT_A_TIME):
        for r in range(AT_A_TIME):
            if i + r < last:
                load8(sums, (i + r) * C + c, x, r * WIDTH)
            else:
                for k in range(WIDTH):
                    x[r * WIDTH + k] = ZERO
        for k in range(HELD):
            total[k % WIDTH] += x[k]
    store8(dwte, token * C + c, total)


# -------------------------------------------------------------------------------------------------------- launchers


def encoder_forward(out, tokens, wte, wpe):
    """Look up token and position embeddings.

    out [w] (B*T, C)   tokens [r] (B, T) int32, all in [0, Vp)   wte [r] (Vp, C)   wpe [r] (maxT, C), maxT >= T
    Raises ValueError or TypeError where a shape or type does not fit.
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
    grid = (-(-T // ROWS_PER_BLOCK), B)
    encoder_forward_kernel[grid, ROWS_PER_BLOCK * WARP_SIZE, compute_stream()](out, tokens, wte, wpe)


def _most_pieces_of_split_tokens(N):
    """A token with several pieces fills at least the first of two."""
    return 2 * N // PLACES_OF_A_PIECE


def encoder_scratch_size(N, C):
    """How many float32 `encoder_backward` needs as scratch."""
    return _most_pieces_of_split_tokens(N) * C


def encoder_backward(dwte, dwpe, dout, places, pieces, scratch, T):
    """Gradients of encoder_forward, accumulated in a fixed order.

    dwte [+] (Vp, C)   dwpe [+] (maxT, C)   dout [r] (N, C)   places [r] (N,), pieces [r] (P + 1, 3) int32 from places_by_token
    scratch [w] float32, flat, at least encoder_scratch_size(N, C)
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = dout.shape
    (Vp, _), maxT, P = dwte.shape, dwpe.shape[0], pieces.shape[0] - 1
    if T > maxT or N % T or P < 1:
        raise ValueError(f"encoder_backward: T = {T} must divide N = {N} and be at most maxT = {maxT}, and pieces have two rows at least")
    check_arrays(
        "encoder_backward", {"N": N, "Vp": Vp, "C": C, "maxT": maxT, "P+1": P + 1},
        dwte=(dwte, "Vp C"), dwpe=(dwpe, "maxT C"), dout=(dout, "N C"), places=(places, "i32 N"), pieces=(pieces, "i32 P+1 3"),
    )  # fmt: skip
    check_on_device("encoder_backward", dout, "layers/encoder.py")
    check_width("encoder_backward", C=C)
    check_scratch("encoder_backward", scratch, encoder_scratch_size(N, C))
    stream, columns, threads = compute_stream(), -(-C // COLUMNS_PER_WARP), PIECES_PER_BLOCK * WARP_SIZE
    encoder_backward_wpe_kernel[-(-T * C // (THREADS * WIDTH)), THREADS, stream](dwpe, dout, T)
    encoder_backward_wte_kernel[(-(-P // PIECES_PER_BLOCK), columns), threads, stream](dwte, scratch, dout, places, pieces)
    if split := _most_pieces_of_split_tokens(N):
        encoder_backward_pieces_kernel[(-(-split // PIECES_PER_BLOCK), columns), threads, stream](dwte, scratch, pieces)
