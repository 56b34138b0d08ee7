"""The loader: which tokens are in which batch. The oracle for shuffling is llm.c's order, written out plainly."""

from dataclasses import replace

import numpy as np
import pytest

from gpt2_numba.data.loader import DataLoader, permute
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.errors import UserError

B, T = 2, 3


def counting_shard(length, first=0):
    """Tokens whose values are their positions, counted from `first`."""
    return np.arange(first, first + length, dtype=np.uint16)


def first_tokens(loader, batches):
    """The first input token of each of the next batches; checks that each batch is one consecutive piece."""
    starts = []
    for _ in range(batches):
        inputs, targets = loader.next_batch()
        piece = np.arange(inputs[0, 0], inputs[0, 0] + loader.B * loader.T + 1)
        np.testing.assert_array_equal(inputs.ravel(), piece[:-1])
        np.testing.assert_array_equal(targets.ravel(), piece[1:])
        starts.append(int(inputs[0, 0]))
    return starts


class MersenneTwister:
    """mt19937ar (Matsumoto and Nishimura 2002), written as plainly as possible."""

    def __init__(self, seed):
        self.state = [seed]
        for j in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ (last >> 30)) + j) & 0xFFFFFFFF)

    def __call__(self):
        s = self.state
        upper, lower = s[0] & 0x80000000, s[1] & 0x7FFFFFFF
        s.append(s[397] ^ ((upper | lower) >> 1) ^ (0x9908B0DF if lower & 1 else 0))
        s.pop(0)
        y = s[-1]
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)


def llmc_order(lengths, ranks, rank, epochs, seed=42):
    """(shard, position of the rank's first token) for each batch, as llm.c's shuffling loader reads them."""
    random = MersenneTwister(seed + rank)

    def fisher_yates(items):
        for i in range(len(items) - 1, 0, -1):
            j = random() % (i + 1)
            items[i], items[j] = items[j], items[i]

    shards = list(range(len(lengths)))
    order = []
    for _ in range(epochs):
        fisher_yates(shards)  # permutes the last epoch's order
        for shard in shards:
            samples = list(range((lengths[shard] - 1) // (ranks * B * T)))  # in order again
            fisher_yates(samples)
            order += [(shard, sample * ranks * B * T + rank * B * T) for sample in samples]
    return order


def test_oracle_generator():
    random = MersenneTwister(137)  # the values that torch gives for this seed
    assert [random() for _ in range(5)] == [4053805790, 2173880614, 380293709, 1237255315, 2986595568]


def test_batches_are_int32_rows():
    inputs, targets = DataLoader([counting_shard(7, first=65529)], B, T).next_batch()  # exactly one batch
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.flags.c_contiguous and targets.flags.c_contiguous
    np.testing.assert_array_equal(inputs, [[65529, 65530, 65531], [65532, 65533, 65534]])
    np.testing.assert_array_equal(targets, [[65530, 65531, 65532], [65533, 65534, 65535]])


def test_batches_belong_to_the_caller():
    shard = counting_shard(13)
    loader = DataLoader([shard], B, T)
    inputs, targets = loader.next_batch()
    inputs[:] = -1
    assert targets[0, 0] == 1 and shard[0] == 0
    assert first_tokens(loader, 1) == [6]


def test_in_order_over_shards_and_epochs():
    loader = DataLoader([counting_shard(18), counting_shard(13, first=100)], B, T)
    # 18 tokens are two samples: the third would need token 18 as its last target
    assert first_tokens(loader, 9) == [0, 6, 100, 106, 0, 6, 100, 106, 0]
    assert (loader.num_tokens, loader.batches_per_epoch) == (31, 4)


def test_the_last_sample_needs_one_more_target():
    assert DataLoader([counting_shard(18)], B, T).batches_per_epoch == 2
    assert DataLoader([counting_shard(19)], B, T).batches_per_epoch == 3


def test_reset_repeats_from_the_start():
    loader = DataLoader([counting_shard(13), counting_shard(13, first=100)], B, T)
    first_tokens(loader, 3)
    loader.reset()
    assert first_tokens(loader, 2) == [0, 6]


def test_ranks_share_each_sample():
    loaders = [DataLoader([counting_shard(40)], B, T, rank=rank, ranks=3) for rank in range(3)]
    assert [first_tokens(loader, 3) for loader in loaders] == [[0, 18, 0], [6, 24, 6], [12, 30, 12]]
    assert [loader.batches_per_epoch for loader in loaders] == [2, 2, 2]


@pytest.mark.parametrize("rank, ranks, seed", [(0, 1, 42), (0, 2, 42), (1, 2, 42), (0, 1, 7)])
def test_shuffled_order_is_llmcs(rank, ranks, seed):
    lengths = [61, 100, 75, 200]
    shards = [counting_shard(length, first=1000 * i) for i, length in enumerate(lengths)]
    loader = DataLoader(shards, B, T, rank=rank, ranks=ranks, shuffle=True, seed=seed)
    expected = [1000 * shard + start for shard, start in llmc_order(lengths, ranks, rank, epochs=3, seed=seed)]
    assert len(expected) == 3 * loader.batches_per_epoch
    assert first_tokens(loader, len(expected)) == expected


def test_default_seed_is_llmcs():
    loader = DataLoader([counting_shard(200)], B, T, shuffle=True)
    assert first_tokens(loader, 33) == [start for _, start in llmc_order([200], ranks=1, rank=0, epochs=1, seed=42)]


def test_a_shuffled_epoch_has_every_sample_once():
    loader = DataLoader([counting_shard(61), counting_shard(100, first=1000)], B, T, shuffle=True)
    every_sample = [*range(0, 60, 6), *range(1000, 1096, 6)]
    epochs = [first_tokens(loader, loader.batches_per_epoch) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == every_sample
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("length", [0, 1])
def test_permute_draws_nothing_for_fewer_than_two_items(length):
    generator = np.random.RandomState(42)
    permute(np.arange(length), generator)
    assert generator.randint(0, 2**32, dtype=np.uint32) == MersenneTwister(42)()


def test_files_and_arrays_give_the_same_batches(tmp_path):
    arrays = [counting_shard(61), counting_shard(100, first=1000)]
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for path, array in zip(paths, arrays):
        write_shard(path, array)
    from_arrays, from_files = [DataLoader(shards, B, T, shuffle=True) for shards in (arrays, paths)]
    for _ in range(30):
        for a, b in zip(from_arrays.next_batch(), from_files.next_batch()):
            assert type(b) is np.ndarray  # not a memory map
            np.testing.assert_array_equal(a, b)


def test_shard_too_short(tmp_path):
    path = tmp_path / "short.bin"
    write_shard(path, counting_shard(12))
    with pytest.raises(UserError, match=r"short\.bin.* 2\*2\*3 \+ 1 = 13 tokens, this one has 12"):
        DataLoader([counting_shard(13), path], B, T, ranks=2)


def test_foreign_shard_stops_the_loader_at_its_start(tmp_path):
    (tmp_path / "text.bin").write_bytes(b"text" * 1000)
    with pytest.raises(UserError, match="text.bin"):
        DataLoader([counting_shard(13), tmp_path / "text.bin"], B, T)


def test_token_outside_the_vocabulary(tmp_path):
    tokens = np.full(20, 36, dtype=np.uint16)
    DataLoader([tokens], B, T, vocab_size=37)  # the largest valid token
    tokens[[19, 17]] = 40, 37  # after the last batch, but a sign of another tokenizer
    write_shard(tmp_path / "a.bin", tokens)
    for shard, name in [(tmp_path / "a.bin", r"a\.bin"), (tokens, "built-in corpus")]:
        with pytest.raises(UserError, match=rf"{name}: .*vocabulary of 37, token number 17 is 37\."):
            DataLoader([shard], B, T, vocab_size=37)


def test_the_vocabulary_of_later_shards_is_checked_at_the_start():
    with pytest.raises(UserError, match="token number 6 is 37"):
        DataLoader([counting_shard(7), counting_shard(7, first=31)], B, T, vocab_size=37)


LENGTHS = [61, 100, 75]


def some_shards(lengths=LENGTHS):
    return [counting_shard(length, first=1000 * i) for i, length in enumerate(lengths)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ranks, rank", [(1, 0), (3, 1)])
def test_a_loaded_state_continues_as_the_loader_would_have(shuffle, ranks, rank):
    """At each position in two epochs: the first sample, inside a shard, after the last sample of a shard or an epoch."""

    def make():
        return DataLoader(some_shards(), B, T, rank=rank, ranks=ranks, shuffle=shuffle)

    loader = make()
    batches = 2 * loader.batches_per_epoch
    states = []
    for _ in range(batches):
        states.append(loader.state())
        loader.next_batch()
    expected = first_tokens(make(), 2 * batches)  # state() is never called
    for index, state in enumerate(states):
        resumed = make()
        first_tokens(resumed, 1 + index % 3)  # what it has done before does not matter
        resumed.load_state(state)
        assert first_tokens(resumed, batches) == expected[index : index + batches]


def test_state_has_the_next_sample_and_what_llmc_saves():
    loader = DataLoader(some_shards(), B, T, rank=1, ranks=2, shuffle=True)
    state = loader.state()
    assert (state.shuffle, state.current_shard, state.current_sample, state.seed) == (True, 0, 0, 43)
    assert state.shard_order.dtype == state.sample_order.dtype == np.int32
    assert state.generator_words.dtype == np.uint32 and state.generator_words.shape == (624,)
    shuffles = (len(LENGTHS) - 1) + (len(state.sample_order) - 1)  # draws so far
    assert state.generator_position == shuffles
    first_tokens(loader, 2)
    assert loader.state().current_sample == 2

    plain = DataLoader(some_shards(), B, T)
    first_tokens(plain, 11)  # all of the first shard, one of the second
    state = plain.state()
    assert (state.shuffle, state.current_shard, state.current_sample) == (False, 1, 1)
    assert state.shard_order is state.sample_order is state.generator_words is None


def test_state_is_a_snapshot():
    loader = DataLoader(some_shards(), B, T, shuffle=True)
    state = loader.state()
    before = [array.copy() for array in (state.shard_order, state.sample_order, state.generator_words)]
    other = DataLoader(some_shards(), B, T, shuffle=True)
    other.load_state(state)
    for shuffling in (loader, other):  # neither its loader nor one that continues from it alters it
        first_tokens(shuffling, 2 * shuffling.batches_per_epoch)
    for array, copy in zip((state.shard_order, state.sample_order, state.generator_words), before):
        np.testing.assert_array_equal(array, copy)
    assert not np.array_equal(loader.state().shard_order, state.shard_order)  # this epoch has another order


def test_the_state_of_another_loader_is_refused():
    state = DataLoader(some_shards(), B, T, shuffle=True).state()
    for loader, reason in [
        (DataLoader(some_shards(), B, T), "is from a shuffling loader, and this one does not shuffle"),
        (DataLoader(some_shards(LENGTHS[:2]), B, T, shuffle=True), "from a run with 3 shard.s., and this one has 2"),
        (DataLoader(some_shards(), B + 1, T, shuffle=True), r"order of \d+ samples is not a permutation of the \d+ in"),
        (DataLoader(some_shards(), B, T, ranks=2, shuffle=True), r"order of \d+ samples is not a permutation of the \d+ in"),
    ]:
        expected = first_tokens(loader, 3)
        loader.reset()
        with pytest.raises(UserError, match=reason) as raised:
            loader.load_state(state)
        assert "\n" not in str(raised.value)
        if not loader.shuffle:
            assert first_tokens(loader, 3) == expected  # the loader is unchanged


@pytest.mark.parametrize(
    "shuffle, change, reason",
    [
        (True, {"current_shard": 3}, "shard number 3 of 3"),
        (True, {"current_shard": -1}, "shard number -1"),
        (True, {"current_sample": 17}, "sample 17"),
        (True, {"shard_order": np.array([0, 0, 1])}, "order of 3 shards does not name each"),
        (True, {"sample_order": np.zeros(12, np.int32)}, "order of 12 samples"),  # the right length
        (True, {"generator_position": 625}, "position 625"),
        (True, {"generator_words": np.zeros(623, np.uint32)}, "623 words"),
        (False, {"current_sample": 11}, "sample 11, and shard .* has 10"),
        (False, {"current_sample": -1}, "sample -1"),
    ],
)
def test_a_damaged_state_is_refused(shuffle, change, reason):
    loader = DataLoader(some_shards(), B, T, shuffle=shuffle)
    with pytest.raises(UserError, match=reason):
        loader.load_state(replace(loader.state(), **change))


# --- Skipped batches ---


@pytest.mark.parametrize("shuffle", [False, True])
# Of 38 batches per epoch: up to the end of a shard, past it, past the end of the epoch.
@pytest.mark.parametrize("counts", [[1] * 40, [0, 9, 1, 10, 11, 2], [60]])
def test_skip_skips_the_batches_that_would_have_come_next(shuffle, counts):
    def make():
        return DataLoader(some_shards(), B, T, shuffle=shuffle)

    loader, reading = make(), make()
    for count in counts:
        loader.skip(count)
        first_tokens(reading, count)
        assert first_tokens(loader, 1) == first_tokens(reading, 1)


def test_skipped_batches_are_not_read():
    loader = DataLoader(some_shards(), B, T)
    loader.next_batch()  # the shard is open
    loader.tokens = None
    loader.skip(8)
    assert loader.state().current_sample == 9


@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
def test_ranks_can_take_turns(ranks):
    """As validation does: whatever the number of ranks, the batches are the same and each is read once."""
    expected = first_tokens(DataLoader(some_shards(), B, T), 30)
    found = {}
    for rank in range(ranks):
        loader = DataLoader(some_shards(), B, T)
        for index in range(30):
            if index % ranks == rank:
                found[index] = first_tokens(loader, 1)[0]
            else:
                loader.skip()
    assert [found[index] for index in range(30)] == expected


# --- Other numbers of ranks ---

UNEQUAL = [130, 301, 97, 220]


def run_loaders(ranks, batch=B, shuffle=True, lengths=UNEQUAL):
    """The loaders of all ranks of a run."""
    return [DataLoader(some_shards(lengths), batch, T, rank, ranks, shuffle) for rank in range(ranks)]


def positions(loaders, batches):
    """By rank, the (shard, position of its first token) of each of the next batches."""
    return [[divmod(first, 1000) for first in first_tokens(loader, batches)] for loader in loaders]


def all_positions(ranks, batch=B, lengths=UNEQUAL):
    """All (shard, position) at which the batches of an epoch begin."""
    samples = [(length - 1) // (ranks * batch * T) for length in lengths]
    return [(shard, batch * T * index) for shard, count in enumerate(samples) for index in range(ranks * count)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_all_ranks_together_read_an_epoch_once(shuffle, ranks):
    loaders = run_loaders(ranks, shuffle=shuffle)
    for _ in range(3):
        read = positions(loaders, loaders[0].batches_per_epoch)
        assert sorted(sum(read, [])) == all_positions(ranks)


def resumed(old, ranks, batch=B, shuffle=True):
    """The loaders of a run that continues where the loaders `old` are."""
    states = [loader.state() for loader in old]
    loaders = run_loaders(ranks, batch, shuffle)
    for loader in loaders:
        loader.load_states(states)
    return loaders


def sample_count(loader, shard):
    return (UNEQUAL[shard] - 1) // loader.sample_tokens


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [0, 1, 5, 11, 40])
def test_the_same_number_of_ranks_continues_exactly(ranks, before):
    old = run_loaders(ranks)
    positions(old, before)
    loaders = resumed(old, ranks)
    assert positions(loaders, 60) == positions(old, 60)


CHANGES = [(before, after, B) for before in (1, 2, 3, 4) for after in (1, 2, 3, 4) if before != after] + [(2, 2, 1), (3, 3, 4), (4, 2, 3)]


@pytest.mark.parametrize(("before", "after", "batch"), CHANGES)
def test_another_number_of_ranks_or_another_batch(before, after, batch):
    """Ranks stay apart, the current shard continues at its fraction, later ones are read whole. Also at the ends of shards and epochs."""
    rank_0 = run_loaders(before)[0]
    epoch, first_shard = rank_0.batches_per_epoch, len(rank_0.sample_order)
    for done in (0, 1, first_shard, first_shard + 1, epoch - 1, epoch, epoch + first_shard - 2):
        old = run_loaders(before)
        positions(old, done)
        states = [loader.state() for loader in old]
        loaders = resumed(old, after, batch)

        remaining = []
        for rank, loader in enumerate(loaders):
            now, state = loader.state(), states[rank if rank < before else 0]
            samples = sample_count(loader, now.shard_order[now.current_shard])
            assert now.current_shard == state.current_shard and len(now.sample_order) == samples
            share = state.current_sample / len(state.sample_order)
            assert share <= now.current_sample / samples + 1e-12 and now.current_sample < share * samples + 1  # rounded up
            if rank < before:
                assert now.shard_order.tolist() == state.shard_order.tolist()
            remaining.append(samples - now.current_sample)

        read = positions(loaders, 2 * loaders[0].batches_per_epoch)
        for rank, (loader, own) in enumerate(zip(loaders, read)):
            assert {position // (batch * T) % after for _, position in own} == {rank}  # its own part of every sample
            # First the rest of the current shard, each sample once; then each later shard, whole.
            state, left = states[rank if rank < before else 0], remaining[rank]
            order = (states[rank] if rank < before else DataLoader(some_shards(UNEQUAL), batch, T, rank, after, True).state()).shard_order
            current, *later = order[state.current_shard :]
            assert {shard for shard, _ in own[:left]} <= {current} and len(set(own[:left])) == left
            start = left
            for shard in later:
                count = sample_count(loader, shard)
                expected = [(shard, (sample * after + rank) * batch * T) for sample in range(count)]
                assert sorted(own[start : start + count]) == expected
                start += count
            # Then whole epochs, which all ranks together read once.
            epoch = own[start : start + loader.batches_per_epoch]
            assert sorted(epoch) == [(shard, start) for shard, start in all_positions(after, batch) if start // (batch * T) % after == rank]


def test_a_new_rank_has_the_order_of_its_own_seed():
    old = run_loaders(2)
    positions(old, 7)
    third = resumed(old, 3)[2]
    fresh = run_loaders(3)[2]
    np.testing.assert_array_equal(third.shard_order, fresh.shard_order)
    assert third.seed == 44
    permute(expected := np.arange(len(third.sample_order), dtype=np.int32), fresh.generator)  # the next draws of its generator
    np.testing.assert_array_equal(third.sample_order, expected)


def test_the_new_order_of_the_current_shard_is_the_generators_next_draw():
    old = run_loaders(4)
    positions(old, 7)
    loader = resumed(old, 2)[1]
    permute(expected := np.arange(len(loader.sample_order), dtype=np.int32), old[1].generator)
    np.testing.assert_array_equal(loader.sample_order, expected)
    assert loader.seed == 43


def test_several_changes_of_the_number_of_ranks():
    """4 -> 2 -> 1 -> 4: the epochs of the last run are whole, though each rank may be at another position in its own."""
    loaders = run_loaders(4)
    for ranks in (2, 1, 4):
        positions(loaders, 5)
        loaders = resumed(loaders, ranks)
    read = []
    for loader in loaders:
        while (loader.current_shard, loader.current_sample) != (len(UNEQUAL) - 1, len(loader.sample_order)):
            loader.skip()
        read += positions([loader], loader.batches_per_epoch)[0]
    assert sorted(read) == all_positions(4)


@pytest.mark.parametrize(("before", "after", "done", "index"), [
    (1, 2, 5, 3), (2, 1, 5, 10), (4, 3, 4, 6), (3, 4, 3, 3),  # rounded up
    (2, 4, 10, 5), (1, 4, 21, 5),  # the end of the shard stays its end: 21, 10 and 5 samples
])  # fmt: skip
def test_without_shuffling_the_position_is_scaled(before, after, done, index):
    old = run_loaders(before, shuffle=False)
    positions(old, done)
    loader = resumed(old, after, shuffle=False)[after - 1]
    assert (loader.state().current_shard, loader.state().current_sample) == (0, index)
    first = first_tokens(loader, 1)[0]
    if index < sample_count(loader, 0):
        assert first == (index * after + after - 1) * B * T
    else:
        assert first == 1000 + (after - 1) * B * T


def test_states_of_other_data_are_refused():
    good = [loader.state() for loader in run_loaders(2)]
    for loader, states, reason in [
        (DataLoader(some_shards(UNEQUAL[:3]), B, T, 0, 3, True), good, "from a run with 4 shard.s., and this one has 3"),
        (DataLoader(some_shards(UNEQUAL), B, T, 0, 3), good, "is from a shuffling loader, and this one does not shuffle"),
        (DataLoader(some_shards(UNEQUAL), B, T, 2, 3, True), [replace(good[0], current_shard=4), good[1]], "shard number 4"),
        (DataLoader(some_shards(UNEQUAL), B, T, 0, 3, True), [replace(good[0], current_sample=26), good[1]], "sample 26 of 25"),
        (DataLoader(some_shards(UNEQUAL), B, T, 0, 3, True), [replace(good[0], sample_order=good[0].sample_order[:0])], "sample 0 of 0"),
    ]:
        before = loader.state()
        with pytest.raises(UserError, match=reason) as raised:
            loader.load_states(states)
        assert "\n" not in str(raised.value)
        assert loader.state().current_sample == before.current_sample and loader.shuffle == before.shuffle
        if loader.shuffle:
            np.testing.assert_array_equal(loader.state().sample_order, before.sample_order)
