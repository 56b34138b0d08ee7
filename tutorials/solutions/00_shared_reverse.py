"""Threads exchange elements: shared memory and a barrier.

Cut `inp` into pieces of 32 elements, the last one may be shorter, and reverse each of them: the first piece of `out` is inp[31], inp[30], …,
inp[0]. Both are float32 of shape (N,), for any N. The launch is given: a block of 32 threads for each piece. A block puts its piece into
shared memory, each thread one element; then each thread takes another thread's element out. Between the two all threads must wait for each
other, those without an element too: `cuda.syncthreads()`.

    python -m tutorials.check 00_shared_reverse
"""

from numba import cuda, float32

THREADS = 32


@cuda.jit
def reverse_pieces_kernel(out, inp):
    """Block b reverses piece b, which starts at element `start` and has `size` elements."""
    values = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    start = cuda.blockIdx.x * THREADS
    size = min(THREADS, inp.shape[0] - start)
    # your lines:
    if i < size:
        values[i] = inp[start + i]
    cuda.syncthreads()
    if i < size:
        out[start + i] = values[size - 1 - i]
    # end of your lines


def reverse_pieces(out, inp):
    """Launch a block for each piece."""
    pieces = (inp.shape[0] + THREADS - 1) // THREADS
    reverse_pieces_kernel[pieces, THREADS](out, inp)
