"""Neighbouring threads touch neighbouring elements.

    out[row, c] = scale[row] * inp[row, c]

`out` and `inp` are float32 of shape (N, C), `scale` of shape (N,), for any N and C. Choose the launch yourself. Memory moves in pieces of 32
bytes, for the 32 threads of a warp together: a thread for each row would be right, and would move eight times as much as it uses. The check
counts the pieces.

    python -m tutorials.check 00_coalesced
"""

from numba import cuda

THREADS = 32


@cuda.jit
def scale_rows_kernel(out, inp, scale):
    """Writes all of out, in such an order that the threads of a warp touch neighbours."""
    # your lines:
    # end of your lines


def scale_rows(out, inp, scale):
    """Launch the kernel."""
    # your lines:
    # end of your lines
