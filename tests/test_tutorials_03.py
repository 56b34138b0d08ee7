"""Chapter 03: what its exercise about bits claims, and what its figures count."""

import dataclasses

import numpy as np
import pytest
from numba import cuda

from dev.kernels.layernorm import fast_forward, warp_per_row
from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.layers.layernorm import layernorm_forward
from tutorials import make_exercises
from tutorials.check.examining import examine
from tutorials.check.exercises import find
from tutorials.check.failures import Failure
from tutorials.check.watching import watch
from tutorials.layernorm_figures import instructions, passes

pytestmark = pytest.mark.skipif(not SIMULATING, reason="accesses are recorded in Numba's simulator, which is off")


def test_a_tolerance_does_not_find_the_fault_of_same_bits(tmp_path):
    path, exercise = tmp_path / "03_same_bits.py", find("03_same_bits")
    path.write_text(make_exercises.skeleton(make_exercises.solution_file("03_same_bits").read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(Failure, match="few\\[0\\]"):
        examine(exercise, path)
    examine(dataclasses.replace(exercise, error=lambda inp: {name: 2e-6 * np.abs(inp).sum(axis=0) for name in ("few", "many")}), path)


def watched(function, N=2, C=256):
    arrays = [cuda.to_device(np.ones(shape, np.float32)) for shape in ((N, C), N, N, (N, C), C, C)]
    with watch() as seen:
        function(*arrays)
    return seen


@pytest.mark.parametrize("function, reads", [(layernorm_forward, 3), (warp_per_row, 3), (fast_forward, 1)])
def test_passes_over_the_sheet(function, reads):
    counts = passes(watched(function))
    assert (counts["inp", "read"], counts["out", "written"]) == (reads, 1)
    assert counts["weight", "read"] == counts["bias", "read"] == 2  # rows


def test_which_instruction_loads_which_channel():
    narrow, wide = instructions(watched(layernorm_forward), "inp", 4), instructions(watched(warp_per_row), "inp", 16)
    assert narrow.tolist() == [c // 32 for c in range(256)]
    assert wide.tolist() == [c // 4 % 2 for c in range(256)]
