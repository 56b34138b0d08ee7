"""The encoder, backward: two sums over rows of dout, without races and without atomics.

    dwpe[t, c] += the sum of dout[b, t, c] over all b
    dwte[v, c] += the sum of dout[b, t, c] over all (b, t) with tokens[b, t] = v

`dout` [r] is float32 of shape (B * T, C), which the kernels get as (B, T, C), and `tokens` [r] int32 (B, T), all in [0, Vp). `dwte` [+]
(Vp, C) and `dwpe` [+] (maxT, C), maxT >= T, are float32, and must keep what is in them: other layers add to them, too. The launches are
given: a block for each position t, and a block for each row v of dwte. In your own GPT-2, at the end of the course, this function will be
the backward pass of its encoder.

    python -m tutorials.check 02_encoder_backward
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.block_sum import THREADS

ZERO = np.float32(0)


@cuda.jit
def encoder_backward_wpe_kernel(dwpe, dout):
    """Block t adds up position t of all sequences. dout (B, T, C)."""
    t = cuda.blockIdx.x
    # your lines:
    for c in range(cuda.threadIdx.x, dout.shape[2], cuda.blockDim.x):
        total = ZERO
        for b in range(dout.shape[0]):
            total += dout[b, t, c]
        dwpe[t, c] += total
    # end of your lines


@cuda.jit
def encoder_backward_wte_kernel(dwte, dout, tokens):
    """Block v adds up the rows of dout (B, T, C) whose token is v."""
    v = cuda.blockIdx.x
    B, T, C = dout.shape
    # your lines:
    for b in range(B):
        for t in range(T):
            if tokens[b, t] == v:
                for c in range(cuda.threadIdx.x, C, cuda.blockDim.x):
                    dwte[v, c] += dout[b, t, c]
    # end of your lines


def encoder_backward(dwte, dwpe, dout, tokens):
    """Launch both kernels."""
    B, T = tokens.shape
    dout = dout.reshape(B, T, dwte.shape[1])
    encoder_backward_wpe_kernel[T, THREADS](dwpe, dout)
    encoder_backward_wte_kernel[dwte.shape[0], THREADS](dwte, dout, tokens)
