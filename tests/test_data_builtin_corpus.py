"""The built-in corpus: byte tokens, end-of-text before each document, the same every time, available in any Python."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba.data import builtin_corpus as module
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.errors import UserError

END_OF_TEXT = 256


@pytest.fixture
def fake_library(tmp_path, monkeypatch):
    """A standard library of a few files, without the language reference."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # makes its import fail

    def add(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return add


def split_documents(parts):
    """The documents in the order of the tokens, as a list of bytes."""
    tokens = np.concatenate(parts)
    assert tokens[0] == END_OF_TEXT
    return [bytes(document[1:].tolist()) for document in np.split(tokens, np.flatnonzero(tokens == END_OF_TEXT)[1:])]


def test_sizes_and_types():
    train, val = builtin_corpus()
    assert train.dtype == val.dtype == np.uint16
    assert train.size + val.size <= 8 * 2**20
    assert val.size == (train.size + val.size) // 10
    assert max(train.max(), val.max()) == END_OF_TEXT
    if (Path(sysconfig.get_path("stdlib")) / "os.py").is_file():  # with the sources it is large enough to train on
        assert train.size > 2_000_000


def test_both_parts_have_similar_text():
    train, val = builtin_corpus()
    if val.size < 200_000:
        pytest.skip("this Python has too little text to compare the parts")
    shares = [np.bincount(part, minlength=257) / part.size for part in (train, val)]
    # Half the L1 distance is the share of bytes that would have to change: in Python 3.11 it is 0.18 between the language reference and
    # the sources, 0.03 between these parts.
    assert np.abs(shares[0] - shares[1]).sum() / 2 < 0.1


def test_same_bits_in_another_process():
    """Another process has other string hashes, so the order of a set would differ."""
    script = (
        "import hashlib; from gpt2_numba.data.builtin_corpus import builtin_corpus\n"
        "print(hashlib.sha256(b''.join(builtin_corpus())).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_language_reference_is_included():
    topics = pytest.importorskip("pydoc_data.topics", reason="this Python lacks the language reference").topics
    names = {f"pydoc_data/{topic}" for topic in topics}
    assert names == set(module._topic_readers())


def test_without_sources_the_language_reference_is_enough(tmp_path, monkeypatch):
    topics = pytest.importorskip("pydoc_data.topics", reason="this Python lacks the language reference").topics
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    documents = split_documents(builtin_corpus())
    assert sorted(documents) == sorted(text.encode() for text in topics.values())


def test_order_is_by_hashed_name(fake_library):
    for name in ["abc.py", "os.py", "json/decoder.py", "json/__init__.py"]:
        fake_library(name, name.encode())
    # `printf NAME | sha256sum` begins with 3b, 8a, c4, d9
    assert split_documents(builtin_corpus()) == [b"json/decoder.py", b"json/__init__.py", b"abc.py", b"os.py"]


def test_only_readable_library_text_is_used(fake_library):
    fake_library("abc.py", b"taken = 'na\xc3\xafve'\r\n")
    for name in [
        "site-packages/abc.py",
        "sitecustomize.py",
        "test/abc.py",
        "unittest/test/abc.py",
        "idlelib/abc.py",
        "lib2to3/abc.py",
        "turtledemo/abc.py",
        "encodings/cp037.py",
        "pydoc_data/topics.py",
    ]:
        fake_library(name, b"left out")
    fake_library("os.py", b"not UTF-8: \xff")
    fake_library("io.py", b"")  # empty: no document
    assert split_documents(builtin_corpus()) == ["taken = 'naïve'\n".encode()]


def test_largest_size(fake_library, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_CORPUS", 30)
    fake_library("abc.py", b"a" * 19)
    fake_library("os.py", b"o" * 29)
    train, val = builtin_corpus()
    np.testing.assert_array_equal(train, [256] + [ord("a")] * 19 + [256] + [ord("o")] * 6)
    np.testing.assert_array_equal(val, [ord("o")] * 3)


def test_without_any_text_the_message_names_the_option(fake_library):
    with pytest.raises(UserError, match="-i"):
        builtin_corpus()
