"""A kernel that is right, until it is called in place.

Many models since GPT-2 say where a token is by turning pairs of channels by an angle that grows with its position (rotary embedding). Channel
c of the first half and channel c of the second half of a row are a pair:

    out[n, c]        = inp[n, c] cos[n, c] - inp[n, c + half] sin[n, c]
    out[n, c + half] = inp[n, c + half] cos[n, c] + inp[n, c] sin[n, c]          c = 0, ..., half - 1

Somebody had written the two formulas as two lines of the loop below, the first one first. Every test passed, until the kernel was called in
place, with one array as `out` and as `inp`: then the first half of each row was right, and the second half wrong. The race detector found
nothing. The two lines have been taken out. Write them again, with what else it takes, so that the kernel may be called either way.

The check calls `rotate`, which turns `rows` in place. All arrays are float32: `rows` (N, 2 half) is read and overwritten, [r] `cos`, `sin`
(N, half). Read each number once.

    python -m tutorials.check 07_alias
"""

from numba import cuda

THREADS = 32


@cuda.jit
def rotate_kernel(out, inp, cos, sin):
    """Block number `row` has the row. out may be inp."""
    row, half = cuda.blockIdx.x, cos.shape[1]
    for c in range(cuda.threadIdx.x, half, cuda.blockDim.x):
        cosine, sine = cos[row, c], sin[row, c]
        # your lines:
        first, second = inp[row, c], inp[row, c + half]
        out[row, c] = first * cosine - second * sine
        out[row, c + half] = second * cosine + first * sine
        # end of your lines


def rotate(rows, cos, sin):
    """Turn rows in place: launch a block for each row."""
    rotate_kernel[rows.shape[0], THREADS](rows, rows, cos, sin)
