"""delta[t] = out[t] · dout[t], with which the backward pass of mma, tf32 and matmuls begins: 16 bytes a load, eight threads to a query."""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8

ZERO = np.float32(0.0)
QUERIES = 4 if SIMULATING else 32  # of one head, to a block: their results lie side by side
THREADS_PER_QUERY = 8  # of sixteen bytes each: a head of 64 bfloat16 in one step


@cuda.jit(cache=True)
def delta_kernel(delta, dout, out):
    """delta[b, h, t] = Σ_e out[b, t, h, e] dout[b, t, h, e]. Eight threads a query; the first adds up what they have, in order."""
    partial = cuda.shared.array((QUERIES, THREADS_PER_QUERY), float32)
    _, NH, T = delta.shape
    HS = out.shape[1] // NH
    query, part = cuda.threadIdx.x // THREADS_PER_QUERY, cuda.threadIdx.x % THREADS_PER_QUERY
    t, head = cuda.blockIdx.x * QUERIES + query, cuda.blockIdx.y
    b, h = head // NH, head % NH
    x = cuda.local.array(WIDTH, float32)
    y = cuda.local.array(WIDTH, float32)

    total = ZERO
    if t < T:
        row = ((b * T + t) * NH + h) * HS
        for e in range(part * WIDTH, HS, THREADS_PER_QUERY * WIDTH):
            load8(out, row + e, x)
            load8(dout, row + e, y)
            for k in range(WIDTH):
                total += x[k] * y[k]
    partial[query, part] = total
    cuda.syncthreads()
    if part == 0 and t < T:
        total = partial[query, 0]
        for other in range(1, THREADS_PER_QUERY):
            total += partial[query, other]
        delta[b, h, t] = total


def compute_delta(scratch, dout, out, lse):
    """Write delta to the front of scratch; returns it as an array of the shape of lse, (B, NH, T)."""
    B, NH, T = lse.shape
    delta = scratch[: B * NH * T].reshape(lse.shape)
    delta_kernel[(-(-T // QUERIES), B * NH), QUERIES * THREADS_PER_QUERY, compute_stream()](delta, dout, out)
    return delta
