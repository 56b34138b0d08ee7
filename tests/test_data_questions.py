"""Evaluation files from HellaSwag's and MMLU's questions: what is tokenized, what is left out, and what is refused."""

import gzip
import json
import os
import sys

import pytest

from gpt2_numba.data.__main__ import main
from gpt2_numba.data.evaluation.multiple_choice import read_examples
from gpt2_numba.data.evaluation.questions import read_questions
from gpt2_numba.errors import UserError

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


def make(questions, *arguments, name="hellaswag"):
    """Make the evaluation file tmp/val.bin: the directory of `questions` is the output directory."""
    options = ["--questions", questions, "--out", questions.parent, "--name", "val", "--tokenizer", "bytes"]
    return main([str(argument) for argument in [name, *options, *arguments]])


def decoded_examples(path):
    """The examples of a file with byte tokens, decoded: [(label, context, endings)]."""
    return [
        (example.label, bytes(example.context.tolist()).decode(), [bytes(ending.tolist()).decode() for ending in example.endings])
        for example in read_examples(path)
    ]


def test_context_and_endings(tmp_path, questions, capsys):
    assert make(questions) == 0
    assert decoded_examples(tmp_path / "val.bin") == [
        (3, "A man is sitting on a roof. he", [" skis.", " is ripping.", " holds a cube é.", " starts."]),
        (1, "[header] How to", [" a", " b", " c", " <|endoftext|>"]),
    ]  # text that looks like a special token is ordinary text
    assert "2 questions, the longest of 47 tokens" in capsys.readouterr().out  # 30 + 17: é is two bytes


def test_the_file_has_llmcs_name_in_a_new_directory(tmp_path, questions, capsys):
    out = tmp_path / "new" / "directory"
    assert main(["hellaswag", "--questions", str(questions), "--out", str(out), "--tokenizer", "bytes"]) == 0
    assert len(decoded_examples(out / "hellaswag_val.bin")) == 2
    assert f"--eval-file {out}/hellaswag_val.bin" in capsys.readouterr().out


def test_limit_and_gzip(tmp_path, questions):
    packed = tmp_path / "val.jsonl.gz"
    packed.write_bytes(gzip.compress(questions.read_bytes() + b"no JSON\n"))
    assert make(packed, "--limit", 1) == 0
    assert [label for label, *_ in decoded_examples(tmp_path / "val.bin")] == [3]
    assert make(packed, "--limit", 2) == 0  # the line after it is not read
    assert [label for label, *_ in decoded_examples(tmp_path / "val.bin")] == [3, 1]


def test_a_byte_order_mark_and_blank_lines_are_no_questions(tmp_path, questions):
    questions.write_bytes(b"\xef\xbb\xbf\n" + questions.read_bytes().replace(b"\n", b"\r\n \n") + b"\n\n")
    assert make(questions) == 0
    assert len(decoded_examples(tmp_path / "val.bin")) == 2


def test_questions_that_are_too_long_are_left_out(tmp_path, questions, capsys):
    assert make(questions, "--longest", 45) == 0
    assert [label for label, *_ in decoded_examples(tmp_path / "val.bin")] == [1]
    assert "1 questions, the longest of 29 tokens; 1 that need more than 45 are left out" in capsys.readouterr().out
    assert make(questions, "--longest", 46) == 0  # the last token is only predicted
    assert len(decoded_examples(tmp_path / "val.bin")) == 2
    assert make(questions, "--longest", 3) == 2
    assert "--longest must leave a question, all 2 need more than 3 tokens" in capsys.readouterr().err


MMLU_ROWS = [
    {"question": "Two and two?", "subject": "elementary_mathematics", "choices": ["1", "2", "3", "4"], "answer": 3},
    {"question": "Red?", "choices": ["a colour", "b", "c", "d"], "answer": "A"},  # some copies have letters
]
MMLU_EXAMPLES = [
    (3, "Question: Two and two?\n\nAnswer:", [" 1", " 2", " 3", " 4"]),
    (0, "Question: Red?\n\nAnswer:", [" a colour", " b", " c", " d"]),
]


def test_mmlu(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MMLU_ROWS))
    assert make(path, name="mmlu") == 0
    assert decoded_examples(tmp_path / "val.bin") == MMLU_EXAMPLES


def test_mmlu_in_letters(tmp_path, capsys):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MMLU_ROWS))
    assert make(path, name="mmlu-letters") == 0
    letters = [" A", " B", " C", " D"]
    assert decoded_examples(tmp_path / "val.bin") == [
        (3, "Two and two?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", letters),
        (0, "Red?\nA. a colour\nB. b\nC. c\nD. d\nAnswer:", letters),
    ]
    path.write_text(json.dumps({**MMLU_ROWS[0], "choices": ["3", "4"], "answer": 1}))
    assert make(path, name="mmlu-letters") == 2
    assert "a question in letters must have 4 choices, got 2" in capsys.readouterr().err


def test_parquet(tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "test.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "answer": label} for row, (label, *_) in zip(MMLU_ROWS, MMLU_EXAMPLES)]), path)
    assert make(path, name="mmlu") == 0
    assert decoded_examples(tmp_path / "val.bin") == MMLU_EXAMPLES
    path.write_bytes(path.read_bytes()[:-50])
    assert make(path, name="mmlu") == 2
    message = capsys.readouterr().err
    assert "test.parquet: the questions must be a readable file" in message and message.count("\n") == 1


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        list(read_questions(tmp_path / "test.parquet", "mmlu"))


@pytest.mark.parametrize(
    "line, reason",
    [
        ("no JSON", "line 2: each must be an object with ctx"),
        ("[1, 2]", "line 2"),
        ('{"ctx": "a", "endings": ["b", "c"]}', "line 2"),  # the test split has no labels
        ('{"ctx": "a", "label": "", "endings": ["b", "c"]}', "line 2"),
        ('{"ctx": "a", "label": 0, "endings": ["b", 3]}', "line 2"),
        ('{"ctx": 5, "label": 0, "endings": ["b", "c"]}', "line 2"),
        ('{"ctx": "a", "label": 1e999, "endings": ["b", "c"]}', "line 2"),
        ("[" * 100_000, "line 2"),
        ('{"ctx": "a", "label": 1, "endings": "abcd"}', "line 2"),
        ('{"ctx": "a", "label": 1.7, "endings": ["b", "c"]}', "line 2"),
        ('{"ctx": "a", "label": true, "endings": ["b", "c"]}', "line 2"),
        ('{"ctx": "a", "label": "E", "endings": ["b", "c"]}', "line 2"),
        ('{"ctx": "", "label": 0, "endings": ["b", "c"]}', "example number 1 has an empty"),
        ('{"ctx": "a", "label": 2, "endings": ["b", "c"]}', "label 2 and 2 endings"),
    ],
)
def test_bad_lines(tmp_path, capsys, line, reason):
    path = tmp_path / "val.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    assert make(path) == 2
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
    (tmp_path / "folder.jsonl").mkdir()
    for arguments, reason in [
        ([tmp_path / "none.jsonl"], "No such file"),
        ([tmp_path / "binary.jsonl"], "UTF-8"),
        ([tmp_path / "cut.jsonl.gz"], "cut.jsonl.gz: the questions must be a readable file"),
        ([tmp_path / "damaged.jsonl.gz"], "damaged.jsonl.gz: the questions must be a readable file"),
        ([tmp_path / "folder.jsonl"], "it is a directory"),
        ([tmp_path / "pipe"], "it is a pipe"),
        ([tmp_path / "a\0b"], "null"),
        ([tmp_path / ("n" * 300)], "File name too long"),
        ([questions.rename(tmp_path / "plain.gz")], "plain.gz: the questions must be a readable file"),
        ([tmp_path / "empty.jsonl"], "got 0"),
        ([tmp_path / "empty.jsonl", "--limit", 0], "--limit must be at least 1"),
        ([tmp_path / "empty.jsonl", "--longest", 0], "--longest must be at least 1"),
        ([tmp_path / "empty.jsonl", "--frobnicate"], "unrecognized arguments"),
    ]:
        assert make(*arguments) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "val.bin").exists()


def test_output_that_cannot_be_written(tmp_path, questions, capsys):
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "file").touch()
    for out, name, reason in [
        (tmp_path, "pipe", "it is a pipe"), (tmp_path / "a\0b", "val", "null"), (tmp_path / ("n" * 300), "val", "too long"),
        (tmp_path / "file", "val", "File exists"), (tmp_path, "n" * 300, "too long"),
    ]:  # fmt: skip
        assert make(questions, "--out", out, "--name", name) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: --out") and reason in message and message.count("\n") == 1
