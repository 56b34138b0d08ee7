"""LayerNorm's backward kernel with several teams, warps and rows at a time, and rows copied ahead.

The simulator's blocks are small and its 2 KB of shared memory hold no row ahead, so these tests pretend to have more.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_numba.gpu.backend import SIMULATING, copy_to_host
from gpt2_numba.gpu.race_detector import race_detector
from gpt2_numba.layer_checks import GuardedArray, Sizes, check_call, kernel_calls
from gpt2_numba.layer_checks.all_layers import STORAGE
from gpt2_numba.layers.fast import layernorm

pytestmark = pytest.mark.skipif(not SIMULATING, reason="on a GPU the other tests have several teams, warps and rows")


def backward_calls(precision, N, C):
    sizes = Sizes(B=1, T=N, C=C, NH=1, V=37, Vp=64, OC=8)
    return [call for call in kernel_calls("layernorm", sizes, STORAGE[precision]) if call.function == "layernorm_backward"]


@pytest.fixture
def shape(monkeypatch):
    """shape(warps per block, batches ahead): the launches that follow have them."""

    def choose(warps, ahead):
        monkeypatch.setattr(layernorm, "BACKWARD_WARPS", warps)
        monkeypatch.setattr(layernorm, "batches_ahead", lambda batch_bytes: ahead)
        layernorm.make_backward_kernel.cache_clear()

    yield choose
    layernorm.make_backward_kernel.cache_clear()


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("precision, N, C, warps, expected", [  # expected: teams, warps per team, eights per thread, rows at a time
    ("fp32", 26, 48, 2, (2, 1, 1, 1)),  # four or five rows per team, so slots are reused
    ("bf16", 52, 48, 2, (2, 1, 1, 4)),  # 13 batches for six teams
    ("bf16", 54, 48, 2, (2, 1, 1, 1)),  # four rows at a time would leave two
    ("bf16", 44, 264, 4, (2, 2, 1, 4)),  # two teams of two warps, the second of which has eight columns
    ("bf16", 8, 1032, 5, (1, 5, 1, 4)),  # more warps than lanes that add up their sums
    ("fp32", 7, 1288, 2, (1, 2, 3, 1)),  # three eights per thread
    ("fp32", 3, 48, 2, (2, 1, 1, 1)),  # fewer rows than teams
])  # fmt: skip
def test_teams_warps_and_rows(shape, ahead, precision, N, C, warps, expected):
    shape(warps, ahead)
    assert (*layernorm.backward_shape(C), layernorm.rows_at_a_time(N, C, STORAGE[precision].itemsize)) == expected
    for call in backward_calls(precision, N, C):
        wrong = [str(row) for row in check_call(call, STORAGE[precision]) if not row.ok]
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("precision, N, C, warps", [("bf16", 28, 264, 4), ("fp32", 13, 520, 3), ("fp32", 4, 1288, 2)])
def test_rows_copied_ahead_are_no_race(shape, precision, N, C, warps):
    shape(warps, 1)
    for call in backward_calls(precision, N, C)[1:]:
        with race_detector():
            call.launch(SimpleNamespace(**{name: GuardedArray(tensor, STORAGE[precision]).array for name, tensor in call.tensors.items()}))


@pytest.mark.parametrize("precision, C, warps", [("bf16", 264, 4), ("fp32", 1288, 2)])
def test_dinp_may_be_dout(shape, precision, C, warps):
    """The same bits as with a copy of dout."""
    shape(warps, 1)
    call, results = backward_calls(precision, 12, C)[1], []
    for same in (False, True):
        arrays = SimpleNamespace(**{name: GuardedArray(tensor, STORAGE[precision]).array for name, tensor in call.tensors.items()})
        arrays.dinp.copy_to_device(arrays.dout)
        if same:
            arrays.dout = arrays.dinp
        call.launch(arrays)
        results.append([copy_to_host(getattr(arrays, name)) for name in ("dinp", "dweight", "dbias", "dinp_sums")])
    for separate, shared in zip(*results):
        np.testing.assert_array_equal(separate, shared)


def test_shapes_on_a_gpu(monkeypatch):
    """Those that were measured; all registers of a block's threads fit, and so do the teams' barriers: hardware has 16."""
    monkeypatch.setattr(layernorm, "BACKWARD_WARPS", 12)
    monkeypatch.setattr(layernorm, "WIDE_WARPS", 8)
    monkeypatch.setattr(layernorm, "BYTES_AHEAD", 1 << 16)
    monkeypatch.setattr(layernorm, "max_shared_bytes", lambda: 226 << 10)
    for C, expected in ((768, (4, 3, 1, 4, 1)), (1600, (1, 7, 1, 4, 2))):
        teams, warps, vectors = layernorm.backward_shape(C)
        rows = layernorm.rows_at_a_time(65536, C, 2)
        assert (teams, warps, vectors, rows, layernorm.batches_ahead(3 * teams * rows * warps * 256 * 2)) == expected
    for C in range(8, 16385, 8):
        teams, warps, vectors = layernorm.backward_shape(C)
        assert warps * vectors * 256 >= C > (warps * vectors - vectors) * 256
        assert teams * warps <= (12 if vectors == 1 else 8) and teams < 16
