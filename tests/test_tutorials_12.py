"""Chapter 12: its picture of the ring, and what its processes do when a function of the learner's raises."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt2_numba.gpu.backend import SIMULATING
from tests.mpi import ROOT
from tutorials.many_gpus_figures import ring_states

pytestmark = pytest.mark.skipif(not SIMULATING, reason="the chapter runs in the simulator")

FUNCTIONS = """
def exchange(values, line):
    line.send(values)
    return line.receive()

def ring_reduce_scatter(parts, line):
    parts[1 - line.rank][:] = line.exchange(parts[1 - line.rank])

ring_all_gather = ring_reduce_scatter

def fail(group, rank):
    if group.rank == rank:
        raise ValueError("a mistake")
    group.all_reduce([np.zeros(8, np.float32)])
"""


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_picture_of_the_ring_ends_with_the_sums(ranks):
    values = np.arange(ranks * ranks).reshape(ranks, ranks)
    states = ring_states(values)
    assert len(states) == 2 * (ranks - 1) + 1
    assert (states[-1][0] == values.sum(axis=0)).all() and (states[0][0] == values).all()
    assert (np.diag(states[ranks - 1][0]) == values.sum(axis=0)).all()  # after the first round process r has the sum of part r
    assert all(sorted(rank for rank, _ in came) == list(range(ranks)) for _, came in states[1:])


def test_a_function_that_raises_in_one_process_ends_both(tmp_path):
    task = {
        "meet": str(tmp_path), "ranks": 2, "hang_timeout": 60, "functions": FUNCTIONS, "exchange": "exchange", "calls": [["fail", {"rank": 1}]],
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tutorials.ring", json.dumps({**task, "rank": rank})], env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    (_, other), (_, own) = (process.communicate(timeout=100) for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "rank 1 failed" in other and "a mistake" in other and "ValueError: a mistake" in own
