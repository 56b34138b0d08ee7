"""dev.bench.large_arrays with small arrays: every case runs, finds nothing wrong, and finds a kernel whose last rows are wrong."""

import pytest

from dev.bench import large_arrays
from dev.bench.large_arrays import CASES, Widths, run_case
from gpt2_numba.gpu.backend import SIMULATING, gpu_available

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
SMALL = Widths(C=8, NH=1, T=4, V=37, Vp=40, period=8)


@pytest.mark.skipif(not SIMULATING, reason="python -m dev.bench.large_arrays")
@pytest.mark.parametrize("name", CASES)
def test_every_case_agrees_with_one_copy(name):
    problems, elements = run_case(name, SMALL, more_than=600)
    assert problems == [] and elements > 600


@pytest.mark.parametrize("wrong", ["out", "sum"])
def test_wrong_last_rows_are_found(wrong, monkeypatch):
    def forget_the_end(rows):
        by_row, sums = large_arrays.gelu_backward(rows)
        if rows.copies > 1:
            array = by_row["dinp"] if wrong == "out" else sums["dbias"]
            large_arrays.zero(array[array.shape[0] - 1 :])
        return by_row, sums

    monkeypatch.setitem(CASES, "gelu backward", (forget_the_end, 4, False))
    (problem,), _ = run_case("gelu backward", SMALL, more_than=600)
    assert problem.startswith("dinp: the last rows differ" if wrong == "out" else "dbias: differs from")
