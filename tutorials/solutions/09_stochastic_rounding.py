"""Round float32 to bfloat16, up or down by lot.

A bfloat16 is the upper 16 bits of a float32. Let `rest` be the lower 16 bits of a value, a number from 0 to 65,535. The value is cut off,
and in rest of 65,536 cases it then goes to the next bfloat16, away from 0. The case is drawn by the lower 16 bits of `noise`: the value
goes there if rest + noise does not fit into 16 bits. Then the sum carries into bit 16, and the carry is the step. NaN stays the NaN it is, cut
off.

`inp` [r] is float32 (count,), `noise` [r] uint32 (count,), all 32 bits of which are random. `out` [w] is uint32 (count,): the 16 bits of
the bfloat16, as an integer from 0 to 65,535. `bits_of_float(value)` are the 32 bits of a float32, as an unsigned integer. `&` keeps the
bits that are 1 in both numbers, `>>` moves the bits down. NaN is the only number that differs from itself. A thread has one number,
and reads inp[i] and noise[i] once each.

    python -m tutorials.check 09_stochastic_rounding
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.memory_access import bits_of_float

THREADS = 32
LOWER_16, SIXTEEN = np.uint32(0xFFFF), np.uint32(16)


@cuda.jit
def round_stochastically_kernel(out, inp, noise):
    """Thread i of all threads has number i, if there is such a number."""
    i = cuda.grid(1)
    # your lines:
    if i < inp.shape[0]:
        value = inp[i]
        bits = bits_of_float(value)
        if value == value:
            bits += noise[i] & LOWER_16
        out[i] = bits >> SIXTEEN
    # end of your lines


def round_stochastically(out, inp, noise):
    """Launch a thread for each number."""
    round_stochastically_kernel[(inp.shape[0] + THREADS - 1) // THREADS, THREADS](out, inp, noise)
