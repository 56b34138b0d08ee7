"""GELU: one formula per element, and yet not memory-bound at first.

forward    plain                        4 bytes per load; tanh takes some twenty instructions
           eight_per_thread_forward     16 bytes per load; still tanh
           logistic                     ½ (1 + tanh u) is the logistic function of 2 u: two special-function instructions instead of tanh
           fast                         two loads in flight per thread
backward   plain                        4 bytes per load, from two arrays; tanh
           eight_per_thread_backward    16 bytes per load; still tanh
           fast                         the logistic function and its derivative s (1 - s)

The rungs after eight_per_thread are for bfloat16, which has twice the arithmetic per byte. In float32 eight_per_thread is already at the
ceiling, and they are slower. One H200, 2026-11-28, share of the ceiling from eight_per_thread on: forward 97, 92, 78 % in float32 and
82, 92, 92 % in bfloat16; backward 101, 97 % and 94, 97 %.
"""

from numba import cuda, float32

from dev.kernels import in_both_precisions
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers import gelu
from gpt2_numba.layers.fast import gelu as fast
from gpt2_numba.layers.gelu import CUBIC, HALF, ONE, SQRT_2_OVER_PI, THREE_CUBIC

if SIMULATING:
    from numpy import tanh
else:
    from math import tanh

THREADS = 32 if SIMULATING else 256


@cuda.jit(device=True)
def tanh_of_u(x):
    """tanh(sqrt(2/π) (x + 0.044715 x³))."""
    return tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))


def _launch(kernel, out, *others):
    kernel[ceil_div(out.size, THREADS * WIDTH), THREADS, compute_stream()](out, *others)


@cuda.jit
def eight_per_thread_forward_kernel(out, inp):
    """Elements i ... i + 7 of the flattened array."""
    i = cuda.grid(1) * WIDTH
    if i >= inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    for k in range(WIDTH):
        x[k] = HALF * x[k] * (ONE + tanh_of_u(x[k]))
    store8(out, i, x)


@in_both_precisions
def eight_per_thread_forward(out, inp):
    """A quarter of the loads for the same bytes."""
    _launch(eight_per_thread_forward_kernel, out, inp)


@cuda.jit
def logistic_kernel(out, inp):
    """The same with the logistic function."""
    i = cuda.grid(1) * WIDTH
    if i >= inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    for k in range(WIDTH):
        x[k] *= fast.logistic_of_2u(x[k])
    store8(out, i, x)


@in_both_precisions
def logistic(out, inp):
    """exp2 and a reciprocal instead of tanh. In bfloat16, the rung before is compute-bound; in float32, it is already at the ceiling."""
    _launch(logistic_kernel, out, inp)


@in_both_precisions
def fast_forward(out, inp):
    """The trainer's kernel: 16 elements per thread. In bfloat16 a thread has two loads in flight, in float32 four."""
    fast.gelu_forward(out, inp)


@cuda.jit
def eight_per_thread_backward_kernel(dinp, dout, inp):
    """Elements i ... i + 7 of the flattened array."""
    i = cuda.grid(1) * WIDTH
    if i >= inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    d = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    load8(dout, i, d)
    for k in range(WIDTH):
        tanh_u = tanh_of_u(x[k])
        du = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * x[k] * x[k])
        d[k] *= HALF * (ONE + tanh_u) + HALF * x[k] * (ONE - tanh_u * tanh_u) * du
    store8(dinp, i, d)


@in_both_precisions
def eight_per_thread_backward(dinp, dout, inp):
    """A quarter of the loads for the same bytes."""
    _launch(eight_per_thread_backward_kernel, dinp, dout, inp)


@in_both_precisions
def fast_backward(dinp, dout, inp):
    """The trainer's kernel, with the logistic function. In bfloat16, the rung before is compute-bound; in float32, it is at the ceiling."""
    fast.gelu_backward(dinp, dout, inp)


LADDER = {
    "gelu_forward": (gelu.gelu_forward, eight_per_thread_forward, logistic, fast_forward),
    "gelu_backward": (gelu.gelu_backward, eight_per_thread_backward, fast_backward),
}
