"""The script that makes shards: where documents begin, what is used for validation, how shards are cut, and what is refused."""

import errno
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from dev.data import tokenize_text
from dev.data.tokenize_text import main, prepare_output
from gpt2_numba.data.token_shards import Shard, find_shards
from gpt2_numba.errors import UserError
from tests.without_permission import without_permission

REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data"
END_OF_TEXT = 256


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("One\n\nTwo é\nof two\n\n\nThree")
    return path


def tokenize(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def read_tokens(pattern):
    return np.concatenate([Shard(path)[:] for path in find_shards(pattern)])


def as_text(tokens):
    """The text, with end-of-text as '|', which the texts of these tests do not contain."""
    return b"".join(b"|" if token == END_OF_TEXT else bytes([token]) for token in tokens).decode()


def test_one_document_per_file(tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("Four\n")
    tokenize(text, other, "--tokenizer", "bytes", "--out", tmp_path / "new" / "folder", "--val-tokens", 5)
    assert as_text(read_tokens(tmp_path / "new" / "folder" / "play_val_000000.bin")) == "|One\n"
    assert as_text(read_tokens(tmp_path / "new" / "folder" / "play_train_000000.bin")) == ("\nTwo é\nof two\n\n\nThree|Four\n")


def test_documents_split_on_blank_lines(tmp_path, text):
    tokenize(text, "--tokenizer", "bytes", "--out", tmp_path, "--split-on-blank-lines", "--val-tokens", 6)
    assert as_text(read_tokens(tmp_path / "play_val_000000.bin")) == "|One\n\n"
    assert as_text(read_tokens(tmp_path / "play_train_000000.bin")) == "|Two é\nof two\n\n|\nThree"


def test_fraction_and_shard_size(tmp_path):
    text = tmp_path / "digits.txt"
    text.write_text("0123456789" * 10)  # 101 tokens with end-of-text
    tokenize(text, "--tokenizer", "bytes", "--out", tmp_path, "--val-fraction", 0.25, "--shard-size", 30, "--name", "d")
    sizes = [len(Shard(path)) for path in find_shards(f"{tmp_path}/d_train_*.bin")]
    assert sizes == [26, 25, 25]  # no stub of 16 at the end
    assert [path.name for path in find_shards(f"{tmp_path}/d_*.bin")] == [
        "d_train_000000.bin",
        "d_train_000001.bin",
        "d_train_000002.bin",
        "d_val_000000.bin",
    ]
    both = np.concatenate([read_tokens(f"{tmp_path}/d_{part}_*.bin") for part in ("val", "train")])
    assert as_text(both) == "|" + "0123456789" * 10
    assert len(read_tokens(f"{tmp_path}/d_val_*.bin")) == 25


def test_it_prints_how_to_train(tmp_path, text, capsys):
    tokenize(text, "--tokenizer", "bytes", "--out", tmp_path)
    command = capsys.readouterr().out.splitlines()[-1]
    assert f"-i '{tmp_path}/play_train_*.bin' -j '{tmp_path}/play_val_*.bin'" in command


@pytest.mark.parametrize("name", ["book[1]", "it's *", "a b", "-x", "$HOME"])
def test_the_printed_patterns_match_these_shards_only(tmp_path, text, capsys, name):
    folder = tmp_path / "out[2]"
    tokenize(text, "--tokenizer", "bytes", "--out", folder, f"--name={name}", "--shard-size", 10)
    for other in ("book1", "it's so", "axb"):
        tokenize(text, "--tokenizer", "bytes", "--out", folder, "--name", other)
    command = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train with: ")][0]
    words = shlex.split(command)
    for flag, part in [("-i", "train"), ("-j", "val")]:
        found = find_shards(words[words.index(flag) + 1])
        assert found == sorted(path for path in folder.iterdir() if path.name.startswith(f"{name}_{part}_")) != []


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["none.txt"], "No such file"),
        (["."], "readable file"),
        (["latin1.txt"], "byte number 3"),
        (["play.txt", "--val-fraction", "1"], "between 0 and 1"),
        (["play.txt", "--val-tokens", "0"], "at least one token each"),
        (["play.txt", "--val-tokens", "27"], "27 of 27 tokens"),
        (["play.txt", "--shard-size", "0"], "--shard-size"),
        (["play.txt", "--tokenizer", "words"], "words"),
        (["play.txt", "--tokeniser", "bytes"], "--tokeniser"),
        (["play.txt", "--out", "play.txt"], "--out"),
        (["play.txt", "--out", "a\0b"], "--out"),
        (["play.txt", "--out", "n" * 300], "File name too long"),
        (["play.txt", "--name", "n" * 300], "File name too long"),  # found only when the file is written
        (["play.txt", "--name", "a\0b"], "--name: must be a file name"),
        (["play.txt", "--name", "a/b"], "--name: must be a file name without a directory, got 'a/b'"),
        (["play.txt", "--name", ".."], "--name"),
        (["play.txt", "--name", ""], "--name"),
        (["n" * 300], "File name too long"),
        (["a\0b"], "null"),
        (["loop"], "symbolic links"),
        (["pipe"], "it is a pipe, not a regular file"),
        (["/dev/zero"], "it is a device, not a regular file"),
        ([], "TEXT"),
    ],
)
def test_errors_are_one_line(tmp_path, text, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    Path("latin1.txt").write_bytes("café".encode("latin-1"))
    if "--tokenizer" not in arguments:
        arguments = [*arguments, "--tokenizer", "bytes"]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and reason in output.err
    assert not list(tmp_path.rglob("*.bin"))


def test_old_shards_are_not_mixed_with_new_ones(tmp_path, text, capsys):
    tokenize(text, "--tokenizer", "bytes", "--out", tmp_path, "--shard-size", 5)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.bin")}
    assert main([str(text), "--tokenizer", "bytes", "--out", str(tmp_path)]) == 2
    assert "exist already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("*.bin")} == before


def test_old_shards_are_seen_whatever_their_name(tmp_path, text, capsys):
    arguments = [str(text), "--tokenizer", "bytes", "--out", str(tmp_path), "--name", "book[1]"]
    assert main([*arguments, "--shard-size", "5"]) == 0
    assert main(arguments) == 2
    assert "exist already" in capsys.readouterr().err


def test_an_output_directory_that_cannot_be_written(tmp_path, text):
    folder = tmp_path / "folder"
    folder.mkdir()
    with without_permission(folder), pytest.raises(UserError, match="--out .*Permission denied") as raised:
        prepare_output(folder, "play")
    assert "\n" not in str(raised.value)


def test_no_part_of_the_shards_is_left(tmp_path, text, monkeypatch, capsys):
    """The disk is full after two shards."""
    written = []

    def write(path, tokens):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        path.write_bytes(b"whole")

    monkeypatch.setattr(tokenize_text, "write_shard", write)
    assert main([str(text), "--tokenizer", "bytes", "--out", str(tmp_path), "--val-tokens", "2", "--shard-size", "10"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path}: ") and len(written) == 2
    assert not list(tmp_path.glob("*.bin"))


def test_tiny_shakespeare_matches_llmcs(tmp_path, monkeypatch):
    for name in ["tinyshakespeare.txt", "gpt2_bpe/vocab.bpe", "gpt2_bpe/encoder.json"]:
        if not (REAL_DATA / name).is_file():
            pytest.skip(f"Tiny Shakespeare or GPT-2's vocabulary is missing: {REAL_DATA / name}")
    # tiktoken names a cached file by the SHA-1 of its URL
    shutil.copy(REAL_DATA / "gpt2_bpe/vocab.bpe", tmp_path / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
    shutil.copy(REAL_DATA / "gpt2_bpe/encoder.json", tmp_path / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    tokenize(REAL_DATA / "tinyshakespeare.txt", "--split-on-blank-lines", "--val-tokens", 32768, "--out", tmp_path)
    val, train = [read_tokens(f"{tmp_path}/tinyshakespeare_{part}_*.bin") for part in ("val", "train")]
    assert (val.size, train.size) == (32768, 305260)
    assert val[:6].tolist() == [50256, 5962, 22307, 25, 198, 8421]
