"""The simulator's scheduler: threads that take turns, barriers, warp instructions, and wrong kernels.

A kernel that would hang or crash on a GPU must raise an error that says where, and leave the simulator ready for the next launch.
"""

import numpy as np
import pytest
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.reductions import block_sum, warp_max, warp_sum
from gpt2_numba.gpu.simulator import swapped_cuda_module

pytestmark = pytest.mark.skipif(not SIMULATING, reason="tests Numba's simulator, which is off")

THREADS = 96


@cuda.jit
def rotate_kernel(out, rounds):
    """In every round each thread takes its right neighbour's value, through shared memory."""
    shared = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    value = float32(cuda.blockIdx.x * 1000 + i)
    for _ in range(rounds):
        shared[i] = value
        cuda.syncthreads()
        value = shared[(i + 1) % THREADS]
        cuda.syncthreads()
    out[cuda.blockIdx.x, i] = value


def works():
    """Launch kernels with barriers and warp instructions: whether the simulator computes them correctly."""
    out = np.full((2, THREADS), np.nan, np.float32)
    rotate_kernel[2, THREADS](out, 3)
    np.testing.assert_array_equal(out, np.roll(np.arange(THREADS), -3) + np.array([[0], [1000]]))
    sums = np.full((5, THREADS), np.nan, np.float32)
    sums_kernel[1, THREADS](sums, THREADS)
    return (sums[0] == THREADS * (THREADS - 1) / 2).all()


def test_a_files_cuda_is_the_simulators_until_the_last_of_its_calls_returns():
    """Numba's own, without numba-cuda, restores the real one when the first returns; the other threads then find no blockDim."""
    fake = object()
    first, second = swapped_cuda_module(works, fake), swapped_cuda_module(works, fake)
    with first:
        second.__enter__()
        assert works.__globals__["cuda"] is fake
    assert works.__globals__["cuda"] is fake
    second.__exit__(None, None, None)
    assert works.__globals__["cuda"] is cuda


def test_barriers_and_warp_instructions():
    assert works()


@cuda.jit
def sums_kernel(out, live):
    """Rows: block_sum, warp_sum, warp_max of the thread's index. Threads from index `live` (a multiple of 32) on return at once."""
    i = cuda.threadIdx.x
    if i >= live:
        return
    out[1, i] = warp_sum(np.float32(i))
    out[2, i] = warp_max(np.float32(-i))
    cuda.syncthreads()
    if live == THREADS:
        out[0, i] = block_sum(np.float32(i))


@pytest.mark.parametrize("live", [32, 64])
def test_whole_warps_may_return_early(live):
    """A barrier waits only for threads that have not returned, as on a GPU."""
    out = np.full((3, THREADS), np.nan, np.float32)
    sums_kernel[1, THREADS](out, live)
    firsts = np.arange(live) // 32 * 32
    np.testing.assert_array_equal(out[1, :live], 32 * firsts + 496)  # 0 + 1 + ... + 31 = 496
    np.testing.assert_array_equal(out[2, :live], -firsts)
    assert np.isnan(out[:, live:]).all()


@cuda.jit
def one_returns_kernel(out, returning):
    """All threads wait at a barrier but one, which returns."""
    i = cuda.threadIdx.x
    if i == returning:
        return
    cuda.syncthreads()
    out[i] = 1


@pytest.mark.parametrize("returning", [0, 17, 31])
def test_a_barrier_does_not_wait_for_a_thread_that_has_returned(returning):
    out = np.zeros(32, np.int32)
    one_returns_kernel[1, 32](out, returning)
    assert out.sum() == 31 and out[returning] == 0


@cuda.jit
def votes_kernel(out):
    """Two rows each of syncthreads_count, syncthreads_and and syncthreads_or."""
    i = cuda.threadIdx.x
    out[0, i] = cuda.syncthreads_count(i % 3 == 0)
    out[1, i] = cuda.syncthreads_count(False)
    out[2, i] = cuda.syncthreads_and(i < 39)
    out[3, i] = cuda.syncthreads_and(i >= 0)
    out[4, i] = cuda.syncthreads_or(i == 39)
    out[5, i] = cuda.syncthreads_or(i == 40)


def test_votes_of_a_block():
    out = np.full((6, 40), -1, np.int32)
    votes_kernel[1, 40](out)
    expected = np.array([14, 0, 0, 1, 1, 0])  # 0, 3, ..., 39 are 14 threads
    np.testing.assert_array_equal(out, np.repeat(expected[:, None], 40, axis=1))


@cuda.jit
def indices_kernel(out):
    """Every thread of every block increments its own element of a six-dimensional array."""
    t, b = cuda.threadIdx, cuda.blockIdx
    out[b.z, b.y, b.x, t.z, t.y, t.x] += 1
    if cuda.blockDim.x != 5 or cuda.blockDim.y != 3 or cuda.gridDim.x != 2 or cuda.gridDim.z != 4:
        out[0, 0, 0, 0, 0, 0] = -100


def test_every_thread_of_a_three_dimensional_grid_runs_once():
    out = np.zeros((4, 3, 2, 2, 3, 5), np.int32)
    indices_kernel[(2, 3, 4), (5, 3, 2)](out)
    np.testing.assert_array_equal(out, np.ones_like(out))


@cuda.jit
def order_kernel(order, position):
    """Record the order of the threads. `position[0]` is a counter without protection, safe only as long as threads take turns."""
    i = cuda.threadIdx.x
    for _ in range(2):
        order[position[0]] = i
        position[0] += 1
        cuda.syncthreads()


def test_threads_run_in_the_same_order_every_time():
    runs = []
    for _ in range(2):
        order = np.full(2 * THREADS, -1, np.int32)
        order_kernel[1, THREADS](order, np.zeros(1, np.int32))
        assert sorted(order[:THREADS]) == sorted(order[THREADS:]) == list(range(THREADS))
        runs.append(order.tolist())
    assert runs[0] == runs[1]


# ----------------------------------------------------------------------------------------------------------- wrong kernels


@cuda.jit
def divergent_kernel(out, limit):
    """The classic mistake: a warp instruction that not all threads of the warp reach."""
    i = cuda.threadIdx.x
    if i < limit:
        out[i] = warp_sum(np.float32(1))


@pytest.mark.parametrize("limit, warp", [(31, 0), (40, 1)])
def test_a_warp_instruction_under_a_divergent_condition_is_reported(limit, warp):
    with pytest.raises(RuntimeError, match=rf"wait for others that never arrive, at a warp instruction of warp {warp}\."):
        divergent_kernel[1, 64](np.zeros(64, np.float32), limit)
    assert works()


@cuda.jit
def crossed_kernel(out):
    """One half of a warp waits at a barrier, the other at a warp instruction."""
    i = cuda.threadIdx.x
    if i % 2:
        cuda.syncthreads()
    else:
        out[i] = warp_sum(np.float32(1))


def test_a_deadlock_is_reported_with_both_instructions():
    with pytest.raises(RuntimeError, match=r"a warp instruction of warp 0 and cuda\.syncthreads"):
        crossed_kernel[1, 32](np.zeros(32, np.float32))
    assert works()


def test_warp_instructions_need_whole_warps():
    with pytest.raises(RuntimeError, match="whole warps of 32 threads, got 40"):
        divergent_kernel[1, 40](np.zeros(64, np.float32), 40)
    assert works()


@cuda.jit
def failing_kernel(out, block, thread, after_barrier):
    """One thread fails before the last barrier, while others wait there, with or without a barrier before."""
    i = cuda.threadIdx.x
    if after_barrier:
        cuda.syncthreads()
    if cuda.blockIdx.x == block and i == thread:
        raise ValueError("no such luck")
    cuda.syncthreads()
    out[i] = cuda.blockIdx.x


@pytest.mark.parametrize("block, thread, after_barrier", [(0, 0, False), (2, 33, True), (1, 39, False)])
def test_an_exception_names_its_thread_and_the_next_launch_works(block, thread, after_barrier):
    with pytest.raises(ValueError, match=rf"tid=\[{thread}, 0, 0\] ctaid=\[{block}, 0, 0\]: no such luck"):
        failing_kernel[3, 40](np.zeros(40, np.int32), block, thread, after_barrier)
    assert works()


@cuda.jit
def out_of_bounds_kernel(out):
    out[cuda.grid(1)] = 1


def test_an_index_out_of_bounds_is_an_error():
    with pytest.raises(IndexError, match=r"tid=\[8, 0, 0\] ctaid=\[1, 0, 0\].*out of bounds"):
        out_of_bounds_kernel[2, 32](np.zeros(40, np.int32))
    assert works()
