"""The encoder (llm.c's name for the embedding): a token becomes its row of `wte` plus the row of its position in `wpe`.

    out[b, t] = wte[tokens[b, t]] + wpe[t]

Backward. Raise wpe[t, c] by a tiny ε, and out[b, t, c] rises by ε in all B sequences; raise wte[v, c] by ε, and out[b, t, c] rises by ε
wherever the token is v. Multiply by dout, add up, divide by ε:

    dwpe[t] += Σ_b dout[b, t]        dwte[v] += Σ dout[b, t] over all (b, t) where tokens[b, t] = v

Forward gathers rows; the second sum scatters them: many rows of dout may belong to one row of dwte. If a thread took one (b, t) and added
its row to dwte, threads with the same token would write to the same number at the same time. Atomic additions would be safe, but would add
in the order in which the threads arrive, and since float32 rounds after each addition, the bits would differ from run to run. Here
the loop is reversed: each block owns one row of dwte and scans all positions for its token. Simple, not fast: Vp * B * T comparisons.

Token and learned position embeddings: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).

    | array      | shape, type        | forward | backward                                                                  |
    | ---------- | ------------------ | ------- | ------------------------------------------------------------------------- |
    | tokens     | (B, T) int32       | [r]     | [r]                                                                       |
    | wte, wpe   | (Vp, C) (maxT, C)  | [r]     |                                                                           |
    | out, dout  | (N, C)             | [w]     | [r]                                                                       |
    | dwte, dwpe | (Vp, C) (maxT, C)  |         | [+] dwte: the output layer shares wte, and has added its gradient already |

N = B * T rows; row b * T + t is position t of sequence b. [r] read, [w] overwritten, [+] accumulated into.
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS

ZERO = np.float32(0)


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def encoder_forward_ref(out, tokens, wte, wpe):
    """The definition. Arguments as in the table above; float32 or float64."""
    B, T = tokens.shape
    out_btc = out.reshape(B, T, -1)
    np.take(wte, tokens, axis=0, out=out_btc, mode="clip")  # mode="raise" would buffer out; tokens are checked where data is loaded
    out_btc += wpe[:T]


def encoder_backward_ref(dwte, dwpe, dout, tokens):
    """The two sums. Positions are sorted by token, so that the rows of a token are neighbours, which reduceat sums."""
    B, T = tokens.shape
    dwpe[:T] += dout.reshape(B, T, -1).sum(axis=0)
    positions = np.argsort(tokens.reshape(-1), kind="stable")
    present, starts = np.unique(tokens.reshape(-1)[positions], return_index=True)
    dwte[present] += np.add.reduceat(dout[positions], starts, axis=0)


# ---------------------------------------------------------------------------------------------------- plain kernels


@cuda.jit(cache=True)
def encoder_forward_kernel(out, tokens, wte, wpe):
    """One block per position: t = blockIdx.x of sequence b = blockIdx.y. out (B, T, C)."""
    t, b = cuda.blockIdx.x, cuda.blockIdx.y
    token = tokens[b, t]
    for c in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x):
        out[b, t, c] = wte[token, c] + wpe[t, c]


@cuda.jit(cache=True)
def encoder_backward_wpe_kernel(dwpe, dout):
    """One block per position t; for each of its channels a thread sums over the sequences b = 0, 1, ... dout (B, T, C)."""
    t = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, dout.shape[2], cuda.blockDim.x):
        total = ZERO
        for b in range(dout.shape[0]):
            total += dout[b, t, c]
        dwpe[t, c] += total


@cuda.jit(cache=True)
def encoder_backward_wte_kernel(dwte, dout, tokens):
    """One block per row v of dwte adds up the rows of dout (B, T, C) whose token is v, in order. Each channel is one thread's: += is safe."""
    v = cuda.blockIdx.x
    B, T, C = dout.shape
    for b in range(B):
        for t in range(T):
            if tokens[b, t] == v:
                for c in range(cuda.threadIdx.x, C, cuda.blockDim.x):
                    dwte[v, c] += dout[b, t, c]


# -------------------------------------------------------------------------------------------------------- launchers


def encoder_forward(out, tokens, wte, wpe):
    """Look up token and position embeddings. NumPy arrays go to the reference, device arrays to the kernel.

    out [w] (B*T, C)   tokens [r] (B, T) int32, all in [0, Vp)   wte [r] (Vp, C)   wpe [r] (maxT, C), maxT >= T
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    (B, T), C = tokens.shape, wte.shape[1]
    check_arrays(
        "encoder_forward", _sizes("encoder_forward", tokens, wte, wpe),
        out=(out, "N C"), tokens=(tokens, "i32 B T"), wte=(wte, "Vp C"), wpe=(wpe, "maxT C"),
    )  # fmt: skip
    if on_host(out):
        return encoder_forward_ref(out, tokens, wte, wpe)
    check_float32("encoder_forward", out)
    encoder_forward_kernel[(T, B), THREADS, compute_stream()](out.reshape(B, T, C), tokens, wte, wpe)


def encoder_backward(dwte, dwpe, dout, tokens):
    """Gradients of encoder_forward, accumulated in a fixed order.

    dwte [+] (Vp, C)   dwpe [+] (maxT, C), maxT >= T   dout [r] (B*T, C)   tokens [r] (B, T) int32, all in [0, Vp)
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    (B, T), (Vp, C) = tokens.shape, dwte.shape
    check_arrays(
        "encoder_backward", _sizes("encoder_backward", tokens, dwte, dwpe),
        dwte=(dwte, "Vp C"), dwpe=(dwpe, "maxT C"), dout=(dout, "N C"), tokens=(tokens, "i32 B T"),
    )  # fmt: skip
    if on_host(dout):
        return encoder_backward_ref(dwte, dwpe, dout, tokens)
    check_float32("encoder_backward", dout)
    dout, stream = dout.reshape(B, T, C), compute_stream()
    encoder_backward_wpe_kernel[T, THREADS, stream](dwpe, dout)
    encoder_backward_wte_kernel[Vp, THREADS, stream](dwte, dout, tokens)


def _sizes(function, tokens, wte, wpe):
    (B, T), (Vp, C), maxT = tokens.shape, wte.shape, wpe.shape[0]
    if T > maxT:
        raise ValueError(f"{function}: tokens (B, T) = {(B, T)} are longer than the {maxT} positions of wpe")
    return {"B": B, "T": T, "N": B * T, "Vp": Vp, "C": C, "maxT": maxT}
