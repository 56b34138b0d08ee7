"""LayerNorm's backward kernel with rows copied ahead. The simulator's 2 KB of shared memory hold none, so these tests pretend to have more."""

import pytest

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.race_detector import race_detector
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table
from gpt2_numba.layers.fast import layernorm

pytestmark = pytest.mark.skipif(not SIMULATING, reason="on a GPU the other tests copy rows ahead")


@pytest.mark.parametrize("rows_ahead", [1, 3])
@pytest.mark.parametrize("precision, T, C", [
    ("fp32", 26, 48),  # four or five rows per warp, so slots are reused
    ("bf16", 26, 48),
    ("fp32", 13, 520),  # two warps per row
    ("fp32", 2, 48),  # fewer rows than warps
])  # fmt: skip
def test_rows_copied_ahead(monkeypatch, rows_ahead, precision, T, C):
    monkeypatch.setattr(layernorm, "MOST_ROWS_AHEAD", rows_ahead)
    monkeypatch.setattr(layernorm, "max_shared_bytes", lambda: 1 << 20)
    with race_detector():
        rows = check_kernel("layernorm", precision, Sizes(B=1, T=T, C=C, NH=1, V=37, Vp=64, OC=8))
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)
