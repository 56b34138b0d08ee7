"""How the parameters are shared out: every one belongs to exactly one rank, in the places that llm.c's files have."""

import numpy as np
import pytest

from gpt2_numba.config import count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.parallel.shards import WIDTH, Shards, ranges_of, segments_of

TINY = parse_descriptor("L=2,NH=3,C=24,T=5,V=37")  # no power of two divides it for long
RANKS = [1, 2, 3, 4, 5, 8]


def numbered(config):
    """All parameters, each with its own position as its value: name -> array of the table's shape."""
    flat = np.arange(count_parameters(config))
    ends = np.cumsum([np.prod(shape) for shape in parameter_shapes(config).values()])
    pieces = np.split(flat, ends[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(parameter_shapes(config).items(), pieces)}


def local_positions(shards, rank):
    """The global position of each number of a rank's local arrays."""
    found = np.full(shards.local_count(rank), -1)
    for local, start, length, _ in shards.parts(rank):
        assert (found[local : local + length] == -1).all()
        found[local : local + length] = np.arange(start, start + length)
    return found


def test_segments_are_the_tensors_of_each_layer():
    tensors = numbered(TINY)
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
def test_parts_are_multiples_of_what_a_thread_loads(ranks):
    shards = Shards(TINY, 0, ranks)
    for segment in shards.segments:
        bounds = np.array(shards.bounds(segment))
        assert (bounds[0], bounds[-1]) == (segment.start, segment.stop) and len(bounds) == ranks + 1
        lengths = np.diff(bounds)
        assert not (lengths % WIDTH).any() and lengths.max() - lengths.min() in (0, WIDTH)


def test_a_rank_sees_its_own_parts_unless_asked_for_others():
    shards = Shards(TINY, 2, 3)
    assert shards.parts() == shards.parts(2) != shards.parts(1)
    assert shards.local_count() == shards.local_count(2)


@pytest.mark.parametrize("ranks", [1, 3])
def test_whole(ranks):
    shards = Shards(TINY, 0, ranks, whole=True)
    for rank in range(ranks):
        np.testing.assert_array_equal(local_positions(shards, rank), np.arange(shards.global_count))
    assert shards.whole and shards.even and shards.ranks == ranks


def test_one_rank_has_everything():
    assert Shards(TINY).whole and not Shards(TINY, 0, 2).whole


def llmc_positions(config, ranks, rank):
    """The same after llm.c: tensor by tensor, of each layer the rank's share of equal shares."""
    parts = []
    for name, tensor in numbered(config).items():
        layers = tensor.reshape(1 if name in ("wte", "wpe", "lnfw", "lnfb") else config.L, ranks, -1)
        parts.append(layers[:, rank].ravel())
    return np.concatenate(parts)


@pytest.mark.parametrize(("ranks", "even"), [(1, True), (3, True), (2, False), (4, False), (6, False), (8, False)])
def test_exact_parts_are_llmcs(ranks, even):
    """24 numbers are three times 8: two ranks divide them, but into parts that are no multiples of 8."""
    exact, ours = Shards(TINY, 0, ranks, exact=True), Shards(TINY, 0, ranks)
    assert exact.even and ours.even == even
    for rank in range(ranks):
        expected = llmc_positions(TINY, ranks, rank)
        np.testing.assert_array_equal(local_positions(exact, rank), expected)
        assert np.array_equal(local_positions(ours, rank), expected) == even


def test_gpt2_is_shared_out_as_llmc_does():
    config = parse_descriptor("d12")
    for ranks in (2, 4, 8, 16, 32):
        assert Shards(config, 0, ranks).even
    assert not Shards(config, 0, 7).even


def test_no_exact_parts():
    with pytest.raises(ValueError, match="5 does not divide every tensor"):
        Shards(TINY, 0, 5, exact=True)


def decays(segment):
    return segment.name in ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")


@pytest.mark.parametrize("grads_local", [False, True])
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_ranges_tell_where_each_local_number_is(ranks, grads_local):
    shards = Shards(TINY, ranks - 1, ranks)
    table = ranges_of(shards.parts(), decays, grads_local)
    assert table.dtype == np.int64 and table.shape[1] == 4
    positions = local_positions(shards, ranks - 1)
    assert table[-1].tolist() == [len(positions)] * 3 + [0]
    decayed = np.concatenate([np.full(s.stop - s.start, decays(s)) for s in shards.segments])
    for local, position in enumerate(positions):
        start, among_all, among_grads, decay = table[np.searchsorted(table[:, 0], local, side="right") - 1]
        assert (local - start + among_all, decay) == (position, decayed[position])
        assert local - start + among_grads == (local if grads_local else position)


def test_ranges_that_go_on_are_one():
    count = Shards(TINY).global_count
    assert ranges_of(Shards(TINY).parts(), lambda segment: True).tolist() == [[0, 0, 0, 1], [count, count, count, 0]]
    table = ranges_of(Shards(TINY).parts(), decays)
    assert table[:, 3].tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0]  # wte and wpe, ln1, qkvw, qkvb, ..., fcprojw, the rest, the end


def test_empty_parts_have_no_range():
    shards = Shards(TINY, 0, 8)  # of 24 numbers rank 0 of 8 gets none
    assert {segment.name for _, _, length, segment in shards.parts() if not length} >= {"ln1w", "lnfb"}
    assert (np.diff(ranges_of(shards.parts(), decays)[:, 0]) > 0).all()
