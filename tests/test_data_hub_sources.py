"""The named data sets on the network, from the command line to the files, with a stand-in for the hub."""

import hashlib
import json
import threading

import numpy as np
import pytest

from gpt2_numba.data.__main__ import main
from gpt2_numba.data.evaluation.multiple_choice import read_examples
from gpt2_numba.data.fetching import download as download_module
from gpt2_numba.data.fetching import hub_sources
from gpt2_numba.data.fetching.hub import RemoteFile
from gpt2_numba.data.fetching.hub_sources import HUB_SOURCES, ArrivingText
from gpt2_numba.data.making.text_parts import TextOptions, parse_split
from gpt2_numba.data.token_shards import Shard, find_shards, write_shard
from tests.file_server import FileServer, break_after

END_OF_TEXT = 256


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(download_module, "PAUSES", (0, 0))
    monkeypatch.setattr(download_module, "PAUSES_BEFORE_THE_FIRST_ANSWER", (0,))
    with FileServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def run(tmp_path, *arguments, tokenizer="bytes"):
    """The exit code of `python -m gpt2_numba.data ...` into tmp_path/data."""
    options = ["--out", tmp_path / "data", "--processes", 1, "--tokenizer", tokenizer]
    return main([str(argument) for argument in [*arguments, *options]])


def documents(tmp_path, split):
    """The documents in the shards with byte tokens, as text."""
    tokens = np.concatenate([Shard(path)[:] for path in find_shards(tmp_path / "data" / f"*_{split}_*.bin")])
    return [bytes(piece[1:].astype(np.uint8)).decode() for piece in np.split(tokens, np.flatnonzero(tokens == END_OF_TEXT))[1:]]


def remote(server, name, data):
    """A RemoteFile that the server has from now on."""
    server.files[f"/elsewhere/{name}"] = data
    return RemoteFile(name, f"{server.url}/elsewhere/{name}", len(data), hashlib.sha256(data).hexdigest())


def test_every_source_has_a_line_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in HUB_SOURCES) and "--shards N" in said


def test_tinyshakespeare(tmp_path, hub, monkeypatch):
    scenes = [f"Scene {number}: enter a ghost.\n\n" for number in range(2000)]
    monkeypatch.setattr(hub_sources, "TINY_SHAKESPEARE", remote(hub, "tinyshakespeare.txt", "".join(scenes).encode()))
    assert run(tmp_path, "tinyshakespeare") == 0
    assert sum(len(Shard(path)) for path in find_shards(tmp_path / "data" / "tinyshakespeare_val_*.bin")) == 32768  # as llm.c's
    assert documents(tmp_path, "val")[:3] == scenes[:3] and documents(tmp_path, "train")[-1] == scenes[-1]


@pytest.mark.parametrize(("options", "val"), [(["--tokens", 20_000], 2000), (["--val-fraction", 0.5], 29_000), (["--val-tokens", 70], 70)])
def test_how_much_of_tinyshakespeare_is_for_validation(tmp_path, hub, monkeypatch, options, val):
    scenes = [f"Scene {number:04}: enter a ghost.\n\n" for number in range(2000)]
    monkeypatch.setattr(hub_sources, "TINY_SHAKESPEARE", remote(hub, "tinyshakespeare.txt", "".join(scenes).encode()))
    assert run(tmp_path, "tinyshakespeare", *options) == 0
    assert abs(sum(len(Shard(path)) for path in find_shards(tmp_path / "data" / "tinyshakespeare_val_*.bin")) - val) <= 1


def test_tinystories(tmp_path, hub):
    stories = {"train": ["Tom ran.", "Sue sat.\n\nShe slept.", "The end."], "valid": ["Ann sang.", "Bob hid."]}
    files = {f"TinyStoriesV2-GPT4-{split}.txt": "\n<|endoftext|>\n".join(texts).encode() for split, texts in stories.items()}
    hub.add_dataset("roneneldan/TinyStories", {**files, "TinyStories-train.txt": b"another version"})
    hub.faults = [break_after(3)]
    assert run(tmp_path, "tinystories") == 0
    assert documents(tmp_path, "train") == stories["train"] and documents(tmp_path, "val") == stories["valid"]


def test_fineweb_as_shards(tmp_path, hub, capsys):
    files = {}
    for number, name in enumerate(["fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]):
        write_shard(tmp_path / "shard", np.full(9, number))
        files[name] = (tmp_path / "shard").read_bytes()
    hub.add_dataset("kjj0/fineweb10B-gpt2", files)
    assert run(tmp_path, "fineweb-10B", "--shards", 1, tokenizer="gpt2") == 0
    names = sorted(path.name for path in (tmp_path / "data").glob("*.bin"))
    assert names == ["fineweb-10B_train_000001.bin", "fineweb-10B_val_000000.bin"]
    assert "2 shards are in" in capsys.readouterr().out
    assert run(tmp_path, "fineweb-10B", "--shards", 3, tokenizer="gpt2") == 2
    assert "--shards must be at most 2" in capsys.readouterr().err
    assert run(tmp_path, "fineweb-10B") == 2
    assert "has shards of GPT-2's tokens, got --tokenizer bytes: add --text" in capsys.readouterr().err
    for flag in ("--shards", "--ranks"):
        assert run(tmp_path, "fineweb-10B", flag, 0, tokenizer="gpt2") == 2
        assert f"{flag} must be at least 1" in capsys.readouterr().err


def test_fineweb_as_text(tmp_path, hub):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = {}
    for number in range(3):
        parquet.write_table(pyarrow.table({"text": [f"page {number}.{row}" for row in range(9)]}), tmp_path / "file.parquet")
        files[f"sample/10BT/00{number}_00000.parquet"] = (tmp_path / "file.parquet").read_bytes()
    hub.add_dataset("HuggingFaceFW/fineweb-edu", {**files, "data/other.parquet": b"more"})
    assert run(tmp_path, "fineweb-edu-10B", "--text", "--shards", 2, "--val-tokens", 18) == 0
    pages = documents(tmp_path, "val") + documents(tmp_path, "train")
    assert pages == [f"page {number}.{row}" for number in range(2) for row in range(9)]


def test_hellaswag_and_mmlu(tmp_path, hub, monkeypatch):
    row = json.dumps({"ctx": "A man", "label": 1, "endings": ["a", "b", "c", "d"]}).encode()
    monkeypatch.setattr(hub_sources, "HELLASWAG", remote(hub, "hellaswag_val.jsonl", row))
    assert run(tmp_path, "hellaswag") == 0
    row = json.dumps({"question": "Why?", "answer": 2, "choices": ["a", "b", "c", "d"]}).encode()
    hub.add_dataset("cais/mmlu", {"all/test.jsonl": row, "all/dev.jsonl": b""})
    monkeypatch.setattr(hub_sources, "MMLU", ("cais/mmlu", "all/test.jsonl"))
    assert run(tmp_path, "mmlu") == 0
    assert [read_examples(tmp_path / "data" / name)[0].label for name in ("hellaswag_val.bin", "mmlu_test.bin")] == [1, 2]


def test_a_job_that_was_broken_off_goes_on(tmp_path, hub, monkeypatch, capsys):
    """The first files have been tokenized and deleted by then: they are not fetched again, unless their shard needs it."""
    monkeypatch.setattr(hub_sources, "KEPT_TEXTS", 1)
    texts = {f"part {number}.txt": f"{number} is a number.".encode() for number in range(4)}
    hub.add_dataset("some/text", texts)
    monkeypatch.setattr(hub_sources, "TINY_STORIES", hub_sources.HubText("some/text", "part *.txt"))
    last = hub.files.pop("/datasets/some/text/resolve/main/part 3.txt")
    assert run(tmp_path, "tinystories", "--val-tokens", 5) == 2
    assert "answers 404" in capsys.readouterr().err
    hub.files["/datasets/some/text/resolve/main/part 3.txt"] = last
    assert run(tmp_path, "tinystories", "--val-tokens", 5) == 0
    tokens = documents(tmp_path, "val")[0] + "".join(
        bytes(Shard(path)[:].astype(np.uint8)).decode("latin") for path in find_shards(tmp_path / "data" / "*_train_*.bin")
    )
    assert tokens.replace("\0", "") == "".join(text.decode() for text in texts.values())


def test_the_next_file_arrives_while_one_is_read(tmp_path, hub):
    """... and a file is deleted when those after it have been read."""
    files = [remote(hub, f"{number}.txt", b"text") for number in range(3)]
    for file in files:
        hub.gates[f"/elsewhere/{file.name}"] = threading.Event()
    parts = [ArrivingText(file, tmp_path, TextOptions(parse_split("file"))) for file in files]
    parts[0].following, parts[1].following, parts[2].finished = parts[1], parts[2], parts[0]
    hub.gates["/elsewhere/0.txt"].set()
    assert [text for unit in parts[0].units() for _, text in unit.pieces()] == ["text"]
    while ("/elsewhere/1.txt", None) not in hub.requests:
        pass
    assert ("/elsewhere/2.txt", None) not in hub.requests
    for gate in hub.gates.values():
        gate.set()
    assert len([*parts[1].units(), *parts[2].units()]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.txt", "2.txt"]


def test_no_network(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert run(tmp_path, "fineweb", "--shards", 1, tokenizer="gpt2") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: http://127.0.0.1:1/api/datasets/") and "Connection refused" in message
