"""Eight sums of a warp at once, values from another lane, and barriers of teams of warps."""

import numpy as np
import pytest
from numba import cuda, float32

from gpt2_numba.gpu.backend import SIMULATING, compute_stream, copy_to_host, gpu_available, to_device
from gpt2_numba.gpu.race_detector import RaceError, race_detector
from gpt2_numba.gpu.reductions import WARP_SIZE, from_lane, sync_team, warp_sum_of_eight

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 turns off the simulator")

THREADS, TEAM = 192, 64  # three teams of two warps


@cuda.jit
def eight_sums_kernel(out, inp):
    """out[0] the sums, out[1] the one that lane 13 has."""
    i, lane = cuda.threadIdx.x, cuda.threadIdx.x % WARP_SIZE
    values = cuda.local.array(8, float32)
    for k in range(8):
        values[k] = inp[i, k]
    total = warp_sum_of_eight(values, lane)
    out[0, i] = total
    out[1, i] = from_lane(total, 13)


def test_eight_sums_of_a_warp():
    """Whole numbers, whose sums are exact in any order."""
    inp = np.random.default_rng(8).integers(-1000, 1000, (2 * WARP_SIZE, 8)).astype(np.float32)
    out = to_device(np.full((2, 2 * WARP_SIZE), np.nan, np.float32))
    eight_sums_kernel[1, 2 * WARP_SIZE, compute_stream()](out, to_device(inp))
    sums = inp.reshape(2, WARP_SIZE, 8).sum(axis=1)
    first, second = copy_to_host(out)
    np.testing.assert_array_equal(first, np.repeat(sums, 4))
    np.testing.assert_array_equal(second, np.repeat(sums[:, 3], WARP_SIZE))


@cuda.jit
def teams_kernel(out, distance, waits):
    """Team t waits t + 1 times; then every thread reads what the thread at `distance` has written, and all meet."""
    shared = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    team = i // TEAM
    shared[i] = i
    cuda.syncthreads()
    for turn in range(team + 1):
        shared[i] = turn * THREADS + i
        if waits:
            sync_team(team, TEAM)
        out[turn, i] = shared[i ^ distance]
        if waits:
            sync_team(team, TEAM)
    cuda.syncthreads()
    out[3, i] = shared[THREADS - 1 - i]


def run_teams(distance=32, waits=True):
    out = to_device(np.zeros((4, THREADS), np.float32))
    teams_kernel[1, THREADS, compute_stream()](out, distance, waits)
    return copy_to_host(out)


def test_teams_wait_as_often_as_they_like():
    turns, i = np.arange(3)[:, None], np.arange(THREADS)
    last = i // TEAM  # a team's last turn
    expected = np.where(turns <= last, turns * THREADS + (i ^ 32), 0)
    np.testing.assert_array_equal(run_teams(), np.vstack([expected, (last * THREADS + i)[::-1]]))


@pytest.mark.skipif(not SIMULATING, reason="the race detector is part of the simulator")
@pytest.mark.parametrize("distance, waits", [(32, False), (64, True)], ids=["no barrier", "another team's barrier"])
def test_the_race_detector_knows_the_teams(distance, waits):
    with race_detector():
        run_teams()
        with pytest.raises(RaceError, match="with no barrier between"):
            run_teams(distance, waits)
