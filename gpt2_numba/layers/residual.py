"""The residual connection: a branch's output is added to the stream that it branched off.

    out = inp + branch        dinp += dout        dbranch += dout

A sum hands its gradient on to both sides unchanged. That is why deep networks with residual connections train: the gradient of
the loss reaches every layer along the stream without being multiplied by anything (He et al. 2015, arXiv:1512.03385).

The model makes use of it: one array is the gradient of the stream, at every depth. Each branch reads it as its `dout` and adds to
it its own `dinp`, so that in the trainer the backward pass of this layer is no work at all. `residual_backward` is for those who
keep the two gradients apart.

    | array          | shape  | forward | backward |
    | -------------- | ------ | ------- | -------- |
    | inp, branch    | (N, C) | [r]     |          |
    | out, dout      | (N, C) | [w]     | [r]      |
    | dinp, dbranch  | (N, C) |         | [+]      |
"""

from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, on_host
from gpt2_numba.gpu.check import check_arrays, check_width
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8

THREADS = 32 if SIMULATING else 256


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def residual_forward_ref(out, inp, branch):
    """The definition: out = inp + branch."""
    out[:] = inp
    out += branch


def residual_backward_ref(dinp, dbranch, dout):
    """dinp += dout, dbranch += dout."""
    dinp += dout
    dbranch += dout


# ---------------------------------------------------------------------------------------------------------- kernels


@cuda.jit(cache=True)
def residual_forward_kernel(out, inp, branch):
    """One thread adds eight numbers."""
    i = cuda.grid(1) * WIDTH
    if i >= out.size:
        return
    x = cuda.local.array(WIDTH, float32)
    y = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    load8(branch, i, y)
    for k in range(WIDTH):
        x[k] += y[k]
    store8(out, i, x)


@cuda.jit(cache=True)
def residual_backward_kernel(dinp, dbranch, dout):
    """One thread takes eight numbers of dout to both sides."""
    i = cuda.grid(1) * WIDTH
    if i >= dout.size:
        return
    x = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    load8(dout, i, d)
    load8(dinp, i, x)
    for k in range(WIDTH):
        x[k] += d[k]
    store8(dinp, i, x)
    load8(dbranch, i, x)
    for k in range(WIDTH):
        x[k] += d[k]
    store8(dbranch, i, x)


# -------------------------------------------------------------------------------------------------------- launchers


def residual_forward(out, inp, branch):
    """out = inp + branch. The arrays decide: NumPy runs the reference, device arrays the kernel.

    out [w] (N, C)   inp, branch [r] (N, C).   Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays("residual_forward", {"N": N, "C": C}, out=(out, "N C"), inp=(inp, "N C"), branch=(branch, "N C"))
    if on_host(inp):
        return residual_forward_ref(out, inp, branch)
    check_width("residual_forward", C=C)
    residual_forward_kernel[-(-N * C // (THREADS * WIDTH)), THREADS, compute_stream()](out, inp, branch)


def residual_backward(dinp, dbranch, dout):
    """dinp += dout, dbranch += dout.

    dinp, dbranch [+] (N, C)   dout [r] (N, C).   Raises ValueError or TypeError where a shape or type does not fit.
    """
    N, C = dout.shape
    check_arrays("residual_backward", {"N": N, "C": C}, dinp=(dinp, "N C"), dbranch=(dbranch, "N C"), dout=(dout, "N C"))
    if on_host(dout):
        return residual_backward_ref(dinp, dbranch, dout)
    check_width("residual_backward", C=C)
    residual_backward_kernel[-(-N * C // (THREADS * WIDTH)), THREADS, compute_stream()](dinp, dbranch, dout)
