"""Training on shards that are still being downloaded: the same batches as with all of them there, and one line if they will not come."""

import json
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_numba.data import arriving_shards as module
from gpt2_numba.data import manifest as manifest_module
from gpt2_numba.data.arriving_shards import Arrivals, StoppedWaiting
from gpt2_numba.data.fetching.shard_download import order_of_need
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.manifest import ListedShard, SignOfLife, read_download_state, read_manifest, write_manifest
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.data.token_shards import find_shards, write_shard
from gpt2_numba.errors import UserError

B, T = 2, 4
SHARDS = 7
TOKENS = 41  # of a shard: five samples of one rank


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.005)
    monkeypatch.setattr(module, "ANNOUNCED_AFTER", 0.02)
    monkeypatch.setattr(module, "DEAD_AFTER", 0.2)
    monkeypatch.setattr(module, "MANIFEST_PATIENCE", 0.1)
    monkeypatch.setattr(manifest_module, "HEARTBEAT", 0.02)


@pytest.fixture
def complete(tmp_path):
    """A directory with all shards, and their manifest."""
    return make_shards(tmp_path / "complete")


def make_shards(directory, shards=SHARDS):
    directory.mkdir()
    listed = []
    for number in range(shards):
        name = f"text_train_{number:06d}.bin"
        write_shard(directory / name, np.random.default_rng(number).integers(0, 100, TOKENS))
        listed.append(ListedShard(name, TOKENS, 1024 + 2 * TOKENS))
    write_manifest(directory / "text", listed)
    return directory


def arriving(complete, directory, names=()):
    """A directory with the manifest of `complete`, and the named ones of its shards."""
    directory.mkdir()
    for name in ["text_manifest.json", *names]:
        os.link(complete / name, directory / name)
    return directory


def pattern(directory):
    return f"{directory}/text_train_*.bin"


def first_batches(loader, count):
    with Prefetcher(loader) as batches:
        return [batches.next_batch() for _ in range(count)]


@pytest.mark.parametrize("rank, ranks", [(0, 1), (1, 2)])
def test_batches_are_those_of_a_run_with_all_shards(tmp_path, complete, monkeypatch, rank, ranks):
    """A shard arrives only after it is waited for, so the order cannot come from the directory."""
    options = {"B": B, "T": T, "rank": rank, "ranks": ranks, "shuffle": True, "vocab_size": 100}
    batches = 2 * SHARDS * (TOKENS // (ranks * B * T)) + 1  # two epochs and more
    expected = DataLoader(find_shards(pattern(complete)), **options)
    expected_batches = [expected.next_batch() for _ in range(batches)]
    directory = arriving(complete, tmp_path / "arriving")
    waited_for = []

    def bring(what):
        name = os.path.basename(what)
        if what.startswith("waiting for") and not (directory / name).exists():
            waited_for.append(name)
            os.link(complete / name, directory / name)

    arrivals = Arrivals()
    arrivals._pause = lambda begin, what: bring(f"waiting for {what}")
    monkeypatch.setattr(module, "DEAD_AFTER", 20)
    with SignOfLife(directory / "text", "command"):
        loader = DataLoader(arrivals.find(pattern(directory)), **options)
        assert (loader.num_tokens, loader.batches_per_epoch) == (expected.num_tokens, expected.batches_per_epoch)
        assert waited_for == []  # nothing is waited for before it is read
        for got, wanted in zip(first_batches(loader, batches), expected_batches):
            assert np.array_equal(got[0], wanted[0]) and np.array_equal(got[1], wanted[1])
    needed = [shard.name for shard in order_of_need(read_manifest(complete / "text_manifest.json"), ranks=rank + 1)]
    assert sorted(waited_for) == sorted(needed) and (ranks > 1 or waited_for == needed)


@pytest.mark.parametrize("ranks", [1, 3])
def test_shards_are_fetched_in_the_order_in_which_the_ranks_open_them(complete, ranks):
    loaders = [DataLoader(find_shards(pattern(complete)), B=1, T=T, rank=rank, ranks=ranks, shuffle=True) for rank in range(ranks)]
    listed = read_manifest(complete / "text_manifest.json")
    validation = ListedShard("text_val_000000.bin", TOKENS, 1024 + 2 * TOKENS)
    order = [shard.name for shard in order_of_need([*listed, validation], ranks)]
    assert order[0] == validation.name and sorted(order[1:]) == [shard.name for shard in listed]
    opened = [listed[shard].name for position in range(SHARDS) for shard in [loader.shard_order[position] for loader in loaders]]
    assert order[1:] == list(dict.fromkeys(opened))


def test_a_position_is_restored_without_waiting(tmp_path, complete):
    whole = DataLoader(find_shards(pattern(complete)), B, T, shuffle=True)
    whole.skip(8)
    state = whole.state()
    loader = DataLoader(Arrivals().find(pattern(arriving(complete, tmp_path / "arriving"))), B, T, shuffle=True)
    loader.load_state(state)
    assert loader.state().current_sample == state.current_sample


def waiting(directory, **options):
    """(the function that waits for the first shard that a loader needs, its Arrivals)"""
    arrivals = Arrivals(**options)
    loader = DataLoader(arrivals.find(pattern(directory)), B, T)
    return loader.next_batch, arrivals


def fake_time(monkeypatch, while_asleep):
    """A clock that only sleeping advances, by a quarter of a second each time; while_asleep(seconds since the beginning) is called then."""
    clock = [0.0]

    def sleep(_):
        clock[0] += 0.25
        while_asleep(clock[0])

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))


def arrive(complete, directory, name="text_train_000000.bin"):
    os.link(complete / name, directory / name)


def test_waiting_is_announced(tmp_path, complete, monkeypatch, capsys):
    directory = arriving(complete, tmp_path / "arriving")
    sign, seen = SignOfLife(directory / "text", ""), []

    def while_asleep(seconds):
        sign._say("running")
        if seconds == 3.5:
            arrive(complete, directory)

    monkeypatch.setattr(module, "DEAD_AFTER", 60)
    monkeypatch.setattr(module, "ANNOUNCED_AFTER", 2)
    fake_time(monkeypatch, while_asleep)
    waiting(directory, progress=seen.append)[0]()
    said = capsys.readouterr().err
    assert said.count("waiting for") == 1 and "text_train_000000.bin has come after 4 s" in said
    assert len(seen) == 3 and "waiting for" in seen[0]  # once a second, so that no rank is taken for hanging


def test_a_shard_that_is_there_is_not_announced(tmp_path, complete, capsys):
    next_batch, _ = waiting(complete)
    next_batch()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "write, reason",
    [
        (lambda stem: fail(stem), r"has failed \(no route to host\). Start that again: python -m gpt2_numba.data text; then resume"),
        (lambda stem: SignOfLife(stem, "").__enter__().__exit__(None, None, None), "has ended without it"),
        (lambda stem: None, "has given no sign of life"),
        (lambda stem: SignOfLife(stem, "")._say("running"), "has given no sign of life"),  # and then it was killed
    ],
    ids=["failed", "done", "never", "killed"],
)
def test_a_download_that_is_dead_ends_the_wait(tmp_path, complete, write, reason):
    directory = arriving(complete, tmp_path / "arriving")
    write(directory / "text")
    with pytest.raises(UserError, match=f"text_train_000000.bin must arrive before the run can go on, and its download {reason}") as error:
        waiting(directory)[0]()
    assert "\n" not in str(error.value) and not isinstance(error.value, StoppedWaiting)


def fail(stem):
    with pytest.raises(UserError), SignOfLife(stem, "python -m gpt2_numba.data text"):
        raise UserError("no route to host")


def test_a_download_that_lives_is_waited_for_longer_than_a_dead_one(tmp_path, complete, monkeypatch):
    directory = arriving(complete, tmp_path / "arriving")
    sign = SignOfLife(directory / "text", "")

    def while_asleep(seconds):
        sign._say("running")
        if seconds == 10:
            arrive(complete, directory)

    monkeypatch.setattr(module, "DEAD_AFTER", 0.4)
    fake_time(monkeypatch, while_asleep)
    waiting(directory)[0]()


def test_a_request_to_stop_ends_the_wait(tmp_path, complete, monkeypatch):
    directory = arriving(complete, tmp_path / "arriving")
    monkeypatch.setattr(module, "DEAD_AFTER", 20)
    with SignOfLife(directory / "text", ""):
        batches = Prefetcher(DataLoader(Arrivals().find(pattern(directory)), B, T))
        batches.stop_waiting()
        with pytest.raises(StoppedWaiting, match="stopped while waiting for .*text_train_000000.bin"):
            batches.next_batch()
        batches.close()


def test_closing_does_not_wait_for_a_shard(tmp_path, complete, monkeypatch):
    monkeypatch.setattr(module, "DEAD_AFTER", 20)
    batches = Prefetcher(DataLoader(Arrivals().find(pattern(arriving(complete, tmp_path / "arriving"))), B, T))
    batches.close()
    with pytest.raises(StoppedWaiting):
        batches.next_batch()


def test_a_shard_that_is_not_what_the_manifest_says(tmp_path, complete):
    directory = arriving(complete, tmp_path / "arriving")
    write_shard(directory / "text_train_000000.bin", np.zeros(TOKENS + 1, np.uint16))
    with pytest.raises(UserError, match="must have the tokens that text_manifest.json says, 41, this one has 42"):
        waiting(directory)


def test_the_tokens_of_a_shard_that_comes_late_are_checked(tmp_path, complete):
    directory = arriving(complete, tmp_path / "arriving")
    arrivals = Arrivals()
    loader = DataLoader(arrivals.find(pattern(directory)), B, T, vocab_size=50)
    os.link(complete / "text_train_000000.bin", directory / "text_train_000000.bin")
    with pytest.raises(UserError, match="must be below the model's vocabulary of 50"):
        loader.next_batch()


def test_patterns_find_what_find_shards_finds(tmp_path, complete):
    for wanted in ["text_train_*.bin", "text_train_00000[1-3].bin", "text_train_000002.bin"]:
        found = Arrivals().find(complete / wanted)
        assert [shard.path for shard in found] == find_shards(complete / wanted)


def test_patterns_without_a_manifest(tmp_path, complete):
    write_manifest(complete / "more", [ListedShard("text_train_000009.bin", TOKENS, 1024 + 2 * TOKENS)])
    for wanted, reason in [
        (complete / "none_*.bin", "there is none"),
        (tmp_path / "nowhere" / "text_*.bin", "there is none"),
        (tmp_path / "*" / "text_*.bin", "without wildcards"),
        (complete / "text_train_*.bin", "takes the shards of one manifest"),
    ]:
        with pytest.raises(UserError, match=reason):
            Arrivals().find(wanted)


def test_a_manifest_that_is_about_to_be_written_is_waited_for(tmp_path, complete, monkeypatch):
    monkeypatch.setattr(module, "MANIFEST_PATIENCE", 20)
    listed = read_manifest(complete / "text_manifest.json")
    (tmp_path / "new").mkdir()
    threading.Timer(0.05, write_manifest, [tmp_path / "new" / "text", listed]).start()
    assert len(Arrivals().find(pattern(tmp_path / "new"))) == SHARDS


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"shards": 3}', '{"shards": [{"name": "a.bin"}]}', "[" * 100_000,
        '{"shards": [{"name": "../a.bin", "tokens": 1, "bytes": 1026}]}', '{"shards": [{"name": "a.bin", "tokens": 1, "bytes": 1027}]}',
        '{"shards": [{"name": "a.bin", "tokens": 0, "bytes": 1024}]}', '{"shards": [{"name": "a.bin", "tokens": "1", "bytes": 1026}]}',
        '{"shards": [{"name": "a.bin", "tokens": 1, "bytes": 1026}, {"name": "a.bin", "tokens": 1, "bytes": 1026}]}',
    ],
)  # fmt: skip
def test_damaged_manifests(tmp_path, text):
    (tmp_path / "text_manifest.json").write_text(text)
    with pytest.raises(UserError, match="a manifest must list shards"):
        read_manifest(tmp_path / "text_manifest.json")


def test_a_damaged_download_state_counts_as_none(tmp_path):
    for text in ["", "[]", '{"state": 1}']:
        (tmp_path / "text_download.json").write_text(text)
        assert read_download_state(tmp_path / "text_manifest.json") is None


def test_a_sign_of_life_advances(tmp_path):
    with SignOfLife(tmp_path / "text", "again"):
        first = read_download_state(tmp_path / "text_manifest.json")
        begin = time.monotonic()
        while read_download_state(tmp_path / "text_manifest.json") == first:
            assert time.monotonic() < begin + 10
    assert json.loads((tmp_path / "text_download.json").read_text())["state"] == "done"
