"""Tokenizers: byte tokens are the bytes, GPT-2's ids are GPT-2's, and a missing vocabulary is reported in one line."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken.load
import tiktoken.registry

from gpt2_numba.data import tokenizers
from gpt2_numba.data.tokenizers import byte_encoding, encode, encoding_for_vocab, gpt2_encoding
from gpt2_numba.errors import UserError

REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data"
TINY_SHAKESPEARE = REAL_DATA / "tinyshakespeare.txt"
CACHE_NAMES = {  # tiktoken names a cached file by the SHA-1 of its URL
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """No vocabulary in memory or on disk, and no network."""

    def no_network(url):
        raise ConnectionError("no network in this test")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", no_network)
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "gpt2", raising=False)
    return tmp_path


@pytest.fixture
def gpt2(empty_cache):
    """GPT-2's tokenizer from files on this machine."""
    for name, cache_name in CACHE_NAMES.items():
        if not (REAL_DATA / "gpt2_bpe" / name).is_file():
            pytest.skip(f"GPT-2's vocabulary is missing: {REAL_DATA / 'gpt2_bpe' / name}")
        shutil.copy(REAL_DATA / "gpt2_bpe" / name, empty_cache / cache_name)
    return gpt2_encoding()


def test_byte_tokens_are_the_bytes():
    encoding = byte_encoding()
    text = "naïve\n\n\t\r\0 🙂<|endoftext|>" * 9  # longer than a piece; the token's name is plain text here
    assert encoding.encode_ordinary(text) == list(text.encode())
    assert encoding.decode(list(text.encode())) == text
    assert encoding.decode_bytes(list(range(256))) == bytes(range(256))


def test_byte_vocabulary():
    encoding = byte_encoding()
    assert (encoding.name, encoding.n_vocab, encoding.eot_token) == ("bytes", 257, 256)
    assert encoding.decode([256]) == "<|endoftext|>"


def test_encoding_for_vocab_without_gpt2():
    assert encoding_for_vocab(257).name == "bytes"
    assert encoding_for_vocab(256) is None
    assert encoding_for_vocab(50304) is None  # the padded size is not a vocabulary


@pytest.mark.parametrize("load", [gpt2_encoding, lambda: encoding_for_vocab(50257)])
def test_missing_vocabulary_names_the_cache_directory(empty_cache, load):
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR") as raised:
        load()
    assert "\n" not in str(raised.value)


@pytest.fixture
def silent_network(empty_cache, monkeypatch):
    """A network that drops every packet."""
    end = threading.Event()

    def wait(url):
        end.wait()
        raise ConnectionError("the test is over")

    monkeypatch.setattr(tiktoken.load, "read_file", wait)
    yield
    end.set()
    with tiktoken.registry._lock:  # which the waiting thread holds
        pass


@pytest.mark.parametrize("name, load", [("PATIENCE_FOR_SAMPLES", lambda: encoding_for_vocab(50257)), ("", lambda: gpt2_encoding(0.01))])
def test_a_silent_network_ends_the_patience(silent_network, monkeypatch, name, load):
    if name:
        assert getattr(tokenizers, name) <= 5
        monkeypatch.setattr(tokenizers, name, 0.01)
    for _ in range(2):  # the first attempt goes on in the background
        with pytest.raises(UserError, match="did not come within 0.01 seconds.*TIKTOKEN_CACHE_DIR") as raised:
            load()
        assert "\n" not in str(raised.value)


def test_a_silent_network_does_not_delay_the_end_of_the_program(tmp_path):
    program = (
        "import threading, tiktoken.load\n"
        "from gpt2_numba.data.tokenizers import gpt2_encoding\n"
        "tiktoken.load.read_file = lambda url: threading.Event().wait()\n"
        "try:\n    gpt2_encoding(0.1)\nexcept ValueError as error:\n    print(error)\n"
    )
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert "within 0.1 seconds" in ended.stdout and ended.returncode == 0 and not ended.stderr


class Letters:
    """An encoding that shows what it is given."""

    def encode_ordinary(self, text):
        return ["<", *text, ">"]


@pytest.mark.parametrize("text, pieces", [
    ("", "<>"), ("a b", "<a b>"), ("a  b  c  d  ", "<a  b  c  d  >"),
    ("    x", "<    ><x>"), ("a    b", "<a    b>"), ("a      b", "<a      b>"),  # no whole block of 4
    ("a       b", "<a       ><b>"), ("a \t\n \r  \u3000   b\n", "<a \t\n \r  ><\u3000   ><b\n>"), ("    ", "<    >"),
])  # fmt: skip
def test_blocks_of_whitespace_end_a_piece(monkeypatch, text, pieces):
    monkeypatch.setattr(tokenizers, "BLOCK", 4)
    assert "".join(encode(Letters(), text)) == pieces


@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\u3000"])
def test_a_million_blanks(blank):
    """GPT-2's way of splitting text, which tiktoken cannot do for them at once."""
    gpt2_pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"  ": 256, b"\n\n": 257}
    encoding = tiktoken.Encoding("few", pat_str=gpt2_pattern, mergeable_ranks=ranks, special_tokens={})
    text = "a" + 1_000_001 * blank + "b"
    tokens = encode(encoding, text)
    assert encoding.decode(tokens) == text
    short = text[:99_990] + "b"
    assert encode(encoding, short) == encoding.encode_ordinary(short)


def test_a_text_without_long_whitespace_is_encoded_whole(gpt2):
    text = "To be, or not to be\n\n   " * 10_000
    assert encode(gpt2, text) == gpt2.encode_ordinary(text)


def test_gpt2_tokens_of_tiny_shakespeare(gpt2):
    if not TINY_SHAKESPEARE.is_file():
        pytest.skip(f"Tiny Shakespeare is missing: {TINY_SHAKESPEARE}")
    assert (gpt2.n_vocab, gpt2.eot_token) == (50257, 50256)
    tokens = np.array(gpt2.encode_ordinary(TINY_SHAKESPEARE.read_text()), dtype="<u2")
    assert tokens.size == 338025
    # SHA-256 of the ids as uint16, computed once with GPT-2's published vocabulary
    assert hashlib.sha256(tokens).hexdigest() == "25c01b32b32f41897a6359dd222ec114992dc30c357bcafbfe6c56672f76cd31"


def test_encoding_for_vocab_with_gpt2(gpt2):
    assert encoding_for_vocab(50257).name == "gpt2"
