"""The encoder: a token becomes a vector, by looking up its row in `wte` and adding the row of its place in `wpe`.

    out[b, t] = wte[tokens[b, t]] + wpe[t]

Backward sends each row of dout to the two rows that made it:

    dwpe[t] += Σ_b dout[b, t]        dwte[v] += Σ dout[b, t] over all places where tokens[b, t] = v

The second is a scatter: many places add to one row. Atomics would add in whatever order the threads arrive, and the bits would
change from run to run. So the places are first sorted by token (on the host, stable, see `places_by_token`), and one block
adds up all places of a token in that order.

Token and learned position embeddings: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).

    | array        | shape, type      | forward | backward                                                    |
    | ------------ | ---------------- | ------- | ----------------------------------------------------------- |
    | tokens       | (B, T) int32     | [r]     | not needed: `places`, `starts` say the same                 |
    | wte          | (Vp, C)          | [r]     |                                                             |
    | wpe          | (maxT, C)        | [r]     |                                                             |
    | out, dout    | (N, C)           | [w]     | [r]                                                         |
    | dwte, dwpe   | (Vp, C) (maxT, C)|         | [+] the classifier adds to dwte as well: it shares wte      |
    | places       | (N,) int32       |         | [r] indices into N, sorted by token                         |
    | starts       | (V + 1,) int32   |         | [r] the places of token v are places[starts[v]:starts[v+1]] |

N = B * T; row n = b * T + t.
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import COLUMN_WARPS, COLUMNS_PER_WARP, WARP_SIZE, add_up_warps

ZERO = np.float32(0.0)
THREADS = WARP_SIZE if SIMULATING else 256

# Blocks of the dwte kernel in each direction of columns; each takes every so-maniest token. Far more than fit on a GPU at once,
# so that a block with a frequent token does not hold up the rest. The answer does not depend on it.
TOKEN_BLOCKS = 4 if SIMULATING else 8192


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def places_by_token(tokens, V):
    """Sort the N places of a batch by the token that stands there, ties by place: what `encoder_backward` needs.

    tokens (B, T) int32 host array, all in [0, V). Returns places (N,) int32 and starts (V + 1,) int32.
    """
    flat = tokens.reshape(-1)
    sortable = flat.astype(np.uint16) if V <= 1 << 16 else flat  # NumPy sorts 16-bit integers by radix: about ten times faster
    places = np.argsort(sortable, kind="stable").astype(np.int32)
    starts = np.zeros(V + 1, np.int32)
    np.cumsum(np.bincount(flat, minlength=V), out=starts[1:])
    return places, starts


def encoder_forward_ref(out, tokens, wte, wpe):
    """The definition. Arguments as in the table above; float32 or float64."""
    B, T = tokens.shape
    out_btc = out.reshape(B, T, -1)
    np.take(wte, tokens, axis=0, out=out_btc, mode="clip")  # "raise" would copy; tokens are checked where data is loaded
    out_btc += wpe[:T]


def encoder_backward_ref(dwte, dwpe, dout, places, starts, T):
    """The scatter. Arguments as in the table above."""
    dwpe[:T] += dout.reshape(-1, T, dout.shape[1]).sum(axis=0)
    present = np.flatnonzero(np.diff(starts))
    dwte[present] += np.add.reduceat(dout[places], starts[present], axis=0)


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit
def encoder_forward_kernel(out, tokens, wte, wpe):
    """One thread makes eight channels of one row."""
    C = out.shape[1]
    T = tokens.shape[1]
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


@cuda.jit
def encoder_backward_wpe_kernel(dwpe, dout, T):
    """One thread adds up eight channels of one position t over the batch, b = 0, 1, ..."""
    N, C = dout.shape
    index = cuda.grid(1) * WIDTH
    if index >= T * C:
        return
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(WIDTH, float32)
    load8(dwpe, index, total)
    for start in range(0, N * C, T * C):
        load8(dout, start + index, x)
        for k in range(WIDTH):
            total[k] += x[k]
    store8(dwpe, index, total)


@cuda.jit
def encoder_backward_wte_kernel(dwte, dout, places, starts):
    """One block adds up COLUMNS_PER_WARP channels of all places of a token, then goes on to its next token.

    The block's warps take every COLUMN_WARPS-th place each, and join their sums in a fixed order.
    """
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    C = dout.shape[1]
    c = cuda.blockIdx.y * COLUMNS_PER_WARP + lane * WIDTH
    total = cuda.local.array(WIDTH, float32)
    x = cuda.local.array(WIDTH, float32)
    for token in range(cuda.blockIdx.x, starts.shape[0] - 1, cuda.gridDim.x):
        first, last = starts[token], starts[token + 1]
        if first == last:  # the same for all threads of the block, so the barriers below have them all
            continue
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


# -------------------------------------------------------------------------------------------------------- launchers


def encoder_forward(out, tokens, wte, wpe):
    """Look up token and position embeddings. The arrays decide: NumPy runs the reference, device arrays the kernel.

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
    if on_host(out):
        return encoder_forward_ref(out, tokens, wte, wpe)
    check_width("encoder_forward", C=C)
    blocks = -(-B * T * C // (THREADS * WIDTH))
    encoder_forward_kernel[blocks, THREADS, compute_stream()](out, tokens, wte, wpe)


def encoder_backward(dwte, dwpe, dout, places, starts, T):
    """Gradients of encoder_forward, accumulated in a fixed order.

    dwte [+] (Vp, C)   dwpe [+] (maxT, C)   dout [r] (N, C)   places [r] (N,), starts [r] (V + 1,) int32 from places_by_token
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = dout.shape
    (Vp, _), maxT, V = dwte.shape, dwpe.shape[0], starts.shape[0] - 1
    if T > maxT or N % T or V > Vp:
        raise ValueError(f"encoder_backward: T = {T} must divide N = {N}, be at most maxT = {maxT}; V = {V} at most Vp = {Vp}")
    check_arrays(
        "encoder_backward", {"N": N, "Vp": Vp, "C": C, "maxT": maxT, "V+1": V + 1},
        dwte=(dwte, "Vp C"), dwpe=(dwpe, "maxT C"), dout=(dout, "N C"), places=(places, "i32 N"), starts=(starts, "i32 V+1"),
    )  # fmt: skip
    if on_host(dout):
        return encoder_backward_ref(dwte, dwpe, dout, places, starts, T)
    check_width("encoder_backward", C=C)
    stream = compute_stream()
    blocks = -(-T * C // (THREADS * WIDTH))
    encoder_backward_wpe_kernel[blocks, THREADS, stream](dwpe, dout, T)
    columns = -(-C // COLUMNS_PER_WARP)
    encoder_backward_wte_kernel[(min(V, TOKEN_BLOCKS), columns), COLUMN_WARPS * WARP_SIZE, stream](dwte, dout, places, starts)
