"""The residual connection: a branch's output is added to the stream that it branched off.

    out = inp + branch

Backward. Raise one number of inp by a tiny ε, and the number of out at the same place rises by ε; likewise for branch. Multiply by its dout
and divide by ε: both inputs receive the gradient unchanged.

    dinp = dout        dbranch = dout

That is why deep networks with residual connections train: along the stream the gradient reaches every layer without being multiplied by
anything (He et al. 2015, arXiv:1512.03385; 2016, "Identity Mappings", arXiv:1603.05027).

    | array          | shape  | forward | backward                                                               |
    | -------------- | ------ | ------- | ---------------------------------------------------------------------- |
    | inp, branch    | (N, C) | [r]     |                                                                        |
    | out, dout      | (N, C) | [w]     | [r]                                                                    |
    | dinp, dbranch  | (N, C) |         | [w] dinp may be the same array as dout: then it stays as it is         |

N = B * T rows, one for each token. [r] read, [w] overwritten.

The model has one array for the gradient of the stream, at whatever depth backward has reached. Here it is both dout and dinp; the backward
of the branch then adds the branch's share to it.
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS

# ---------------------------------------------------------------------------------------------- reference, in NumPy


def residual_forward_ref(out, inp, branch):
    """The definition: out = inp + branch."""
    np.add(inp, branch, out=out)


def residual_backward_ref(dinp, dbranch, dout):
    """The gradient goes to both inputs."""
    dinp[:] = dout
    dbranch[:] = dout


# ---------------------------------------------------------------------------------------------------- plain kernels


@cuda.jit(cache=True)
def residual_forward_kernel(out, inp, branch):
    """One block per row. Thread i takes channels i, i + blockDim.x, ...: neighbouring threads work on neighbouring numbers."""
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        out[row, c] = inp[row, c] + branch[row, c]


@cuda.jit(cache=True)
def residual_backward_kernel(dinp, dbranch, dout):
    """One block per row. The thread that reads a number is the one that writes it, afterwards: so dinp may be dout."""
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x):
        d = dout[row, c]
        dinp[row, c] = d
        dbranch[row, c] = d


# -------------------------------------------------------------------------------------------------------- launchers


def residual_forward(out, inp, branch):
    """out = inp + branch. NumPy arrays go to the reference, device arrays to the kernel.

    out [w] (N, C)   inp, branch [r] (N, C).   Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays("residual_forward", {"N": N, "C": C}, out=(out, "N C"), inp=(inp, "N C"), branch=(branch, "N C"))
    if on_host(inp):
        return residual_forward_ref(out, inp, branch)
    check_float32("residual_forward", inp)
    residual_forward_kernel[N, THREADS, compute_stream()](out, inp, branch)


def residual_backward(dinp, dbranch, dout):
    """dinp = dout, dbranch = dout.

    dinp [w] (N, C), may be dout itself   dbranch [w] (N, C)   dout [r] (N, C)
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = dout.shape
    check_arrays("residual_backward", {"N": N, "C": C}, dinp=(dinp, "N C"), dbranch=(dbranch, "N C"), dout=(dout, "N C"))
    if on_host(dout):
        return residual_backward_ref(dinp, dbranch, dout)
    check_float32("residual_backward", dout)
    residual_backward_kernel[N, THREADS, compute_stream()](dinp, dbranch, dout)
