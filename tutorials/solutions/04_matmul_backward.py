"""The linear layer, backward: three sums, a kernel for each.

    dinp[n, c] = Σ_o dout[n, o] weight[o, c]     dweight[o, c] += Σ_n dout[n, o] inp[n, c]     dbias[o] += Σ_n dout[n, o]

`dout` (N, OC), `inp` (N, C) and `weight` (OC, C) are only read [r]; `dinp` (N, C) is written [w]; `dweight` (OC, C) and `dbias` (OC,) are
added to [+]. All are float32, of any sizes. The launches are given: a thread for each number of `dinp` and of `dweight`, in blocks of 16 ×
16, x along the rows; and a thread for each of `dbias`. In the last layer of GPT-2, which has no bias, `dbias` is None, and its kernel is
not launched. This function is your own GPT-2's, too.

    python -m tutorials.check 04_matmul_backward
"""

import numpy as np
from numba import cuda

ACROSS = 16  # threads of a block, across and down
ZERO = np.float32(0)


@cuda.jit
def dinp_kernel(dinp, dout, weight):
    """The thread of column c and row n writes dinp[n, c]."""
    c, n = cuda.grid(2)
    # your lines:
    if n < dinp.shape[0] and c < dinp.shape[1]:
        total = ZERO
        for o in range(dout.shape[1]):
            total += dout[n, o] * weight[o, c]
        dinp[n, c] = total
    # end of your lines


@cuda.jit
def dweight_kernel(dweight, dout, inp):
    """The thread of column c and row o adds to dweight[o, c]."""
    c, o = cuda.grid(2)
    # your lines:
    if o < dweight.shape[0] and c < dweight.shape[1]:
        total = ZERO
        for n in range(dout.shape[0]):
            total += dout[n, o] * inp[n, c]
        dweight[o, c] += total
    # end of your lines


@cuda.jit
def dbias_kernel(dbias, dout):
    """Thread o goes down column o of dout, and adds to dbias[o]."""
    o = cuda.grid(1)
    # your lines:
    if o < dbias.shape[0]:
        total = ZERO
        for n in range(dout.shape[0]):
            total += dout[n, o]
        dbias[o] += total
    # end of your lines


def blocks_for(rows, columns):
    """How many blocks it takes, across and down."""
    return (columns + ACROSS - 1) // ACROSS, (rows + ACROSS - 1) // ACROSS


def matmul_backward(dinp, dweight, dbias, dout, inp, weight):
    """Launch the three kernels, none of which needs the result of another."""
    dinp_kernel[blocks_for(*dinp.shape), (ACROSS, ACROSS)](dinp, dout, weight)
    dweight_kernel[blocks_for(*dweight.shape), (ACROSS, ACROSS)](dweight, dout, inp)
    if dbias is not None:
        dbias_kernel[(dbias.shape[0] + 31) // 32, 32](dbias, dout)
