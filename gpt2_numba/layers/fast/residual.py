"""The residual connection, fast: the sum of layers/residual.py for float32 and bfloat16, at the speed of memory.

What is different from the plain kernel:

    Memory is moved 16 bytes at a time. A thread adds eight neighbouring elements, whichever row they belong to: one load of each input and
    one store in bfloat16, two of each in float32 (gpu/memory_access.py). The launch reaches the rate of a device-to-device copy (one H200,
    2026-11-22, GPT-2 124M in bf16).

The trainer uses it only to add up gradients (parallel/gradients.py). In the forward pass the LayerNorm that follows computes the sum
(residual_layernorm_forward in layernorm.py), which saves reading it again, and the backward pass of this layer needs no kernel at all.

    | array          | shape, type                | access                   |
    | -------------- | -------------------------- | ------------------------ |
    | inp, branch    | (N, C) float32 or bfloat16 | [r] C a multiple of 8    |
    | out            | (N, C) same type           | [w] may be inp or branch |
"""

from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_width
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.integers import ceil_div

THREADS = 32 if SIMULATING else 256


# ----------------------------------------------------------------------------------------------------------- kernel


@cuda.jit(cache=True)
def residual_forward_kernel(out, inp, branch):
    """One thread per eight elements."""
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


# --------------------------------------------------------------------------------------------------------- launcher


def residual_forward(out, inp, branch):
    """out = inp + branch.

    out [w] (N, C), may be inp or branch   inp, branch [r] (N, C).   Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays("residual_forward", {"N": N, "C": C}, out=(out, "N C"), inp=(inp, "N C"), branch=(branch, "N C"))
    check_on_device("residual_forward", inp, "layers/residual.py")
    check_width("residual_forward", C=C)
    residual_forward_kernel[ceil_div(N * C, THREADS * WIDTH), THREADS, compute_stream()](out, inp, branch)
