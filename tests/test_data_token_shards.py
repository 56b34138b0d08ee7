"""Token shards: the bytes on disk are llm.c's, and a file that is not a valid shard is refused with a reason."""

import struct

import numpy as np
import pytest

from gpt2_numba.data import token_shards
from gpt2_numba.data.token_shards import Shard, find_shards, write_shard
from gpt2_numba.errors import UserError
from tests.without_permission import without_permission

TOKENS = np.array([50256, 7, 0, 65535, 258], dtype=np.uint16)


def llmc_bytes(tokens, magic=20240520, version=1, count=None):
    """An independent implementation of the format, with `struct`."""
    count = len(tokens) if count is None else count
    return struct.pack("<256i", magic, version, count, *[0] * 253) + struct.pack(f"<{len(tokens)}H", *tokens)


def test_written_bytes_are_llmcs(tmp_path):
    write_shard(tmp_path / "a.bin", TOKENS.astype(np.int64))
    assert (tmp_path / "a.bin").read_bytes() == llmc_bytes(TOKENS)


def test_tokens_read_back(tmp_path):
    (tmp_path / "a.bin").write_bytes(llmc_bytes(TOKENS))
    shard = Shard(tmp_path / "a.bin")
    assert len(shard) == 5 and shard[:].dtype == np.uint16
    for piece in (slice(None), slice(0, 2), slice(3, 5), slice(1, 2), slice(2, 2), slice(4, 9)):
        np.testing.assert_array_equal(shard[piece], TOKENS[piece])
    shard.close()
    np.testing.assert_array_equal(shard[1:3], TOKENS[1:3])  # opened again


def test_what_is_read_belongs_to_the_caller(tmp_path):
    write_shard(tmp_path / "a.bin", TOKENS)
    shard = Shard(tmp_path / "a.bin")
    shard[:][:] = 0
    np.testing.assert_array_equal(shard[:], TOKENS)


@pytest.mark.parametrize("together", [1, 2, 3, 5, 100])
def test_a_check_reads_every_token(tmp_path, monkeypatch, together):
    monkeypatch.setattr(token_shards, "SCANNED_TOGETHER", together)
    write_shard(tmp_path / "a.bin", [3, 9, 8, 8, 9])
    Shard(tmp_path / "a.bin").check()
    Shard(tmp_path / "a.bin").check(10)
    with pytest.raises(UserError, match=r"a\.bin: .*vocabulary of 9, token number 1 is 9\."):
        Shard(tmp_path / "a.bin").check(9)
    write_shard(tmp_path / "b.bin", [3, 8, 8, 8, 9])
    with pytest.raises(UserError, match=r"token number 4 is 9\."):
        Shard(tmp_path / "b.bin").check(9)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "must have a header of 1024 bytes"),
        (b"First Citizen:\n", "must have a header of 1024 bytes"),
        (llmc_bytes(TOKENS)[:1023], "must have a header of 1024 bytes"),
        (b"First Citizen:\n" * 100, "something else"),
        (llmc_bytes(TOKENS, magic=20240326), "a model checkpoint"),
        (llmc_bytes(TOKENS, version=2), "has 2"),
        (llmc_bytes([], count=0), "at least one token"),
        (llmc_bytes(TOKENS, count=-5), "at least one token"),
        (llmc_bytes(TOKENS)[:-1], "must have 1034 bytes, this file has 1033"),
        (llmc_bytes(TOKENS) + b"\0", "must have 1034 bytes, this file has 1035"),
    ],
)
def test_invalid_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        Shard(path)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def test_the_message_for_a_text_file_says_how_to_make_a_shard(tmp_path):
    (tmp_path / "text.txt").write_text("text " * 1000)
    with pytest.raises(UserError, match="python -m gpt2_numba.data"):
        Shard(tmp_path / "text.txt")


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        Shard(tmp_path / "none.bin")
    with pytest.raises(UserError, match="it is a directory, not a regular file"):
        Shard(tmp_path)


@pytest.mark.parametrize("tokens", [[], [-1], [65536], [[1, 2]], [1.0]])
def test_invalid_tokens_are_not_written(tmp_path, tokens):
    with pytest.raises(ValueError, match="write_shard"):
        write_shard(tmp_path / "a.bin", np.array(tokens, dtype=None if tokens else np.uint16))
    assert not (tmp_path / "a.bin").exists()


def test_find_shards_sorts_and_matches(tmp_path):
    (tmp_path / "x_val_000000.bin").touch()
    for number in [10, 2, 7, 0, 5, 11, 3, 8]:  # enough that a directory's own order is unlikely to be sorted
        (tmp_path / f"x_train_{number:06d}.bin").touch()
    found = find_shards(f"{tmp_path}/x_train_*.bin")
    assert found == [tmp_path / f"x_train_{number:06d}.bin" for number in [0, 2, 3, 5, 7, 8, 10, 11]]


def test_find_shards_takes_a_plain_name_literally(tmp_path):
    path = tmp_path / "odd[1].bin"  # as a pattern this would match "odd1.bin" only
    path.touch()
    assert find_shards(path) == [path]


def test_find_shards_without_a_match(tmp_path):
    with pytest.raises(UserError, match=r"none_\*\.bin"):
        find_shards(f"{tmp_path}/none_*.bin")


@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("none.bin", "No such file or directory"),
        ("none_*.bin", "nothing of that name in /"),
        ("none/x_*.bin", "No such file or directory"),
        ("none/*/x.bin", "No such file or directory"),
        ("file/x_*.bin", "Not a directory"),
        ("n" * 300 + ".bin", "File name too long"),
        ("n" * 300 + "/*.bin", "File name too long"),
        ("a\0.bin", "null"),
        ("a\0/*.bin", "null"),
        ("a\nb_*.bin", "nothing of that name"),
    ],
)
def test_the_reason_why_nothing_matches_is_one_line(tmp_path, pattern, reason):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=reason) as raised:
        find_shards(f"{tmp_path}/{pattern}")
    assert "\n" not in str(raised.value) and "'" in str(raised.value)


@pytest.mark.parametrize("pattern", ["folder/a.bin", "folder/*.bin"])
def test_a_directory_that_may_not_be_searched(tmp_path, pattern):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_shard(folder / "a.bin", TOKENS)
    with without_permission(folder):
        with pytest.raises(UserError, match="Permission denied") as raised:
            find_shards(f"{tmp_path}/{pattern}")
        with pytest.raises(UserError, match="Permission denied"):
            Shard(folder / "a.bin")
    assert "\n" not in str(raised.value)
