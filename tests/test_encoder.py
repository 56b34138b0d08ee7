"""The encoder's sums over more rows than a thread loads at a time: in the simulator pieces are shorter, so these tests make them longer."""

import pytest

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.reductions import LOADS_IN_FLIGHT
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table
from gpt2_numba.layers.fast import encoder

pytestmark = pytest.mark.skipif(not SIMULATING, reason="on a GPU pieces have 64 places")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_more_rows_than_loads_in_flight(monkeypatch, precision):
    monkeypatch.setattr(encoder, "PLACES_PER_PIECE", LOADS_IN_FLIGHT + 2)
    sizes = Sizes(B=2 * LOADS_IN_FLIGHT + 1, T=7, C=48, NH=3, V=11, Vp=16, OC=8)
    rows = check_kernel("encoder", precision, sizes)
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)
