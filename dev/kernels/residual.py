"""The residual connection: one addition, memory-bound.

forward    plain    one element at a time: 4 bytes per load
           fast     eight elements per thread: 16 bytes per load; bfloat16 halves the bytes
backward   plain    the fast layer order has no such kernel: the branch reads the gradient of the residual stream directly
"""

from dev.kernels import in_both_precisions
from gpt2_numba.layers import residual
from gpt2_numba.layers.fast import residual as fast


@in_both_precisions
def fast_forward(out, inp, branch):
    """The trainer's kernel. The plain one issues four times as many loads, each for a quarter of the bytes."""
    fast.residual_forward(out, inp, branch)


LADDER = {"residual_forward": (residual.residual_forward, fast_forward), "residual_backward": (residual.residual_backward,)}
