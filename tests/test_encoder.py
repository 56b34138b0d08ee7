"""The encoder's shares of the work that are not full: a last sequence without a second one, long rows, and sums over many rows."""

import pytest

from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.reductions import COLUMNS_PER_WARP, LOADS_IN_FLIGHT
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table
from gpt2_numba.layers.fast import encoder

both_precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def check(precision, sizes):
    rows = check_kernel("encoder", precision, sizes)
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@pytest.mark.skipif(not SIMULATING, reason="on a GPU pieces have 64 places")
@both_precisions
def test_more_rows_than_loads_in_flight(monkeypatch, precision):
    """Pieces of an odd number of rows, some shorter; more sequences than a thread of wpe's kernel loads at a time; in the simulator longer
    pieces than usual."""
    monkeypatch.setattr(encoder, "PLACES_PER_PIECE", LOADS_IN_FLIGHT + 3)
    check(precision, Sizes(B=encoder.WPE_ROWS + 1, T=7, C=48, NH=3, V=11, Vp=16, OC=8))


@both_precisions
def test_rows_in_several_parts_and_an_odd_number_of_sequences(precision):
    """The last part is shorter than the others, and its last eights are not in every lane."""
    C = (encoder.MOST_EIGHTS + 1) * COLUMNS_PER_WARP + 8
    parts, eights, full = encoder.row_parts(C)
    assert parts == 2 and 0 < full < eights
    check(precision, Sizes(B=encoder.SEQUENCES + 1, T=5, C=C, NH=1, V=37, Vp=64, OC=8))


def test_the_parts_cover_the_row():
    """No part is empty; those eights of a lane that need no condition lie within the row."""
    for C in range(8, 40_000, 8):
        parts, eights, full = encoder.row_parts(C)
        assert parts * eights * COLUMNS_PER_WARP >= C > (parts - 1) * eights * COLUMNS_PER_WARP
        assert eights <= encoder.MOST_EIGHTS and ((parts - 1) * eights + full) * COLUMNS_PER_WARP <= C
