"""The local arrays of N processes, read as one array: any slice holds the right elements, wherever the parts begin and end."""

import numpy as np
import pytest

from gpt2_numba.config import parse_descriptor
from gpt2_numba.parallel.reshard import WholeArray
from gpt2_numba.parallel.shards import Shards

CONFIG = parse_descriptor("L=2,NH=3,C=24,T=5,V=37")
COUNT = Shards(CONFIG).global_count


def cut_up(values, ranks, **layout):
    """(Shards, local arrays by rank) of an array of all parameters."""
    shards = Shards(CONFIG, 0, ranks, **layout)
    parts = [[values[start : start + length] for _, start, length, _ in shards.parts(rank)] for rank in range(ranks)]
    return shards, [np.concatenate(rank_parts) for rank_parts in parts]


@pytest.mark.parametrize(("ranks", "layout"), [
    (1, {}), (2, {}), (3, {}), (4, {}), (7, {}), (2, {"exact": True}), (8, {"exact": True}), (3, {"cut": ()}),
])  # fmt: skip
def test_any_slice(ranks, layout):
    values = np.arange(COUNT, dtype=np.float32)
    whole = WholeArray(*cut_up(values, ranks, **layout))
    np.testing.assert_array_equal(whole[0:COUNT], values)
    rng = np.random.default_rng(ranks)
    bounds = {bound for s in Shards(CONFIG).segments for bound in Shards(CONFIG, 0, ranks).bounds(s)}
    for start in [*rng.integers(0, COUNT, 50), *sorted(bounds - {COUNT})]:
        for stop in (start + 1, rng.integers(start, COUNT) + 1, COUNT):
            found = whole[start:stop]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, values[start:stop])


def test_memory_maps(tmp_path):
    values = np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)
    shards, arrays = cut_up(values, 3)
    for rank, local in enumerate(arrays):
        local.tofile(tmp_path / f"{rank}.bin")
    found = WholeArray(shards, [np.memmap(tmp_path / f"{rank}.bin", np.float32, "r") for rank in range(3)])[100:9000]
    np.testing.assert_array_equal(found, values[100:9000])
    found[:] = 0  # a copy that belongs to the caller


def test_the_first_of_several_whole_copies_is_read():
    shards, copies = cut_up(np.zeros(COUNT, np.float32), 3, cut=())
    copies[1][:] = copies[2][:] = np.nan
    assert not WholeArray(shards, copies)[0:COUNT].any()
