"""`python -m gpt2_numba.data`: where documents begin, what is for validation, how shards are cut, what a break costs, what is refused."""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba.data.__main__ import main
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.making import shard_making, shard_writer, text_parts, training_command
from gpt2_numba.data.token_shards import Shard, find_shards
from gpt2_numba.data.tokenizer_record import recorded_tokenizer
from gpt2_numba.errors import UserError
from gpt2_numba.training.settings import parse_settings
from tests.without_permission import without_permission

REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data"
END_OF_TEXT = 256


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("One\n\nTwo é\nof two\n\n\nThree")
    return path


def make(*arguments, tokenizer="bytes"):
    assert main([*map(str, arguments), "--tokenizer", tokenizer, "--processes", "1"]) == 0


def read_tokens(pattern):
    return np.concatenate([Shard(path)[:] for path in find_shards(pattern)])


def as_text(tokens):
    """The text, with end-of-text as '|', which the texts of these tests do not contain."""
    return b"".join(b"|" if token == END_OF_TEXT else bytes([token]) for token in tokens).decode()


def made_text(folder, name):
    """Validation and training text, one after the other."""
    return as_text(np.concatenate([read_tokens(f"{folder}/{name}_{split}_*.bin") for split in ("val", "train")]))


def contents(folder):
    """name -> bytes of all files; locks aside, which a killed process leaves."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix != ".lock"}


# ------------------------------------------------------------------------------------------------ documents


def test_one_document_per_file(tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("Four\n")
    make(text, other, "--out", tmp_path / "new" / "folder", "--val-tokens", 5)
    assert as_text(read_tokens(tmp_path / "new" / "folder" / "play_val_000000.bin")) == "|One\n"
    assert as_text(read_tokens(tmp_path / "new" / "folder" / "play_train_000000.bin")) == "\nTwo é\nof two\n\n\nThree|Four\n"


def test_documents_split_on_blank_lines(tmp_path, text):
    make(text, "--out", tmp_path, "--split", "blank-line", "--val-tokens", 6)
    assert as_text(read_tokens(tmp_path / "play_val_000000.bin")) == "|One\n\n"
    assert as_text(read_tokens(tmp_path / "play_train_000000.bin")) == "|Two é\nof two\n\n|\nThree"


@pytest.mark.parametrize(("contents", "split", "expected"), [
    ("A tale.\n<|endoftext|>\n\nAnother.\n\n<|endoftext|>\n", "<|endoftext|>", "|A tale.|Another."),
    ("a--b----c", "--b", "|a|----c"), ("a==b====c", "==", "|a|b|c"),
    ("one\n---\ntwo\n--- three", r"\n---\n", "|one|two\n--- three"),
    ("a\tb\tc d", r"\t", "|a|b|c d"),
    ("a\r\nb\r\n\r\nc\rd", "blank-line", "|a\nb\n\n|c\nd"),
    ("a\n\n\n\n\nb\n\n", "blank-line", "|a\n\n|\n\n|\nb\n\n"),
    (" a <s> b ", "file", "| a <s> b "),
])  # fmt: skip
def test_separators(tmp_path, contents, split, expected):
    (tmp_path / "a.txt").write_bytes(contents.encode())
    make(tmp_path / "a.txt", f"--split={split}", "--out", tmp_path, "--val-tokens", 1)
    assert made_text(tmp_path, "a") == expected


def test_end_of_text_in_a_text_is_told(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("A.<|endoftext|>B.<|endoftext|>")
    make(tmp_path / "a.txt", "--out", tmp_path)
    assert made_text(tmp_path, "a") == "|A.<|endoftext|>B.<|endoftext|>"
    assert "the text says <|endoftext|> 2 times" in capsys.readouterr().out
    make(tmp_path / "a.txt", "--split", "<|endoftext|>", "--out", tmp_path, "--name", "b")
    assert made_text(tmp_path, "b") == "|A.|B." and "the text says" not in capsys.readouterr().out


def test_a_byte_order_mark_is_dropped(tmp_path):
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b'{"text": "Hello"}')
    make(tmp_path / "a.txt", tmp_path / "b.jsonl", "--out", tmp_path)
    assert made_text(tmp_path, "a") == '|{"text": "Hello"}|Hello'


def test_json_lines(tmp_path):
    rows = [{"text": "One", "id": 1}, {"text": ""}, {"text": "Zwei\nü"}, {"text": None}, {"id": 2, "text": "3"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    make(tmp_path / "rows.jsonl", "--out", tmp_path)
    assert made_text(tmp_path, "rows") == "|One|Zwei\nü|3"


def test_another_field(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"body": "One"}\n{"body": "Two"}')
    make(tmp_path / "rows.jsonl", "--out", tmp_path, "--field", "body")
    assert made_text(tmp_path, "rows") == "|One|Two"


def test_parquet(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"{n} ü" for n in range(40)] + [None, ""]
    parquet.write_table(pyarrow.table({"text": texts, "id": list(range(42))}), tmp_path / "rows.parquet", row_group_size=9)
    expected = "".join(f"|{n} ü" for n in range(40))
    for name, block, rows in (("a", 1 << 20, 256), ("b", 10, 4)):
        monkeypatch.setattr(text_parts, "BLOCK", block)
        monkeypatch.setattr(text_parts, "PARQUET_ROWS", rows)
        make(tmp_path / "rows.parquet", "--out", tmp_path / "out", "--name", name)
        assert made_text(tmp_path / "out", name) == expected


def test_a_folder(tmp_path, capsys):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name, content in {
        "b/two.txt": b"Two", "a.md": b"One", "c.jsonl": b'{"text": "Three"}', "empty.txt": b"", "picture.png": b"\x89PNG\0\xff\0\0",
        "utf16.txt": "Hello, world".encode("utf-16"), ".hidden/x.txt": b"x", ".y.txt": b"y", "z.py": b"Four",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    make(folder, "--out", tmp_path)
    assert made_text(tmp_path, "texts") == "|One|Two|Three|Four"
    output = capsys.readouterr().out
    assert "left out, since not UTF-8 text: 2 files: " in output and "picture.png" in output and "utf16.txt" in output


def test_the_built_in_text(tmp_path):
    make("built-in", "--out", tmp_path)
    trained, validated = builtin_corpus()
    train, val = read_tokens(f"{tmp_path}/built-in_train_*.bin"), read_tokens(f"{tmp_path}/built-in_val_*.bin")
    whole = np.concatenate([trained, validated])
    np.testing.assert_array_equal(np.concatenate([train, val]), whole[: train.size + val.size])
    assert val[0] == END_OF_TEXT and 0.05 < val.size / whole.size < 0.1 and whole.size - train.size - val.size < 4  # of a cut character


def test_tiny_shakespeare_matches_llmcs(tmp_path, monkeypatch):
    gpt2_vocabulary(tmp_path, monkeypatch)
    if not (REAL_DATA / "tinyshakespeare.txt").is_file():
        pytest.skip(f"Tiny Shakespeare is missing: {REAL_DATA / 'tinyshakespeare.txt'}")
    text = REAL_DATA / "tinyshakespeare.txt"
    make(text, "--split", "blank-line", "--val-tokens", 32768, "--out", tmp_path, tokenizer="gpt2")
    val, train = [read_tokens(f"{tmp_path}/tinyshakespeare_{part}_*.bin") for part in ("val", "train")]
    assert (val.size, train.size) == (32768, 305260)
    assert val[:6].tolist() == [50256, 5962, 22307, 25, 198, 8421]


def gpt2_vocabulary(tmp_path, monkeypatch):
    """GPT-2's tokenizer from files on this machine. tiktoken names a cached file by the SHA-1 of its URL."""
    names = {"vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"}
    for name, cache_name in names.items():
        if not (REAL_DATA / "gpt2_bpe" / name).is_file():
            pytest.skip(f"GPT-2's vocabulary is missing: {REAL_DATA / 'gpt2_bpe' / name}")
        shutil.copy(REAL_DATA / "gpt2_bpe" / name, tmp_path / cache_name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))


# ------------------------------------------------------------------------------------------------ shards


def test_fraction_and_shard_size(tmp_path):
    text = tmp_path / "digits.txt"
    text.write_text("0123456789" * 10)  # 101 tokens with end-of-text
    make(text, "--out", tmp_path, "--val-fraction", 0.25, "--shard-size", 30, "--name", "d")
    assert [path.name for path in find_shards(f"{tmp_path}/d_*.bin")] == [
        "d_train_000000.bin",
        "d_train_000001.bin",
        "d_train_000002.bin",
        "d_val_000000.bin",
    ]
    assert [len(Shard(path)) for path in find_shards(f"{tmp_path}/d_train_*.bin")] == [30, 30, 16]
    assert len(read_tokens(f"{tmp_path}/d_val_*.bin")) == 25
    assert made_text(tmp_path, "d") == "|" + "0123456789" * 10
    assert not [path.name for path in tmp_path.iterdir() if path.suffix not in (".bin", ".txt") and path.name != "d_tokenizer.json"]


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(60, [30, 30]), (61, [30, 16, 15]), (74, [30, 22, 22]), (75, [30, 30, 15]), (29, [29]), (2, [2])]
)
def test_a_short_last_shard_takes_from_the_one_before(tmp_path, tokens, sizes):
    (tmp_path / "a.txt").write_text("v" * 5 + "t" * tokens)
    make(tmp_path / "a.txt", "--out", tmp_path, "--val-tokens", 6, "--shard-size", 30)
    assert [len(Shard(path)) for path in find_shards(f"{tmp_path}/a_train_*.bin")] == sizes
    assert made_text(tmp_path, "a") == "|" + "v" * 5 + "t" * tokens


def test_validation_is_at_most_one_shard_unless_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 999)
    make(tmp_path / "a.txt", "--out", tmp_path, "--shard-size", 50)
    make(tmp_path / "a.txt", "--out", tmp_path, "--shard-size", 50, "--val-fraction", 0.1, "--name", "b")
    assert len(read_tokens(f"{tmp_path}/a_val_*.bin")) == 50 and len(read_tokens(f"{tmp_path}/b_val_*.bin")) == 100


def test_a_fraction_of_a_text_of_many_units(tmp_path, monkeypatch):
    monkeypatch.setattr(text_parts, "BLOCK", 100)
    (tmp_path / "a.txt").write_text("word " * 2000)
    make(tmp_path / "a.txt", "--out", tmp_path, "--val-fraction", 0.3)
    assert abs(len(read_tokens(f"{tmp_path}/a_val_*.bin")) - 3000) <= 1


def test_so_many_tokens_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(text_parts, "BLOCK", 100)
    (tmp_path / "a.txt").write_text("word " * 2000)
    make(tmp_path / "a.txt", "--out", tmp_path, "--tokens", "1.2k", "--val-tokens", "200")
    assert made_text(tmp_path, "a") == ("|" + "word " * 2000)[:1200] and len(read_tokens(f"{tmp_path}/a_val_*.bin")) == 200


@pytest.mark.parametrize(("options", "val"), [
    (["--tokens", 1000], 100), (["--tokens", 1000, "--val-fraction", 0.3], 300), (["--tokens", 4], 2), (["--tokens", 100_000], 1001),
    (["--tokens", 1000, "--shard-size", 50], 50),
])  # fmt: skip
def test_of_some_tokens_the_usual_fraction_is_for_validation(tmp_path, monkeypatch, options, val):
    monkeypatch.setattr(text_parts, "BLOCK", 100)
    (tmp_path / "a.txt").write_text("word " * 2000)
    make(tmp_path / "a.txt", "--out", tmp_path, *options)
    assert len(read_tokens(f"{tmp_path}/a_val_*.bin")) == val
    assert made_text(tmp_path, "a") == ("|" + "word " * 2000)[: options[1]]


@pytest.mark.parametrize(("options", "val", "train"), [
    ([], "|vvv|vv", "|tt|tttt"), (["--tokens", 6], "|v", "|tt|"), (["--tokens", 5, "--val-tokens", 4], "|vvv", "|"), (["--tokens", 99], "|vvv|vv", "|tt|tttt"),
    (["--val-tokens", 5], "|vvv|", "|tt|tttt"), (["--val-fraction", 0.2], "|vv", "|tt|tttt"), (["--val-tokens", 7], "|vvv|vv", "|tt|tttt"),
])  # fmt: skip
def test_a_source_with_parts_for_validation(tmp_path, monkeypatch, capsys, options, val, train):
    monkeypatch.setattr(text_parts, "BLOCK", 3)  # each text is a unit
    parts = [text_parts.Texts("v", ["vvv", "vv"], True), text_parts.Texts("t", ["tt", "tttt"], False)]
    monkeypatch.setattr("gpt2_numba.data.sources.builtin_parts", lambda: parts)
    make("built-in", "--out", tmp_path, *options)
    assert [as_text(read_tokens(f"{tmp_path}/built-in_{split}_*.bin")) for split in ("val", "train")] == [val, train]
    documents = (val + train).count("|")
    output = capsys.readouterr().out
    assert f"\n{documents} documents, {len(val + train)} tokens" in output and "this source has only" not in output


@pytest.mark.parametrize("option", ["--val-tokens 8", "--val-fraction 0.9"])
def test_too_few_tokens_for_validation_are_told(tmp_path, monkeypatch, capsys, option):
    parts = [text_parts.Texts("v", ["vvv", "vv"], True), text_parts.Texts("t", ["tt", "tttt"], False)]
    monkeypatch.setattr("gpt2_numba.data.sources.builtin_parts", lambda: parts)
    make("built-in", "--out", tmp_path, *option.split())
    assert f"{option}: this source has only 7 tokens for validation" in capsys.readouterr().out


def test_the_tokenizer_is_recorded(tmp_path, text):
    make(text, "--out", tmp_path)
    assert recorded_tokenizer(tmp_path / "play_train_000000.bin") == "bytes"
    record = json.loads((tmp_path / "play_tokenizer.json").read_text())
    assert (record["vocabulary"], record["end_of_text"], record["documents"]) == (257, 256, 1)
    assert record["tokens"] == {split: len(read_tokens(f"{tmp_path}/play_{split}_*.bin")) for split in ("val", "train")}


# ------------------------------------------------------------------------------------------------ processes and breaks

SHARD = ["--shard-size", "700", "--val-fraction", "0.2", "--split", "blank-line", "--tokenizer", "bytes", "--name", "n"]


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """A text of about 25 units; a job that notes its progress after each."""
    monkeypatch.setattr(text_parts, "BLOCK", 200)
    monkeypatch.setattr(shard_making, "SAVE_SECONDS", -1)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power will fail here, and it takes its time
    rng = np.random.default_rng(1)
    words = [f"{'' if rng.random() < 0.8 else chr(10) * 2}{word:x}" for word in rng.integers(0, 1 << 30, 600)]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, part in enumerate(np.array_split(words, 3)):
        (folder / f"{number}.txt").write_text(" ".join(part))
    return folder


def test_the_number_of_processes_changes_nothing(tmp_path, pieces):
    for count in ("1", "2", "3"):
        assert main([str(pieces), *SHARD, "--out", str(tmp_path / count), "--processes", count]) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")
    assert len(contents(tmp_path / "1")) > 8


def ended_at(name, count, argv):
    """Run the command in a forked process, which ends at the given call of a function of os, without cleaning up. Returns its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work, calls = getattr(os, name), []

            def counted(*arguments):
                calls.append(None)
                if len(calls) == count:
                    os._exit(9)
                return work(*arguments)

            setattr(os, name, counted)
            os._exit(main(argv))
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_killed_job_goes_on_and_writes_the_same_bytes(tmp_path, pieces):
    """Ended without a word at each of its writes, and in the middle of naming its last shards."""
    whole = tmp_path / "whole"
    assert main([str(pieces), *SHARD, "--out", str(whole), "--processes", "1"]) == 0
    names = ("replace", "truncate", "fsync")  # of the module os: each is called while the files are between two states
    breaks = 0
    for name in names:
        for count in range(1, 400, 1 if name == "replace" else 7):
            folder = tmp_path / f"{name}_{count}"
            command = [str(pieces), *SHARD, "--out", str(folder), "--processes", "1"]
            if ended_at(name, count, command) != 9:
                break
            breaks += 1
            assert main(command) == 0
            assert contents(folder) == contents(whole), (name, count)
            shutil.rmtree(folder)
    assert breaks > 60


@pytest.mark.parametrize("unit", [1, 2, 5, 11])
def test_a_stopped_job_goes_on(tmp_path, pieces, monkeypatch, capsys, unit):
    monkeypatch.setattr(shard_making, "SAVE_SECONDS", 1000)
    command = [str(pieces), *SHARD, "--processes", "1", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    encode_units = shard_making.encode_units

    def stopped(*arguments):
        for number, result in enumerate(encode_units(*arguments)):
            if number == unit:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_making, "encode_units", stopped)
        main([*command, str(tmp_path / "out")])
    assert "the same command goes on" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "out"), "--processes", "2"]) == 0
    assert "going on after" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def broken_job(tmp_path, pieces):
    """The command of a job that was broken off."""
    command = [str(pieces), *SHARD, "--processes", "1", "--out", str(tmp_path / "out")]
    assert ended_at("replace", 9, command) == 9
    return command


@pytest.mark.parametrize(("change", "words"), [
    (["--tokenizer", "gpt2"], "tokenizer bytes instead of gpt2"),
    (["--split", "file"], "split blank-line instead of file"),
    (["--shard-size", "800"], "shard size 700 instead of 800"),
    ("text", "text "),
])  # fmt: skip
def test_another_job_does_not_go_on_with_it(tmp_path, pieces, capsys, change, words):
    command = broken_job(tmp_path, pieces)
    before = contents(tmp_path / "out")
    if change == "text":
        (pieces / "1.txt").write_text("Something else")
        change = []
    assert main([*command, *change]) == 2
    error = capsys.readouterr().err
    assert words in error and "n_*" in error and error.count("\n") == 1
    assert contents(tmp_path / "out") == before


def test_damaged_progress_is_told(tmp_path, pieces, capsys):
    command = broken_job(tmp_path, pieces)
    (tmp_path / "out" / "n_progress.json").write_text("{")
    assert main(command) == 2 and "damaged" in capsys.readouterr().err


def test_a_shard_that_has_vanished_is_told(tmp_path, pieces, capsys):
    command = broken_job(tmp_path, pieces)
    for path in (tmp_path / "out").glob("*.part"):
        path.unlink()
    assert main(command) == 2 and "missing or too short" in capsys.readouterr().err


def test_two_processes_do_not_write_the_same_shards(tmp_path, pieces, capsys):
    command = [str(pieces), *SHARD, "--out", str(tmp_path), "--processes", "1"]
    with shard_writer.ShardWriter(tmp_path, "n", {}, 700) as writer:
        assert main(command) == 2 and "another process is writing" in capsys.readouterr().err
        assert main([*command, "--name", "m"]) == 0
        writer.delete()
    assert main(command) == 0


def test_a_full_disk_costs_nothing_that_is_written(tmp_path, pieces, monkeypatch, capsys):
    command = [str(pieces), *SHARD, "--processes", "1", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    close, closed = shard_writer.ShardWriter._close, []

    def full(self, *arguments):
        closed.append(None)
        if len(closed) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        close(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.ShardWriter, "_close", full)
        assert main([*command, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {tmp_path / 'out'}: ") and "No space left" in error and error.count("\n") == 1
    assert main([*command, str(tmp_path / "out")]) == 0
    assert "going on after" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_told_first(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(shard_making, "free_bytes", lambda _: 50)
    assert main([str(text), "--tokenizer", "bytes", "--out", str(tmp_path / "out")]) == 2
    assert "need about 57 B, and 50 B are free" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {}


def test_memory_does_not_depend_on_the_size(tmp_path):
    """Peak memory of a whole process, for a text and one ten times as long."""
    peaks = []
    for name, copies in (("small", 4), ("large", 40)):
        with open(tmp_path / f"{name}.txt", "wb") as file:
            for _ in range(copies):
                file.write(b"To be, or not to be, that is the question.\n" * 24000)  # 1 MB
        program = (
            "import resource, sys\nfrom gpt2_numba.data.__main__ import main\nassert main(sys.argv[1:]) == 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [
            sys.executable,
            "-c",
            program,
            f"{tmp_path}/{name}.txt",
            "--tokenizer",
            "bytes",
            "--out",
            str(tmp_path),
            "--processes",
            "1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 8e6, peaks


# ------------------------------------------------------------------------------------------------ the printed command


def printed_command(output):
    (line,) = [line for line in output.splitlines() if line.startswith("train with: ")]
    words = shlex.split(line.removeprefix("train with: "))
    assert words[:3] == ["python", "-m", "gpt2_numba.train"]
    return words[3:]


@pytest.mark.parametrize("name", ["book[1]", "it's *", "a b", "-x", "$HOME"])
def test_the_printed_patterns_match_these_shards_only(tmp_path, text, capsys, name):
    folder = tmp_path / "out[2]"
    make(text, "--out", folder, f"--name={name}", "--shard-size", 10)
    words = printed_command(capsys.readouterr().out)
    for other in ("book1", "it's so", "axb"):
        make(text, "--out", folder, "--name", other)
    for flag, part in [("-i", "train"), ("-j", "val")]:
        found = find_shards(words[words.index(flag) + 1])
        assert found == sorted(path for path in folder.iterdir() if path.name.startswith(f"{name}_{part}_")) != []


@pytest.mark.parametrize("characters", [20, 5000])
def test_the_printed_command_trains(tmp_path, monkeypatch, capsys, characters):
    """On texts of any length: two steps of it, on the CPU; the samples are text."""
    from gpt2_numba import train

    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("abc " * (characters // 4))
    monkeypatch.setattr(training_command, "count_gpus", lambda: 0)
    make("book.txt")
    words = printed_command(capsys.readouterr().out)
    assert parse_settings(words).model == "L=4,NH=4,C=128"
    assert train.main([*words, "-x", "2", "-v", "2", "-s", "2", "-g", "4", "-m", "1", "--device", "cpu", "-n", "0"]) == 0
    output = capsys.readouterr().out
    assert "V=257" in output and Path("log_book/main.log").exists()


@pytest.mark.parametrize(("tokens", "gpus", "tokenizer", "flags"), [
    (100_000_000, 0, "gpt2", "-e L=4,NH=4,C=128 -b 16 -t 64 "),
    (100_000_000, 0, "bytes", "-e L=4,NH=4,C=128 -b 16 -t 64 "),
    (100_000_000, 8, "gpt2", "-e d12 -b auto -t 1024 -d 131072 -r 0 -l 0.0006 -u 76 "),
    (10_000_000_000, 8, "gpt2", "-e d12 -b auto -t 1024 -d 524288 -r 0 -l 0.0006 -u 700 "),
    (1_000_000, 1, "gpt2", "-e L=6,NH=6,C=384 -b 64 -t 256 "),
    (5_000, 1, "bytes", "-e L=6,NH=6,C=384 -b 19 -t 256 "),
    (2, 1, "bytes", "-e L=6,NH=6,C=384 -b 1 -t 1 "),
])  # fmt: skip
def test_the_printed_command_fits_data_and_machine(tmp_path, monkeypatch, tokens, gpus, tokenizer, flags):
    monkeypatch.setattr(training_command, "as_shard", lambda *_: range(tokens))
    command = training_command.training_command(tmp_path / "x", ["train"], ["val"], tokenizer, gpus)
    assert f" {flags}" in command
    parse_settings(shlex.split(command)[3:])


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["none.txt"], "No such file"),
        (["pythn"], "did you mean python?"),
        (["python", "play.txt"], "must be the only one"),
        (["empty"], "holds none"),
        (["latin1.txt"], "byte number 3"),
        (["empty.txt"], "this file is empty"),
        (["mark.txt"], "this one is empty"),
        (["packed.txt.gz"], "unpack it"),
        (["no_json.jsonl"], "no_json.jsonl, line 2: each line must be a JSON object, got 'two'"),
        (["field.jsonl"], "field.jsonl, line 1: a row must have the field 'text', it has 'body': choose with --field"),
        (["field.jsonl", "--field", "body"], "field.jsonl, line 2: the field 'body' must be text, got '7'"),
        (["list.jsonl"], "it has no fields"),
        (["play.txt", "--split", ""], "an empty one"),
        (["play.txt", "--split=--"], "--split cannot be '--'"),
        (["play.txt", "--val-fraction", "1"], "between 0 and 1"),
        (["play.txt", "--val-fraction", "nan"], "between 0 and 1"),
        (["play.txt", "--val-tokens", "0"], "at least 1"),
        (["play.txt", "--val-tokens", "27"], "27 of 27 tokens"),
        (["play.txt", "--val-tokens", "1e5"], "--val-tokens"),
        (["play.txt", "--val-tokens", "5", "--val-fraction", "0.1"], "omit one"),
        (["play.txt", "--val-tokens", "5", "--tokens", "5"], "--tokens must be at least 6"),
        (["built-in", "--tokens", "3"], "--tokens must be at least 4"),
        (["play.txt", "--shards", "3"], "a text of your own does not use --shards: omit it"),
        (["built-in", "--field", "body"], "built-in does not use --field: omit it"),
        (["tinyshakespeare", "--limit", "5"], "tinyshakespeare does not use --limit: omit it"),
        (["fineweb", "--tokens", "10M"], "fineweb does not use --tokens: omit it, or add --text (what it uses: --shards, --ranks)"),
        (["hellaswag", "--text"], "hellaswag does not use --text: omit it (what it uses: --questions, --limit, --longest)"),
        (["play.txt", "--shard-size", "0"], "--shard-size"),
        (["play.txt", "--shard-size", "3B"], "--shard-size"),
        (["play.txt", "--processes", "0"], "--processes"),
        (["play.txt", "--tokenizer", "words"], "words"),
        (["play.txt", "--tokeniser", "bytes"], "--tokeniser"),
        (["play.txt", "--out", "play.txt"], "--out"),
        (["play.txt", "--out", "a\0b"], "--out"),
        (["play.txt", "--out", "n" * 300], "File name too long"),
        (["play.txt", "--name", "n" * 300], "File name too long"),
        (["play.txt", "--name", "a\0b"], "--name: must be a file name"),
        (["play.txt", "--name", "a/b"], "--name: must be a file name without a directory, got 'a/b'"),
        (["play.txt", "--name", ".."], "--name"),
        (["play.txt", "--name", ""], "--name"),
        (["n" * 300], "File name too long"),
        (["a\0b"], "null"),
        (["loop"], "symbolic links"),
        (["pipe"], "it is a pipe, not a regular file"),
        (["/dev/zero"], "it is a device, not a regular file"),
        ([], "SOURCE"),
    ],
)
def test_errors_are_one_line(tmp_path, text, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    Path("empty").mkdir()
    for name, content in {
        "latin1.txt": "café".encode("latin-1"), "empty.txt": b"", "mark.txt": b"\xef\xbb\xbf", "packed.txt.gz": b"\x1f\x8b",
        "no_json.jsonl": b'{"text": "one"}\ntwo\n', "field.jsonl": b'{"body": "one"}\n{"body": 7}\n', "list.jsonl": b"[1]\n",
    }.items():  # fmt: skip
        Path(name).write_bytes(content)
    if "--tokenizer" not in arguments:
        arguments = [*arguments, "--tokenizer", "bytes"]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and reason in output.err
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".part", ".json", ".lock")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_the_remedy_for_another_encoding_works(tmp_path, monkeypatch, capsys, encoding):
    if not shutil.which("iconv"):
        pytest.skip("iconv, which the message names, is not installed here")
    monkeypatch.chdir(tmp_path)
    sentence = "It's a café's text, not long.\n" * 3
    Path("my book.txt").write_bytes(sentence.encode(encoding))
    assert main(["my book.txt", "--tokenizer", "bytes"]) == 2
    error = capsys.readouterr().err
    command = error[error.index("iconv ") :].partition(";")[0]
    subprocess.run(command, shell=True, check=True)
    make("my book_utf8.txt")
    assert made_text("data", "my book_utf8") == "|" + sentence


def test_invalid_bytes_can_be_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(text_parts, "BLOCK", 4)
    (tmp_path / "a.txt").write_bytes(b"ab \xff cd")
    make(tmp_path / "a.txt", "--out", tmp_path, "--replace-invalid")
    assert made_text(tmp_path, "a") == "|ab \ufffd cd"


def test_old_shards_are_not_mixed_with_new_ones(tmp_path, text, capsys):
    make(text, "--out", tmp_path, "--shard-size", 5)
    before = contents(tmp_path)
    assert main([str(text), "--tokenizer", "bytes", "--out", str(tmp_path)]) == 2
    assert "exist already" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_old_shards_are_seen_whatever_their_name(tmp_path, text, capsys):
    arguments = [str(text), "--tokenizer", "bytes", "--out", str(tmp_path), "--name", "book[1]"]
    assert main([*arguments, "--shard-size", "5"]) == 0
    assert main(arguments) == 2
    assert "exist already" in capsys.readouterr().err


def test_an_output_directory_that_cannot_be_written(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with without_permission(folder), pytest.raises(UserError, match="--out .*Permission denied") as raised:
        shard_writer.ShardWriter(folder, "play", {}, 100)
    assert "\n" not in str(raised.value)
