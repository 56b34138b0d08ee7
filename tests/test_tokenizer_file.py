"""Tokenizer files: the bytes are llm.c's, and whatever is not exactly a tokenizer file is refused."""

import struct

import pytest
import tiktoken

from gpt2_numba.data.tokenizer_file import read_tokenizer_file, write_tokenizer_file
from gpt2_numba.data.tokenizers import byte_encoding, gpt2_encoding
from gpt2_numba.errors import UserError

TOKENS = [b"a", b"\x00\xff", b"ab", b"<|endoftext|>"]
LONGEST = b"x" * 255


def llmc_bytes(magic=20240328, version=2, count=4, end=3, tokens=TOKENS):
    """The format written out a second time, with `struct`."""
    return struct.pack("<256I", magic, version, count, end, *[0] * 252) + b"".join(
        struct.pack("<B", len(token)) + token for token in tokens
    )


def encoding(tokens):
    """A tokenizer with these tokens; the last one is end-of-text."""
    return tiktoken.Encoding(
        name="small",
        pat_str=".",
        mergeable_ranks={token: rank for rank, token in enumerate(tokens[:-1])},
        special_tokens={"<|endoftext|>": len(tokens) - 1},
    )


def test_written_bytes_are_llmcs(tmp_path):
    write_tokenizer_file(tmp_path / "t.bin", encoding(TOKENS))
    assert (tmp_path / "t.bin").read_bytes() == llmc_bytes()


@pytest.mark.parametrize("tokens", [TOKENS, [LONGEST, *TOKENS[1:]]])
def test_tokens_come_back(tmp_path, tokens):
    (tmp_path / "t.bin").write_bytes(llmc_bytes(tokens=tokens))
    assert read_tokenizer_file(tmp_path / "t.bin") == (tokens, 3)


def test_the_byte_tokenizer(tmp_path):
    write_tokenizer_file(tmp_path / "t.bin", byte_encoding())
    assert read_tokenizer_file(tmp_path / "t.bin") == ([bytes([i]) for i in range(256)] + [b"<|endoftext|>"], 256)


def test_gpt2s_tokenizer(tmp_path):
    try:
        gpt2 = gpt2_encoding()
    except UserError as error:
        pytest.skip(str(error))
    write_tokenizer_file(tmp_path / "t.bin", gpt2)
    tokens, end_of_text = read_tokenizer_file(tmp_path / "t.bin")
    assert len(tokens) == 50257 and end_of_text == 50256 and tokens[50256] == b"<|endoftext|>"
    assert b"".join(tokens[token] for token in gpt2.encode("Ångström, 中文\n")) == "Ångström, 中文\n".encode()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "this file has 0 in all"),
        (llmc_bytes()[:1000], "this file has 1000 in all"),
        (llmc_bytes(magic=20240520), "a token shard"),
        (llmc_bytes(magic=20240326), "a model checkpoint"),
        (b"First Citizen:\n" * 100, "something else"),
        (llmc_bytes(version=1), "version 2, this one has 1"),
        (llmc_bytes(end=4), "one of the 4 tokens, this file says 4"),
        (llmc_bytes()[:-1], "holds 3 and 13 bytes after them"),
        (llmc_bytes()[:-14], "holds 3 and 0 bytes after them"),
        (llmc_bytes() + b"\1", "holds 4 and 1 bytes after them"),
        (llmc_bytes(count=5), "holds 4 and 0 bytes after them"),
        (llmc_bytes(count=3, end=2), "holds 3 and 14 bytes after them"),
        (llmc_bytes(tokens=[b"a", b"", b"ab", b"<|endoftext|>"]), "holds 1 and 18 bytes after them"),
        (llmc_bytes(count=0, end=0, tokens=[]), "one of the 0 tokens"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_tokenizer_file(path)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_tokenizer_file(tmp_path / "none.bin")
    with pytest.raises(UserError, match="readable"):
        read_tokenizer_file(tmp_path)


def test_a_token_too_long_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="must fit one byte"):
        write_tokenizer_file(tmp_path / "t.bin", encoding([LONGEST + b"x", b"<|endoftext|>"]))
    assert not (tmp_path / "t.bin").exists()
