"""The ancestors of the package's kernels in dev/kernels: each gives its launcher's answer, in the simulator and on a GPU."""

import pytest

from dev.kernels import LAYERS, ladder, rungs
from dev.kernels.__main__ import run
from gpt2_numba.gpu.backend import gpu_available
from gpt2_numba.layer_checks import AWKWARD, check_call, format_table
from gpt2_numba.layer_checks.all_layers import STORAGE

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")


@pytest.mark.parametrize("precision", STORAGE)
@pytest.mark.parametrize("layer, launcher, rung", [
    pytest.param(layer, launcher, rung, id=f"{launcher}-{rung.__name__}")
    for layer in LAYERS for launcher, of_launcher in ladder(layer).items() for rung in of_launcher
])  # fmt: skip
def test_a_rung_gives_the_answer_of_its_launcher(layer, launcher, rung, precision):
    (call,) = [call for name, found, call in rungs(layer, AWKWARD, STORAGE[precision]) if (name, found) == (launcher, rung)]
    rows = check_call(call, STORAGE[precision])
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


def test_the_table_names_every_rung_and_the_package(capsys):
    assert run(["gelu", "--precision", "fp32"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines if "right" in line] == [
        ["gelu_forward", "number_per_thread", "right"],
        ["gelu_forward", "eight_per_thread", "right"],
        ["gelu_forward", "the", "package"],
    ]
