"""Sum and maximum over the threads of a block: the only device functions that the plain kernels import from another file.

Each thread of a block holds one part of a sum in a register, which no other thread can read. They exchange their parts through shared
memory, which all threads of the block see: every thread writes its part into `values`, then the parts are added in pairs, and each round
halves their number. With 8 threads:

    values         0          1        2      3      4    5    6    7
    half = 4      0+4        1+5      2+6    3+7
    half = 2    0+4+2+6    1+5+3+7                              three rounds for 8 parts, eight for 256
    half = 1      all

Thread 0 must not read values[4] before thread 4 has written it. Threads cannot be relied on to run in lockstep, so between a write and
another thread's read there must be a barrier: `cuda.syncthreads()` makes every thread wait until all threads of the block have reached it.
Without it the result depends on which thread is faster: a race. A barrier that some threads never reach is a bug too: usually the block
hangs. Never put a barrier under a condition that differs between threads; a thread may return early only in a kernel without barriers.

The order of the additions is fixed by the thread indices and the block size. That matters because float32 rounds after every addition:
another order may change the last bits. Atomic additions happen in the order in which the threads arrive, which can differ from run to run.

The fast kernels have their own block_sum and block_max, in reductions.py: for whole warps, with two barriers.
"""

from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING

if SIMULATING:
    from gpt2_numba.gpu.simulator import install

    install()  # our own scheduler for the simulator's threads

# Threads per block, a power of two. Smaller in the simulator, which runs each thread as an operating-system thread.
THREADS = 32 if SIMULATING else 256
MAX_THREADS = 1024  # per block, the hardware's limit; the size of a shared array must be known when the kernel is compiled


@cuda.jit(device=True)
def block_sum(value):
    """The sum of `value` over all threads of the block, returned to every thread. All must call it. Their number must be a power of two."""
    values = cuda.shared.array(MAX_THREADS, float32)
    i = cuda.threadIdx.x
    cuda.syncthreads()  # values is the same memory in every call: a thread may still be reading the previous result
    values[i] = value
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()  # the writes of the previous round are done; in this round no thread writes values[half] or beyond
        if i < half:
            values[i] += values[i + half]
        half //= 2
    cuda.syncthreads()  # values[0] is final
    return values[0]


@cuda.jit(device=True)
def block_max(value):
    """The largest `value` of all threads of the block. Same rules, and the same barriers for the same reasons."""
    values = cuda.shared.array(MAX_THREADS, float32)
    i = cuda.threadIdx.x
    cuda.syncthreads()
    values[i] = value
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()
        if i < half:
            values[i] = max(values[i], values[i + half])
        half //= 2
    cuda.syncthreads()
    return values[0]
