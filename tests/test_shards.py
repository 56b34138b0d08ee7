"""How the parameters are partitioned: each belongs to exactly one rank, at the position that it has in llm.c's files."""

import numpy as np
import pytest

from gpt2_numba.config import MATRICES, count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.parallel.shards import WIDTH, Shards, Sharing, ranges_of, segments_of

TINY = parse_descriptor("L=2,NH=3,C=24,T=5,V=37")  # sizes that most numbers of ranks do not divide
RANKS = [1, 2, 3, 4, 5, 8]


def position_tensors(config):
    """All parameters, with their own positions as values: name -> array with the shape of parameter_shapes."""
    flat = np.arange(count_parameters(config))
    ends = np.cumsum([np.prod(shape) for shape in parameter_shapes(config).values()])
    pieces = np.split(flat, ends[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(parameter_shapes(config).items(), pieces)}


def local_positions(shards, rank):
    """The global position of each element of a rank's local arrays."""
    found = np.full(shards.local_count(rank), -1)
    for local, start, length, _ in shards.parts(rank):
        assert (found[local : local + length] == -1).all()
        found[local : local + length] = np.arange(start, start + length)
    return found


def test_segments_are_the_tensors_of_each_layer():
    tensors = position_tensors(TINY)
    segments = segments_of(TINY)
    assert len(segments) == 4 + 12 * TINY.L
    for name, layer, start, stop in segments:
        tensor = tensors[name]
        values = tensor if name in ("wte", "wpe", "lnfw", "lnfb") else tensor[layer]
        np.testing.assert_array_equal(values.ravel(), np.arange(start, stop))
    assert [s.start for s in segments[1:]] == [s.stop for s in segments[:-1]] and segments[0].start == 0
    assert segments[-1].stop == count_parameters(TINY)


@pytest.mark.parametrize("ranks", RANKS)
def test_each_parameter_belongs_to_one_rank(ranks):
    shards = Shards(TINY, 0, ranks)
    positions = [local_positions(shards, rank) for rank in range(ranks)]
    np.testing.assert_array_equal(np.sort(np.concatenate(positions)), np.arange(shards.global_count))
    assert all((np.diff(local) > 0).all() for local in positions)  # in the order of the parameters
    counts = [len(local) for local in positions]
    assert max(counts) - min(counts) <= WIDTH * len(shards.segments)  # nearly equal


@pytest.mark.parametrize("ranks", RANKS)
def test_parts_are_multiples_of_the_width_of_a_load(ranks):
    shards = Shards(TINY, 0, ranks)
    for segment in shards.segments:
        bounds = np.array(shards.bounds(segment))
        assert (bounds[0], bounds[-1]) == (segment.start, segment.stop) and len(bounds) == ranks + 1
        lengths = np.diff(bounds)
        assert not (lengths % WIDTH).any() and lengths.max() - lengths.min() in (0, WIDTH)


def test_parts_are_by_default_those_of_the_own_rank():
    shards = Shards(TINY, 2, 3)
    assert shards.parts() == shards.parts(2) != shards.parts(1)
    assert shards.local_count() == shards.local_count(2)


@pytest.mark.parametrize("ranks", [1, 3])
def test_without_cuts_every_rank_has_everything(ranks):
    shards = Shards(TINY, 0, ranks, cut=())
    for rank in range(ranks):
        np.testing.assert_array_equal(local_positions(shards, rank), np.arange(shards.global_count))
    assert shards.whole and shards.even and shards.ranks == ranks


def test_a_single_rank_has_everything():
    assert Shards(TINY).whole and not Shards(TINY, 0, 2).whole


def llmc_positions(config, ranks, rank):
    """The global positions of a rank's elements in llm.c: tensor by tensor, from each layer the rank's part of equal parts."""
    parts = []
    for name, tensor in position_tensors(config).items():
        layers = tensor.reshape(1 if name in ("wte", "wpe", "lnfw", "lnfb") else config.L, ranks, -1)
        parts.append(layers[:, rank].ravel())
    return np.concatenate(parts)


@pytest.mark.parametrize(("ranks", "even"), [(1, True), (3, True), (2, False), (4, False), (6, False), (8, False)])
def test_exact_parts_are_llmcs(ranks, even):
    """24 elements are three times 8: two ranks divide them, but into parts that are not multiples of 8."""
    exact, ours = Shards(TINY, 0, ranks, exact=True), Shards(TINY, 0, ranks)
    assert exact.even and ours.even == even
    for rank in range(ranks):
        expected = llmc_positions(TINY, ranks, rank)
        np.testing.assert_array_equal(local_positions(exact, rank), expected)
        assert np.array_equal(local_positions(ours, rank), expected) == even


def test_gpt2_is_partitioned_as_by_llmc():
    config = parse_descriptor("d12")
    for ranks in (2, 4, 8, 16, 32):
        assert Shards(config, 0, ranks).even
    assert not Shards(config, 0, 7).even


def test_exact_parts_need_ranks_that_divide_every_tensor():
    with pytest.raises(ValueError, match="5 does not divide every tensor"):
        Shards(TINY, 0, 5, exact=True)


# --------------------------------------------------------------------------------------------------- by stage of ZeRO


@pytest.mark.parametrize("ranks", RANKS)
def test_what_is_not_cut_is_at_every_rank(ranks):
    """A rank's local arrays hold its part of each matrix and all of each vector, in the order of the parameters."""
    files, rank = Shards(TINY, 0, ranks), ranks - 1
    shards = Shards(TINY, rank, ranks, cut=MATRICES)
    expected = []
    for segment in shards.segments:
        start, stop = files.bounds(segment)[rank : rank + 2] if segment.name in MATRICES else (segment.start, segment.stop)
        expected.extend(range(start, stop))
    positions = local_positions(shards, rank)
    np.testing.assert_array_equal(positions, expected)
    for _, start, length, segment in shards.parts():
        for position in range(start, start + length):
            assert positions[shards.local_position(segment, position)] == position


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_what_a_rank_keeps(stage, ranks):
    alone = Sharing(TINY, 0, 1, stage)
    assert alone.stage == 0 and alone.state.whole and alone.grads.whole
    sharing = Sharing(TINY, ranks - 1, ranks, stage)
    everything, vectors = count_parameters(TINY), 13 * TINY.C * TINY.L + 2 * TINY.C
    embeddings = (TINY.Vp + TINY.max_T) * TINY.C
    own = np.diff([sharing.counted.bounds(s) for s in sharing.counted.segments if s.name in MATRICES])[:, -1].sum() if stage else None
    own_embeddings = sum(np.diff(sharing.counted.bounds(s))[-1] for s in sharing.counted.segments if s.name in ("wte", "wpe"))
    assert sharing.state.local_count() == (own + vectors if stage else everything)
    assert sharing.grads.local_count() == (own - own_embeddings + embeddings + vectors if stage == 2 else everything)
    assert [s.name for s in sharing.layer_matrices(1)] == ["qkvw", "attprojw", "fcw", "fcprojw"]
    assert {s.layer for s in sharing.layer_matrices(1)} == {1}


def covered(table):
    """A row of (local position, position in parameters, position in gradients, decays) for each element that the ranges cover."""
    rows = []
    for (start, in_params, in_grads, decay), (stop, *_) in zip(table, table[1:]):
        rows += [(start + k, in_params + k, in_grads + k, decay) for k in range(stop - start)]
    return np.array(rows)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_ranges_map_each_local_position(stage, ranks):
    decayed = np.concatenate([np.full(s.stop - s.start, s.name in MATRICES) for s in segments_of(TINY)])
    for rank in range(ranks):
        sharing = Sharing(TINY, rank, ranks, stage)
        table = sharing.update_ranges()
        assert table.dtype == np.int64 and table.shape[1] == 4 and not (table % WIDTH)[:, :3].any()
        local, in_params, in_grads, decay = covered(table).T
        np.testing.assert_array_equal(local, np.arange(sharing.state.local_count()))
        np.testing.assert_array_equal(in_params, local_positions(sharing.state, rank))
        np.testing.assert_array_equal(local_positions(sharing.grads, rank)[in_grads], in_params)
        np.testing.assert_array_equal(decay, decayed[in_params])


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_norm_counts_each_element_once(stage, ranks):
    counted = []
    for rank in range(ranks):
        sharing = Sharing(TINY, rank, ranks, stage)
        *_, in_grads, _ = covered(sharing.norm_ranges()).T
        counted.append(local_positions(sharing.grads, rank)[in_grads])
    np.testing.assert_array_equal(np.sort(np.concatenate(counted)), np.arange(count_parameters(TINY)))


def test_contiguous_ranges_are_merged():
    count = count_parameters(TINY)
    for ranks in (1, 3):
        assert Sharing(TINY, 0, ranks, 0).norm_ranges().tolist() == [[0, 0, 0, 0], [count, count, count, 0]]
    table = Sharing(TINY).update_ranges()
    assert table[:, 3].tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0]  # wte and wpe, ln1, qkvw, qkvb, ..., fcprojw, the rest, the end
    assert (table[:, :3] == table[:, :1]).all()


def test_empty_parts_have_no_range():
    shards = Shards(TINY, 0, 8)  # of 24 elements rank 0 of 8 gets none
    assert {segment.name for _, _, length, segment in shards.parts() if not length} >= {"ln1w", "lnfb"}
    assert (np.diff(ranges_of(shards.parts(), Shards(TINY), lambda segment: False)[:, 0]) > 0).all()
