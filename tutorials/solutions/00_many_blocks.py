"""More elements than a block has threads.

    out[i] = inp[i]²

`out` and `inp` are float32 of shape (N,), for any N. Launch blocks of 32 threads, as many as needed: 33 elements take two blocks. The
number of a thread among the threads of all blocks is `cuda.grid(1)`. The last block may have more threads than there are elements left.

    python -m tutorials.check 00_many_blocks
"""

from numba import cuda

THREADS = 32


@cuda.jit
def square_kernel(out, inp):
    """Thread i of all threads writes out[i], if there is such an element."""
    # your lines:
    i = cuda.grid(1)
    if i < inp.shape[0]:
        x = inp[i]
        out[i] = x * x
    # end of your lines


def square(out, inp):
    """Launch a thread for each element, in blocks of THREADS."""
    # your lines:
    blocks = (inp.shape[0] + THREADS - 1) // THREADS
    square_kernel[blocks, THREADS](out, inp)
    # end of your lines
