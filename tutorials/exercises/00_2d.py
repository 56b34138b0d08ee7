"""Rows and columns.

    out[row, c] = inp[row, c] + bias[c]

`out` and `inp` are float32 of shape (N, C), `bias` of shape (C,), for any N and C. Launch blocks of 8 × 4 threads: x, the first one, counts
columns, so that neighbouring threads have neighbouring columns, and y counts rows. `x, y = cuda.grid(2)` are a thread's two numbers among
the threads of all blocks; a launch with two dimensions is `kernel[(blocks_x, blocks_y), (threads_x, threads_y)](...)`.

    python -m tutorials.check 00_2d
"""

from numba import cuda

THREADS_X, THREADS_Y = 8, 4


@cuda.jit
def add_bias_kernel(out, inp, bias):
    """A thread for each element."""
    # your lines:
    # end of your lines


def add_bias(out, inp, bias):
    """Launch enough blocks to cover all rows and all columns."""
    # your lines:
    # end of your lines
