"""The encoder, forward: a token becomes its row of wte plus the row of its position in wpe.

    out[b, t, c] = wte[tokens[b, t], c] + wpe[t, c]

`tokens` [r] is int32 of shape (B, T), all in [0, Vp). `wte` [r] (Vp, C), `wpe` [r] (maxT, C) with maxT >= T, and `out` [w] (B * T, C) are
float32. The launch is given: a block for each position t of each sequence b, t along x and b along y; the kernel gets `out` as (B, T, C). C
may be larger than the number of threads, or smaller. In your own GPT-2, at the end of the course, this function will be its encoder.

    python -m tutorials.check 02_encoder_forward
"""

from numba import cuda

from gpt2_numba.gpu.block_sum import THREADS  # 32 in the simulator, 256 on a GPU


@cuda.jit
def encoder_forward_kernel(out, tokens, wte, wpe):
    """A block writes one row: that of position t of sequence b. out (B, T, C)."""
    # your lines:
    # end of your lines


def encoder_forward(out, tokens, wte, wpe):
    """Launch a block for each row of out."""
    B, T = tokens.shape
    encoder_forward_kernel[(T, B), THREADS](out.reshape(B, T, wte.shape[1]), tokens, wte, wpe)
