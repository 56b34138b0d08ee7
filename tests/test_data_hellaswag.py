"""The script that makes HellaSwag's evaluation file: what it tokenizes, and what it refuses."""

import gzip
import json
import os

import pytest

from dev.data.hellaswag import main
from gpt2_numba.data.multiple_choice import read_examples

ROWS = [
    # the original schema
    {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "split": "val",
        "split_type": "indomain",
        "label": 3,
        "endings": ["skis.", "is ripping.", "holds a cube é.", "starts."],
        "source_id": "activitynet~v_1",
    },
    # the required fields only, with the label as a string, as in some copies
    {"ctx": "[header] How to", "label": "1", "endings": ["a", "b", "c", "<|endoftext|>"]},
]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def make(*arguments):
    return main([str(argument) for argument in [*arguments, "--tokenizer", "bytes"]])


def decoded_examples(path):
    """The examples of a file with byte tokens, decoded: [(label, context, endings)]."""
    return [
        (example.label, bytes(example.context.tolist()).decode(), [bytes(ending.tolist()).decode() for ending in example.endings])
        for example in read_examples(path)
    ]


def test_context_and_endings(tmp_path, questions, capsys):
    assert make(questions, "--out", tmp_path / "val.bin") == 0
    assert decoded_examples(tmp_path / "val.bin") == [
        (3, "A man is sitting on a roof. he", [" skis.", " is ripping.", " holds a cube é.", " starts."]),
        (1, "[header] How to", [" a", " b", " c", " <|endoftext|>"]),
    ]  # text that looks like a special token is ordinary text
    assert "2 examples, the longest of 47 tokens" in capsys.readouterr().out  # 30 + 17: é is two bytes


def test_limit_and_gzip(tmp_path, questions):
    packed = tmp_path / "val.jsonl.gz"
    packed.write_bytes(gzip.compress(questions.read_bytes() + b"no JSON\n"))
    assert make(packed, "--out", tmp_path / "val.bin", "--limit", 1) == 0
    assert [label for label, *_ in decoded_examples(tmp_path / "val.bin")] == [3]
    assert make(packed, "--out", tmp_path / "val.bin", "--limit", 2) == 0  # the line after it is not read
    assert [label for label, *_ in decoded_examples(tmp_path / "val.bin")] == [3, 1]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("no JSON", "line 2: each line must be a JSON object"),
        ("[1, 2]", "line 2"),
        ('{"ctx": "a", "endings": ["b", "c"]}', "line 2"),  # the test split has no labels
        ('{"ctx": "a", "label": "", "endings": ["b", "c"]}', "line 2"),
        ('{"ctx": "a", "label": 0, "endings": ["b", 3]}', "line 2"),
        ('{"ctx": 5, "label": 0, "endings": ["b", "c"]}', "line 2"),
        ('{"ctx": "a", "label": 1e999, "endings": ["b", "c"]}', "line 2"),
        ("[" * 100_000, "line 2"),
        ('{"ctx": "", "label": 0, "endings": ["b", "c"]}', "example number 1 has an empty"),
        ('{"ctx": "a", "label": 2, "endings": ["b", "c"]}', "label 2 and 2 endings"),
    ],
)
def test_bad_lines(tmp_path, capsys, line, reason):
    path = tmp_path / "val.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    assert make(path, "--out", tmp_path / "val.bin") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and reason in message and message.count("\n") == 1
    assert not (tmp_path / "val.bin").exists()


def test_bad_files_and_options(tmp_path, questions, capsys):
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(questions.read_bytes())[:-9])
    (tmp_path / "empty.jsonl").touch()
    packed = bytearray(gzip.compress(questions.read_bytes()))
    packed[20:40] = bytes(20)
    (tmp_path / "damaged.jsonl.gz").write_bytes(packed)
    os.mkfifo(tmp_path / "pipe")
    out = ["--out", tmp_path / "val.bin"]
    for arguments, reason in [
        ([tmp_path / "none.jsonl", *out], "No such file"),
        ([tmp_path / "binary.jsonl", *out], "UTF-8"),
        ([tmp_path / "cut.jsonl.gz", *out], "cut.jsonl.gz: the questions must be a readable file"),
        ([tmp_path / "damaged.jsonl.gz", *out], "damaged.jsonl.gz: the questions must be a readable file"),
        ([tmp_path, *out], "it is a directory"),
        ([tmp_path / "pipe", *out], "it is a pipe"),
        ([tmp_path / "a\0b", *out], "null"),
        ([tmp_path / ("n" * 300), *out], "File name too long"),
        ([questions.rename(tmp_path / "plain.gz"), *out], "plain.gz: the questions must be a readable file"),
        ([tmp_path / "empty.jsonl", *out], "got 0"),
        ([tmp_path / "empty.jsonl", *out, "--limit", 0], "--limit must be at least 1"),
        ([tmp_path / "empty.jsonl", *out, "--frobnicate"], "unrecognized arguments"),
    ]:
        assert make(*arguments) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "val.bin").exists()


def test_output_that_cannot_be_written(tmp_path, questions, capsys):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [
        ("no folder/val.bin", "No such file"), ("", "it is a directory"), ("pipe", "it is a pipe"), ("a\0b", "null"), ("n" * 300, "too long"),
    ]:  # fmt: skip
        assert make(questions, "--out", tmp_path / name) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: --out") and reason in message and message.count("\n") == 1
