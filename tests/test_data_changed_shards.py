"""Shards that change while a run reads them, and tokens outside the vocabulary: found in time, reported in one line, never a crash."""

import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba.data import shard_check
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.data.token_shards import Shard, write_shard
from gpt2_numba.errors import UserError
from tests.without_permission import without_permission

B, T = 2, 3
LONG_AGO = (10**9, 10**9)


def write_old_shard(path, tokens):
    """A shard that looks as if it had been written long ago: file systems count time in steps of milliseconds."""
    write_shard(path, tokens)
    os.utime(path, LONG_AGO)
    return path


@pytest.fixture
def shards(tmp_path):
    """Two shards with 4 and 3 batches."""
    folder = tmp_path / "shards"
    folder.mkdir()
    return [
        write_old_shard(folder / name, np.arange(first, first + count)) for name, first, count in [("a.bin", 0, 25), ("b.bin", 100, 19)]
    ]


def first_tokens(source, batches):
    return [int(source.next_batch()[0][0, 0]) for _ in range(batches)]


def refusal(source, batches=1):
    """The message of the UserError that one of the next batches raises."""
    with pytest.raises(UserError) as raised:
        first_tokens(source, batches)
    message = str(raised.value)
    assert "\n" not in message and "a shard must stay as it was when the run began: " in message
    return message


# What happens to the file, and what the message says of it.


def truncate(path):
    os.truncate(path, 1024 + 2 * 9)


def cut_the_end(path):
    os.truncate(path, 1024 + 2 * 24)


def append(path):
    with open(path, "ab") as file:
        file.write(b"\0\0")


def alter(path):
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\1\1")


def replace_by_shorter(path):
    write_shard(path.with_name("new"), np.arange(20))
    os.replace(path.with_name("new"), path)


def replace_by_other_tokens(path):
    """As cp -p and rsync do: another file of the same size and time."""
    write_old_shard(path.with_name("new"), Shard(path)[:][::-1])
    os.replace(path.with_name("new"), path)


def remove(path):
    path.unlink()


def replace_by_directory(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


IN_PLACE = [
    (truncate, "it had 1074 bytes and has 1042"),
    (cut_the_end, "it had 1074 bytes and has 1072"),
    (append, "bytes and has 1076"),
    (alter, "it has other tokens"),
]
ANOTHER_FILE = [
    (replace_by_shorter, "it had 1074 bytes and has 1064"), (replace_by_other_tokens, "it has other tokens"), (remove, "No such file"),
    (replace_by_directory, "it is a directory"), (replace_by_pipe, "it is a pipe"),
]  # fmt: skip


@pytest.mark.parametrize("change, reason", IN_PLACE)
@pytest.mark.parametrize("read_before", [0, 1, 2])
def test_a_shard_changed_in_place_while_it_is_open(shards, change, reason, read_before):
    loader = DataLoader(shards, B, T)
    first_tokens(loader, read_before)
    change(shards[0])
    message = refusal(loader)
    assert reason in message and message.startswith(f"{shards[0]}: ")


@pytest.mark.parametrize("change, reason", IN_PLACE + ANOTHER_FILE)
def test_a_shard_changed_before_it_is_opened(shards, change, reason):
    loader = DataLoader([shards[1], shards[0]], B, T)
    first_tokens(loader, 1)
    change(shards[0])
    assert first_tokens(loader, 2) == [106, 112]
    assert reason in refusal(loader)


@pytest.mark.parametrize("change, reason", ANOTHER_FILE)
def test_an_open_shard_is_read_to_its_end_and_refused_in_the_next_epoch(shards, change, reason):
    loader = DataLoader(shards, B, T)
    first_tokens(loader, 1)
    change(shards[0])
    assert first_tokens(loader, 6) == [6, 12, 18, 100, 106, 112]
    assert reason in refusal(loader)


def test_a_shard_without_permission(shards):
    loader = DataLoader(shards, B, T)
    with without_permission(shards[0].parent):
        with pytest.raises(UserError, match=r"a\.bin: .*Permission denied"):
            loader.next_batch()
    assert first_tokens(loader, 2) == [0, 6]  # with permission again, nothing is lost


def touch(path):
    path.touch()


def copy_over(path):
    shutil.copy(path, path.with_name("copy"))
    path.unlink()
    path.with_name("copy").rename(path)


def write_the_same(path):
    with open(path, "r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content)


@pytest.mark.parametrize("change", [touch, copy_over, write_the_same])
@pytest.mark.parametrize("read_before", [0, 2, 5])
def test_the_same_tokens_in_another_file_are_fine(shards, change, read_before):
    loader = DataLoader(shards, B, T)
    expected = first_tokens(DataLoader(shards, B, T), 16)
    first_tokens(loader, read_before)
    for shard in shards:
        change(shard)
    assert first_tokens(loader, 16 - read_before) == expected[read_before:]


def test_tokens_that_changed_while_they_were_read_are_read_again(shards, monkeypatch):
    """Another program overwrites a shard with the same tokens, and for a moment it holds others."""
    shard = Shard(shards[0])
    shard.check()
    content = shards[0].read_bytes()
    read = shard._read
    broken = [True]

    def read_a_broken_file(*arguments):
        if not broken:
            return read(*arguments)
        broken.pop()
        shards[0].write_bytes(content[:1024] + bytes(50))
        tokens = read(*arguments)
        shards[0].write_bytes(content)
        return tokens

    monkeypatch.setattr(shard, "_read", read_a_broken_file)
    np.testing.assert_array_equal(shard[3:9], np.arange(3, 9))


def test_an_unreadable_batch_is_tried_again_by_the_next_call(shards):
    loader = DataLoader(shards, B, T)
    content = shards[0].read_bytes()
    truncate(shards[0])
    refusal(loader)
    shards[0].write_bytes(content)
    assert first_tokens(loader, 2) == [0, 6]


def test_one_file_is_open_at_a_time(tmp_path):
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list open files")

    def open_shards():
        return sum(os.readlink(link).startswith(str(tmp_path)) for link in descriptors.iterdir() if link.is_symlink())

    paths = [write_old_shard(tmp_path / f"{index}.bin", np.arange(13)) for index in range(40)]
    loader = DataLoader(paths, B, T, shuffle=True)
    for _ in range(100):
        loader.next_batch()
        assert open_shards() == 1
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del loader
    assert open_shards() == 0 and not warned


def test_a_batch_is_one_read(shards, monkeypatch):
    reads = []
    read = Shard._read
    monkeypatch.setattr(Shard, "_read", lambda self, *arguments: reads.append(arguments[1:]) or read(self, *arguments))
    loader = DataLoader(shards, B, T)
    first_tokens(loader, 1)
    reads.clear()
    first_tokens(loader, 2)
    assert reads == [(6, 13), (12, 19)]


# --- Checks beside the first steps ---


def finish_checks():
    for thread in threading.enumerate():
        if thread.name == "shard check":
            thread.join()


@pytest.fixture
def one_foreign_token(shards):
    write_old_shard(shards[1], [*range(18), 37])
    return shards


def test_small_shards_are_checked_at_the_start(one_foreign_token):
    with pytest.raises(UserError, match=r"b\.bin: .*vocabulary of 37, token number 18 is 37"):
        DataLoader(one_foreign_token, B, T, vocab_size=37)


@pytest.fixture
def checked_later(monkeypatch):
    monkeypatch.setattr(shard_check, "CHECKED_AT_START", 0)


def test_later_shards_are_checked_in_a_thread(checked_later, one_foreign_token):
    loader = DataLoader(one_foreign_token, B, T, vocab_size=37)
    finish_checks()
    assert "token number 18 is 37" in str(loader.problem)


def test_a_prefetcher_passes_the_problem_on(checked_later, one_foreign_token):
    loader = DataLoader(one_foreign_token, B, T, vocab_size=37)
    finish_checks()
    with Prefetcher(loader) as prefetcher:
        assert prefetcher.problem is loader.problem is not None


def test_a_shard_that_vanishes_is_found_before_its_turn(checked_later, shards, monkeypatch):
    started = threading.Event()
    check = Shard.check

    def wait_for_the_removal(shard, vocab_size):
        if threading.current_thread().name == "shard check":
            started.wait()
        check(shard, vocab_size)

    monkeypatch.setattr(Shard, "check", wait_for_the_removal)
    loader = DataLoader(shards, B, T, vocab_size=200)
    shards[1].unlink()
    started.set()
    finish_checks()
    assert "b.bin: a shard must stay as it was when the run began: No such file" in str(loader.problem)


def test_good_shards_are_no_problem(checked_later, shards):
    loader = DataLoader(shards, B, T, vocab_size=119)
    finish_checks()
    assert loader.problem is None and first_tokens(loader, 7) == [0, 6, 12, 18, 100, 106, 112]


def test_ranks_share_the_check_and_go_on_until_all_know(checked_later, one_foreign_token):
    loaders = [DataLoader(one_foreign_token, 1, T, rank, ranks=2, vocab_size=37) for rank in range(2)]
    finish_checks()
    assert loaders[0].problem is None and "token number 18" in str(loaders[1].problem)
    for loader in loaders:
        assert len(first_tokens(loader, 4)) == 4
        with pytest.raises(UserError, match="token number 18"):  # the shard's own turn
            loader.next_batch()
