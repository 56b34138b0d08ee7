"""The rungs of dev/kernels, from each plain kernel to the fast one: each computes its function correctly, in the simulator and on a GPU."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dev.kernels import LAYERS, buffer, ladder, rungs
from dev.kernels.__main__ import run
from gpt2_numba.gpu.backend import gpu_available
from gpt2_numba.gpu.gemm import tf32_allowed
from gpt2_numba.kernel_sets import FUNCTIONS
from gpt2_numba.layer_checks import AWKWARD, format_table

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")

MINE = Path(__file__).resolve().parents[1] / "dev" / "kernels" / "my_layernorm.py"
RUNGS = [(layer, function, rung) for layer in LAYERS for function, steps in ladder(layer).items() for rung in steps]


@pytest.mark.parametrize("layer, function, rung", [
    pytest.param(*row, id=f"{row[1]}-{row[2].__module__.rpartition('.')[2]}.{row[2].__name__}") for row in RUNGS
])  # fmt: skip
def test_a_rung_computes_its_function(layer, function, rung, monkeypatch):
    monkeypatch.setattr("dev.kernels.ladder", lambda _: {function: (rung,)})
    for found in rungs(layer):
        rows = found.check(AWKWARD)
        print("\n" + format_table(rows))
        assert rows and all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


def test_every_layer_function_has_a_ladder_that_starts_with_the_plain_kernel():
    ladders = {function: steps for layer in LAYERS for function, steps in ladder(layer).items()}
    assert set(FUNCTIONS) <= set(ladders)
    assert all(steps[0] is FUNCTIONS[function] for function, steps in ladders.items() if function in FUNCTIONS)
    ends = {function: steps[-1].__module__ for function, steps in ladders.items() if len(steps) > 1}
    assert set(FUNCTIONS) - set(ends) <= {"residual_backward", "norm_and_scale"}  # no fast kernel, or the same one


@pytest.mark.parametrize("layer", LAYERS)
def test_bfloat16_is_supported_from_some_rung_on(layer):
    for steps in ladder(layer).values():
        in_bf16 = ["bf16" in getattr(step, "precisions", ()) for step in steps]
        assert in_bf16 == sorted(in_bf16) and not in_bf16[0], "the plain kernels are float32; once a rung takes bfloat16, all later ones do"


def test_buffers_of_different_names_are_distinct():
    """If T equals HS, attention's weights and its output have the same shape."""
    assert buffer("att", 2, 8) is not buffer("result", 2, 8)
    assert buffer("att", 2, 8) is buffer("att", 2, 8)


def test_products_may_round_to_tf32_only_on_marked_rungs(monkeypatch):
    allowed, before = {}, tf32_allowed()

    def record(rung):
        allowed[rung.precision] = tf32_allowed()

    monkeypatch.setattr("dev.kernels._calls", lambda *_: [SimpleNamespace(check=lambda *_: [record(rung)])])
    for rung in rungs("matmul"):
        rung.check(AWKWARD)
    assert allowed == {"fp32": False, "tf32": True, "bf16": False}
    assert tf32_allowed() == before


def test_the_table_names_every_rung_from_plain_to_fast(capsys):
    assert run(["gelu", "--precision", "fp32"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    forward = [line[1] for line in lines if line[0] == "gelu_forward"]
    assert forward[0] == "plain" and forward[-1] == "fast" and len(forward) > 2
    assert all(line[2:4] == ["fp32", "right"] for line in lines[1:])


def test_the_table_includes_a_users_file(capsys):
    assert run(["layernorm", "--precision", "fp32", "--mine", str(MINE)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[3] for line in lines if line[:2] in (["layernorm_forward", "yours"], ["layernorm_backward", "yours"])] == [
        "right",
        "right",
    ]


def test_a_wrong_kernel_is_reported_with_tensor_and_index(tmp_path, capsys):
    wrong = tmp_path / "wrong.py"
    source = MINE.read_text()
    assert "+=" in source
    wrong.write_text(source.replace("dinp[row, c] +=", "dinp[row, c] ="))
    assert wrong.read_text() != source
    assert run(["layernorm", "--precision", "fp32", "--mine", str(wrong)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"FAILED layernorm backward: dinp \(\d+, \d+\) at \(\d+, \d+\): got ", printed)


def test_a_file_for_another_layer_is_refused(capsys):
    assert run_command(["gelu", "--mine", str(MINE)]) == 2
    assert "defines layernorm_forward, layernorm_backward, none of which belongs to gelu" in capsys.readouterr().err


def run_command(argv):
    from gpt2_numba.command_line import exit_code

    return exit_code(run, argv)
