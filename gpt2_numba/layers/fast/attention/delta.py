"""delta[t] = out[t] · dout[t], the first step of backward in mma, tf32 and matmuls. 16 bytes per load, eight threads per query."""

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.memory_access import WIDTH, load8
from gpt2_numba.integers import ceil_div

ZERO = np.float32(0.0)
QUERIES = 4 if SIMULATING else 32  # per block, all of one head: their results are contiguous
THREADS_PER_QUERY = 8  # 16 bytes each: a head of 64 bfloat16 in one step


@cuda.jit(cache=True)
def delta_kernel(delta, dout, out):
    """delta[b, h, t] = Σ_e out[b, t, h, e] dout[b, t, h, e]. Eight threads per query; the first adds their sums in order."""
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
    """Write delta to the front of scratch; return it as an array shaped as lse, (B, NH, T)."""
    B, NH, T = lse.shape
    delta = scratch[: B * NH * T].reshape(lse.shape)
    delta_kernel[(ceil_div(T, QUERIES), B * NH), QUERIES * THREADS_PER_QUERY, compute_stream()](delta, dout, out)
    return delta
