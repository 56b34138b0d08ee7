"""Which fast kernel is used for which rows of logits, and that each is right: bounds, NaN and guard cells as in layer_checks."""

import pytest

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table
from gpt2_numba.layers.fast import classifier

pytestmark = pytest.mark.skipif(not SIMULATING, reason="the sizes assume blocks of 32 threads and 2 KB of shared memory")

REGISTERS, SHARED, LONG = "make_training_kernel", "classifier_forward_backward_shared_kernel", "classifier_forward_backward_long_kernel"


@pytest.mark.parametrize("precision, T, V, Vp, expected", [
    ("fp32", 11, 37, 64, REGISTERS),  # 11 rows for 12 blocks; most threads have only padding
    ("fp32", 40, 249, 256, REGISTERS),  # three or four rows per block, so slots in shared memory are reused
    ("bf16", 20, 256, 256, REGISTERS),  # no padding
    ("bf16", 13, 421, 448, REGISTERS),  # two times eight columns per thread, four or five rows per block
    ("fp32", 5, 421, 448, SHARED),
    ("fp32", 5, 513, 520, LONG),
])  # fmt: skip
def test_every_training_kernel(monkeypatch, precision, T, V, Vp, expected):
    for other in {REGISTERS, SHARED, LONG} - {expected}:
        monkeypatch.setattr(classifier, other, None)  # launching it fails
    rows = check_kernel("classifier", precision, Sizes(B=1, T=T, C=8, NH=1, V=V, Vp=Vp, OC=8))
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)
