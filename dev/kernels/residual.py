"""The residual connection: one addition, bound by memory.

forward    plain    a number at a time: 4 bytes a load
           fast     eight numbers a thread: 16 bytes a load; bfloat16 halves the bytes
backward   plain    the fast order of the layers has no such kernel: the branch reads the stream's gradient where it is
"""

from dev.kernels import in_both_precisions
from gpt2_numba.layers import residual
from gpt2_numba.layers.fast import residual as fast


@in_both_precisions
def fast_forward(out, inp, branch):
    """The trainer's kernel. The plain one issues four times as many loads, each for a quarter of the bytes."""
    fast.residual_forward(out, inp, branch)


LADDER = {"residual_forward": (residual.residual_forward, fast_forward), "residual_backward": (residual.residual_backward,)}
