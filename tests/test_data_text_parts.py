"""Text in pieces: the tokens are those of the whole documents, wherever the blocks of a file end, and the sizes add up."""

import itertools
import json
import os

import numpy as np
import pytest
import tiktoken

from gpt2_numba.data.making import text_parts
from gpt2_numba.data.making.text_parts import TextOptions, group_files, parse_split, part_of_file, place_to_cut
from gpt2_numba.data.making.tokenizing import encode_unit
from gpt2_numba.data.tokenizers import byte_encoding, encode

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
ALPHABET = ["a", "b", "'s", "1", ".", " ", " ", "\n", "\n", "\t", "\r\n", "\r", "é", "—", "\u3000", "\u00a0", "\x1c", "🙂", "<s>", "\n\n"]


@pytest.fixture(scope="module")
def merging():
    """A tokenizer that divides text as GPT-2's does, and then merges any two ASCII characters: a cut anywhere else changes the tokens."""
    pairs = [bytes(pair) for pair in itertools.product(range(9, 127), repeat=2)]
    ranks = {bytes([byte]): byte for byte in range(256)} | {pair: 256 + number for number, pair in enumerate(pairs)}
    end = len(ranks)
    return tiktoken.Encoding("merging", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end})


def naive_documents(text, split):
    """The documents of a whole text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if split == "file":
        return [text]
    if split == "blank-line":
        *before, last = text.split("\n\n")
        return [section + "\n\n" for section in before] + [last]
    return [section.strip() for section in text.split(split)]


@pytest.mark.parametrize("split", ["file", "blank-line", "<s>", ". "])
def test_pieces_give_the_tokens_of_whole_documents(tmp_path, monkeypatch, merging, split):
    rng = np.random.default_rng(len(split))
    options, cuts = TextOptions(parse_split(split)), 0
    for trial in range(150):
        monkeypatch.setattr(text_parts, "BLOCK", 1 + trial % 40)
        text = "".join(rng.choice(ALPHABET, rng.integers(1, 120)))
        path = tmp_path / "a.txt"
        path.write_bytes(text.encode())
        units = list(part_of_file(path, options).units())
        tokens = np.concatenate([encode_unit(unit, merging).tokens for unit in units])
        expected = [[merging.eot_token, *encode(merging, document)] for document in naive_documents(text, split) if document]
        assert tokens.tolist() == [token for document in expected for token in document], (text, text_parts.BLOCK)
        assert sum(unit.size for unit in units) == path.stat().st_size and min(unit.size for unit in units) >= 0
        cuts += len(units) - 1
    assert cuts > 500


def test_a_text_without_a_blank_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(text_parts, "BLOCK", 5)
    monkeypatch.setattr(text_parts, "LARGEST_PIECE", 20)
    (tmp_path / "a.txt").write_text("🙂é" * 100)
    units = list(part_of_file(tmp_path / "a.txt", TextOptions()).units())
    assert len(units) > 20 and max(unit.size for unit in units) <= 25
    assert (
        b"".join(bytes(encode_unit(unit, byte_encoding()).tokens[unit.begins :].astype(np.uint8)) for unit in units).decode() == "🙂é" * 100
    )


@pytest.mark.parametrize(("data", "split", "place"), [
    (b"one two", "file", 3), (b"one\ntwo three", "file", 3), (b"one \n two", "file", 3), (b"one", "file", 0), (b" one", "file", 0),
    ("a\u3000 b".encode(), "file", 0), ("ü b".encode(), "file", 2), (b"a<s>b<s>c d", "<s>", 8), (b"a b<s", "<s>", 1), (b"a <s", "< s", 1),
    (b"a\n\n\nb", "blank-line", 3), (b"a\n\n\n\nb", "blank-line", 5), (b"ab\n", "blank-line", 0), (b"a b\n", "blank-line", 1),
])  # fmt: skip
def test_places_to_cut(data, split, place):
    assert place_to_cut(data, parse_split(split))[0] == place


def test_json_lines_in_blocks(tmp_path, monkeypatch):
    rows = [{"text": "x" * length + "é", "n": length} for length in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for block in (1, 10, 100, 1000, 100_000):
        monkeypatch.setattr(text_parts, "BLOCK", block)
        units = list(part_of_file(path, TextOptions()).units())
        assert [text for unit in units for _, text in unit.pieces()] == [row["text"] for row in rows]
        assert sum(unit.size for unit in units) == path.stat().st_size
        assert [unit.first for unit in units] == [1 + sum(one.data.count(b"\n") for one in units[:i]) for i in range(len(units))]


def test_small_files_share_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(text_parts, "BLOCK", 100)
    sizes = [10, 0, 40, 60, 250, 10, 10, 90, 5]
    paths = [tmp_path / f"{number}.txt" for number in range(len(sizes))]
    for path, size in zip(paths, sizes):
        path.write_text("x" * size)
    parts = group_files(paths, TextOptions())
    assert [part.size for part in parts] == [110, 250, 110, 5]
    assert [unit.size for part in parts for unit in part.units()][0] == 110


def test_the_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    stamp = part_of_file(path, TextOptions()).stamp
    assert part_of_file(path, TextOptions()).stamp == stamp
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert part_of_file(path, TextOptions()).stamp != stamp
