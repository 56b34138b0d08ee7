"""Token shards: the bytes on disk are llm.c's, and a file that is not a valid shard is refused with a reason."""

import struct

import numpy as np
import pytest

from gpt2_numba.data.token_shards import find_shards, read_shard, write_shard
from gpt2_numba.errors import UserError

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
    tokens = read_shard(tmp_path / "a.bin")
    assert tokens.dtype == np.uint16 and tokens.shape == (5,)
    np.testing.assert_array_equal(tokens, TOKENS)
    assert not tokens.flags.writeable  # training cannot alter its data


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
        read_shard(path)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def test_the_message_for_a_text_file_says_how_to_make_a_shard(tmp_path):
    (tmp_path / "text.txt").write_text("text " * 1000)
    with pytest.raises(UserError, match="python -m dev.data.tokenize_text"):
        read_shard(tmp_path / "text.txt")


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_shard(tmp_path / "none.bin")
    with pytest.raises(UserError, match="readable file"):
        read_shard(tmp_path)


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
