"""RMSNorm's backward: two kernels, from those of LayerNorm.

    forward:    rstd = 1 / sqrt(1/C Σ_c inp[c]² + 1e-5)          xhat[c] = inp[c] rstd          out[c] = xhat[c] weight[c]          for each row

No mean is subtracted, and there is no bias. Derive the backward first: raise inp[c] by ε; which of LayerNorm's three movements are left? (In
NumPy that was 01_rmsnorm_backward.) All arrays are float32. [r] `dout`, `inp` (N, C), `weight` (C,), `rstd` (N,), as forward left it. [+]
`dinp` (N, C) and `dweight` (C,): add to what they hold. Both launches are given: the first kernel has a block for each row, the second one a
thread for each channel.

    python -m tutorials.check 03_rmsnorm
"""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.block_sum import block_sum

THREADS = 32
ZERO = np.float32(0)


@cuda.jit
def rmsnorm_backward_inp_kernel(dinp, dout, inp, weight, rstd):
    """Block number `row` has the row."""
    row, C = cuda.blockIdx.x, inp.shape[1]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x
    # your lines:
    # end of your lines


@cuda.jit
def rmsnorm_backward_params_kernel(dweight, dout, inp, rstd):
    """Thread number c goes down column c."""
    c = cuda.grid(1)
    # your lines:
    # end of your lines


def rmsnorm_backward(dinp, dweight, dout, inp, weight, rstd):
    """Launch both kernels."""
    N, C = inp.shape
    rmsnorm_backward_inp_kernel[N, THREADS](dinp, dout, inp, weight, rstd)
    rmsnorm_backward_params_kernel[(C + THREADS - 1) // THREADS, THREADS](dweight, dout, inp, rstd)
