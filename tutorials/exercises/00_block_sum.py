"""The sum of a block's elements.

    out[b] = the sum of piece b of inp

`inp` is float32 of shape (N,), for any N, cut into pieces of 32 elements, of which the last one may be shorter; `out` is float32 and has an
element for each piece. The launch is given: a block of 32 threads for each piece. `part` is what a thread brings: its element, or zero.
Add them up through shared memory in rounds: in the first round threads 0 to 15 add what threads 16 to 31 bring, in the second one threads
0 to 7 what threads 8 to 15 have by then, and so on. After five rounds thread 0 has the sum. In a round a thread reads one number: its own
sum stays in `part`. Where must the threads wait for each other?

    python -m tutorials.check 00_block_sum
"""

import numpy as np
from numba import cuda, float32

THREADS = 32
ZERO = np.float32(0)


@cuda.jit
def sum_pieces_kernel(out, inp):
    """Block b writes out[b]."""
    values = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    part = ZERO
    if cuda.grid(1) < inp.shape[0]:
        part = inp[cuda.grid(1)]
    # your lines:
    # end of your lines


def sum_pieces(out, inp):
    """Launch a block for each piece."""
    sum_pieces_kernel[out.shape[0], THREADS](out, inp)
