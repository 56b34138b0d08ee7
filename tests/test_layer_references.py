"""The NumPy references are the oracle for both sets of kernels, so they are checked first: backward against differences of forward."""

from pathlib import Path

import numpy as np
import pytest

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_bits, bfloat16_values
from gpt2_numba.layer_checks import LAYERS, Row, central_differences, check_reference, compare, format_table, half_ulp
from gpt2_numba.layers import layernorm
from gpt2_numba.layers.fast.encoder import PLACES_PER_PIECE, most_pieces, places_by_token


@pytest.mark.parametrize("layer", LAYERS)
def test_reference(layer):
    rows = check_reference(layer)
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


def test_every_layer_has_a_check_and_both_sets_of_kernels():
    def layers_in(folder):
        found = (*folder.glob("[a-z]*.py"), *(file.parent for file in folder.glob("*/__init__.py")))
        return {path.stem.replace("_", " ") for path in found} - {"fast", "one row", "float8"}  # other forms of these layers

    folder = Path(layernorm.__file__).parent
    assert {"layernorm", "attention"} <= layers_in(folder) <= set(LAYERS)
    assert layers_in(folder) == layers_in(folder / "fast")


def test_central_differences_match_a_known_gradient():
    x = np.array([[0.5, -1.25, 3.0]])
    gradient = central_differences(lambda: float((x**3).sum()), x)
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-9)
    np.testing.assert_array_equal(x, [[0.5, -1.25, 3.0]])


# ------------------------------------------------------------------------------- the tools of the checks catch wrong results


def test_half_ulp_is_half_the_distance_to_the_next_value():
    values = np.array([1.0, 1.9999, 2.0, -3.7e-5, 65504.0], np.float32)
    np.testing.assert_array_equal(half_ulp(values, FLOAT32), np.spacing(np.abs(values)) / 2)
    bits = bfloat16_bits(np.abs(values))
    stored = bfloat16_values(bits)
    np.testing.assert_array_equal(half_ulp(stored, BFLOAT16_BITS), (bfloat16_values(bits + np.uint16(1)) - stored) / 2)


def test_compare_reports_the_element_furthest_beyond_its_bound():
    expected = np.zeros((2, 3))
    got = np.array([[0.0, 0.5, 0.0], [0.0, 0.0, -0.25]])
    bound = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.125]])  # 0.5 is within its bound, -0.25 twice its bound
    row = compare("some layer", "out", got, expected, bound)
    assert row == Row("some layer", "out", (2, 3), 0.25, 0.125, (1, 2), -0.25, 0.0)
    assert not row.ok
    assert str(row) == "some layer: out (2, 3) at (1, 2): got -0.25, expected 0, error 0.25, bound 0.125"
    assert "FAILED some layer: out (2, 3) at (1, 2)" in format_table([row])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_compare_finds_nan_and_infinity(wrong):
    got = np.zeros((700, 1000), np.float32)  # several chunks of rows
    got[613, 31] = wrong
    row = compare("some layer", "out", got, np.zeros((700, 1000)), 1e9)
    assert not row.ok and row.index == (613, 31)


def test_compare_allows_half_a_unit_of_the_stored_type_and_no_more():
    expected = np.array([1.0 + 2**-8])  # halfway between the bfloat16 values 1 and 1 + 2^-7
    bits = bfloat16_bits(np.array([1.0], np.float32))
    assert compare("some layer", "out", bits, expected, 1e-9, BFLOAT16_BITS).ok
    assert not compare("some layer", "out", bits, expected + 2**-12, 1e-9, BFLOAT16_BITS).ok
    assert not compare("some layer", "out", bits, expected, 0.0, BFLOAT16_BITS).ok  # no arithmetic: bits must agree


@pytest.mark.parametrize("V", [50257, 7, 1])
def test_places_are_sorted_by_token_and_cut_into_pieces(V):
    """Each position occurs once; tokens with several pieces come first, since they own rows of scratch; fill follows the last piece."""
    B, T, most = 5, 61, PLACES_PER_PIECE
    random = np.random.default_rng(3)
    tokens = np.minimum(random.integers(1, V + 1, (B, T)), random.geometric(0.1, (B, T)))[:, ::-1].astype(np.int32)
    tokens = V - tokens  # the most frequent last
    places, pieces = places_by_token(tokens, V)
    assert places.dtype == pieces.dtype == np.int32 and pieces.shape == (most_pieces(B * T, V) + 1, 3)
    assert sorted(places.tolist()) == list(range(B * T))
    used = pieces[: np.argmax(pieces[:, 0] < 0)]
    assert (pieces[len(used) :] == (-1, B * T, 0)).all()
    piece_tokens, piece_counts = used[:, 0], used[:, 2]
    lengths = np.diff(pieces[: len(used) + 1, 1])
    assert (1 <= lengths).all() and (lengths <= most).all()
    assert (np.repeat(piece_tokens, lengths) == tokens.reshape(-1)[places]).all()
    firsts = np.flatnonzero(piece_counts)
    assert len(set(piece_tokens[firsts])) == len(firsts) == len(np.unique(tokens))
    assert (np.repeat(piece_tokens[firsts], piece_counts[firsts]) == piece_tokens).all()
    split = piece_counts[firsts] > 1
    assert (np.diff(split.astype(int)) <= 0).all() and piece_counts[firsts][split].sum() <= 2 * B * T // most
    for first, count in zip(firsts, piece_counts[firsts]):
        token_places = places[pieces[first, 1] : pieces[first + count, 1]]
        assert (np.diff(token_places) > 0).all() and (lengths[first : first + count - 1] == most).all()
