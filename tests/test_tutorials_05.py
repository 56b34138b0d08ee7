"""Chapters 05 and 07: what they say of compiled code, and of kernels that work in place."""

import dataclasses

import numpy as np
import pytest
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.layers.gelu import gelu_forward_kernel
from tests.test_ptx import missing_parts
from tutorials import make_exercises
from tutorials.check.examining import examine
from tutorials.check.exercises import find
from tutorials.check.failures import Failure
from tutorials.gelu_figures import right_bits
from tutorials.instructions import compiled, counted

pytestmark = pytest.mark.skipif(not SIMULATING, reason="the check runs kernels in Numba's simulator, which is off")


def careless_kernel(out, inp):
    i = cuda.grid(1)
    if i < inp.shape[0]:
        out[i] = 0.3 * inp[i]


def test_instructions_of_a_kernel_of_the_package_and_of_one_of_a_cell():
    if missing := missing_parts():
        pytest.skip(f"no CUDA compiler ({missing})")
    sheets, vectors = ", ".join(["float32[:, ::1]"] * 2), ", ".join(["float32[::1]"] * 2)
    code = compiled({"gelu": (gelu_forward_kernel, sheets), "careless": (careless_kernel, vectors)})
    kinds, careless = counted(code["gelu"]), counted(code["careless"])
    assert kinds["ex2.approx.ftz.f32"] == kinds["rcp.approx.ftz.f32"] == kinds["ld.global.f32"] > 0  # one of each for each number
    assert not any("tanh" in kind or ".f64" in kind for kind in kinds)
    assert careless["mul.f64"] == 1 and careless["ld.global.f32"] == careless["ret"] == 1
    assert not any(kind.startswith((".", "$", "//", "@")) for kind in kinds + careless)


def test_without_a_compiler_there_are_no_instructions():
    assert compiled({"no such type": (careless_kernel, "float31[::1]")}) is None


def test_right_bits():
    exact = np.array([1.0, 1, 1, -4, 4])
    assert right_bits(exact + [0, 2.0**-8, -0.25, 2.0**-10, 100], exact).tolist() == [24, 8, 2, 12, 0]


def solution(name):
    return make_exercises.solution_file(name).read_text(encoding="utf-8")


def test_with_two_arrays_the_fault_of_alias_shows_nothing(tmp_path):
    """What 07_alias claims: as it was found, it is right unless out is inp."""
    found = next(wrong for wrong in find("07_alias").wrong if wrong.what == "as it was found")
    text = solution("07_alias")
    for old, new in found.changes.items():
        text = text.replace(old, new)
    path, exercise = tmp_path / "07_alias.py", dataclasses.replace(find("07_alias"), most=None)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Failure, match="rows"):
        examine(exercise, path)
    path.write_text(text.replace("(rows, rows, cos", "(rows, cuda.to_device(rows.copy_to_host()), cos"), encoding="utf-8")
    examine(exercise, path)


def test_the_line_of_silent_float64_changes_no_result(tmp_path):
    path = tmp_path / "05_silent_float64.py"
    path.write_text(
        solution("05_silent_float64").replace("s = ONE / (ONE + math.exp(MINUS_TWO * u))", "s = 1 / (1 + math.exp(-2 * u))"),
        encoding="utf-8",
    )
    examine(find("05_silent_float64"), path)
