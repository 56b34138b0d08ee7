"""Ready-made shards from a stand-in for the hub: what is fetched, under which names, in which order, and what a run says that waits."""

import json
import shlex
import threading

import numpy as np
import pytest

from gpt2_numba.data.fetching import download as download_module
from gpt2_numba.data.fetching import shard_download
from gpt2_numba.data.fetching.hub import hub_files
from gpt2_numba.data.fetching.shard_download import ReadyShards, fetch_shards, order_of_need
from gpt2_numba.data.manifest import read_download_state, read_manifest
from gpt2_numba.data.token_shards import Shard, write_shard
from gpt2_numba.data.tokenizer_record import recorded_tokenizer
from gpt2_numba.errors import UserError
from gpt2_numba.training.settings import parse_settings
from tests.file_server import FileServer, break_after, other_bytes

SOURCE = ReadyShards("someone/webtext", "webtext_train_*.bin", "webtext_val_000000.bin")
SHARDS = 5


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one data set: a validation shard, five training shards, and files that are none."""
    files = {"README.md": b"about", ".gitattributes": b"bin"}
    for number, name in enumerate(["webtext_val_000000.bin", *(f"webtext_train_{i:06d}.bin" for i in range(1, SHARDS + 1))]):
        write_shard(tmp_path / "shard", np.full(20 + number, number))
        files[name] = (tmp_path / "shard").read_bytes()
    monkeypatch.setattr(download_module, "PAUSES", (0, 0))
    monkeypatch.setattr(download_module, "PAUSES_BEFORE_THE_FIRST_ANSWER", (0,))
    with FileServer() as server:
        server.add_dataset(SOURCE.repo, files)
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        yield server


def fetched(hub):
    """The files that were asked for, in order."""
    return [path.rpartition("/")[2] for path, _ in hub.requests if "/resolve/" in path]


def test_shards_and_their_manifest(tmp_path, hub, capsys):
    paths = fetch_shards(SOURCE, "web", tmp_path / "data", count=3)
    names = ["web_train_000001.bin", "web_train_000002.bin", "web_train_000003.bin", "web_val_000000.bin"]
    assert [path.name for path in paths] == names
    assert [len(Shard(path)) for path in paths] == [21, 22, 23, 20]
    assert [recorded_tokenizer(path) for path in paths] == ["gpt2"] * 4
    listed = read_manifest(tmp_path / "data" / "web_manifest.json")
    assert [(shard.name, shard.tokens, shard.bytes) for shard in listed] == [
        (name, tokens, 1024 + 2 * tokens) for name, tokens in zip(names, [21, 22, 23, 20])
    ]
    assert listed[0].url == f"{hub.url}/datasets/someone/webtext/resolve/main/webtext_train_000001.bin" and len(listed[0].sha256) == 64
    assert read_download_state(tmp_path / "data" / "web_manifest.json").state == "done"
    said = capsys.readouterr().out
    command = next(line for line in said.splitlines() if line.startswith("train while they arrive: "))
    settings = parse_settings(shlex.split(command)[shlex.split(command).index("gpt2_numba.train") + 1 :])
    assert settings.train_data == f"{tmp_path}/data/web_train_*.bin" and settings.val_data == f"{tmp_path}/data/web_val_*.bin"
    assert settings.wait_for_shards and settings.batch_size * settings.sequence_length < 20  # the smallest shard holds a batch


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_order_is_that_of_need(tmp_path, hub, ranks):
    fetch_shards(SOURCE, "web", tmp_path, ranks=ranks)
    needed = order_of_need(read_manifest(tmp_path / "web_manifest.json"), ranks)
    assert fetched(hub) == [shard.name.replace("web", "webtext") for shard in needed]
    assert fetched(hub)[0] == "webtext_val_000000.bin"


def test_the_same_command_fetches_only_what_is_missing(tmp_path, hub):
    fetch_shards(SOURCE, "web", tmp_path, count=2)
    (tmp_path / "web_train_000002.bin").unlink()
    hub.requests.clear()
    before = (tmp_path / "web_manifest.json").read_bytes()
    fetch_shards(SOURCE, "web", tmp_path, count=2)
    assert fetched(hub) == ["webtext_train_000002.bin"]
    assert (tmp_path / "web_manifest.json").read_bytes() == before


def test_fewer_shards_than_there_are_leave_the_others_in_the_manifest(tmp_path, hub):
    """The pattern of a run without --wait-for-shards matches them, too."""
    fetch_shards(SOURCE, "web", tmp_path, count=4)
    (tmp_path / "web_train_000004.bin").unlink()
    fetch_shards(SOURCE, "web", tmp_path, count=1)
    assert [shard.name for shard in read_manifest(tmp_path / "web_manifest.json")] == [
        "web_train_000001.bin", "web_train_000002.bin", "web_train_000003.bin", "web_val_000000.bin"
    ]  # fmt: skip


def test_the_manifest_is_there_before_the_shards(tmp_path, hub):
    for path in hub.files:
        hub.gates[path] = threading.Event()
    thread = threading.Thread(target=fetch_shards, args=(SOURCE, "web", tmp_path), kwargs={"command": "the command"})
    thread.start()
    while not fetched(hub):
        pass
    assert len(read_manifest(tmp_path / "web_manifest.json")) == SHARDS + 1 and not list(tmp_path.glob("web_*.bin"))
    state = read_download_state(tmp_path / "web_manifest.json")
    assert (state.state, state.command) == ("running", "the command")
    for gate in hub.gates.values():
        gate.set()
    thread.join()


def test_faults_of_the_network_are_mended(tmp_path, hub):
    hub.faults = [break_after(100), None, other_bytes]
    assert len(fetch_shards(SOURCE, "web", tmp_path)) == SHARDS + 1


def test_a_download_that_fails_says_so_to_the_run_that_waits(tmp_path, hub):
    hub.files = {path: data for path, data in hub.files.items() if "train" not in path}
    with pytest.raises(UserError, match="the server answers 404"):
        fetch_shards(SOURCE, "web", tmp_path, command="python -m gpt2_numba.data web")
    state = read_download_state(tmp_path / "web_manifest.json")
    assert state.state == "failed" and "404" in state.reason and state.command == "python -m gpt2_numba.data web"
    assert (tmp_path / "web_val_000000.bin").exists()


def test_more_shards_than_there_are(tmp_path, hub):
    with pytest.raises(UserError, match="--shards must be at most 5, of which someone/webtext consists, got 6"):
        fetch_shards(SOURCE, "web", tmp_path, count=6)


def test_a_disk_that_is_too_small(tmp_path, hub, monkeypatch):
    from gpt2_numba.data.fetching import hub as hub_module

    monkeypatch.setattr(hub_module, "free_bytes", lambda directory: 5000)
    with pytest.raises(UserError, match="6.4 kB are to be downloaded, and the disk has 5.0 kB left"):
        fetch_shards(SOURCE, "web", tmp_path)
    assert fetched(hub) == [] and not (tmp_path / "web_manifest.json").exists()


def test_files_that_are_no_shards(tmp_path, hub):
    hub.add_dataset(SOURCE.repo, {SOURCE.val: b"odd" * 1001, "webtext_train_000001.bin": bytes(1026)})
    with pytest.raises(UserError, match="must be a token shard, and has 3003 bytes"):
        fetch_shards(SOURCE, "web", tmp_path)
    hub.add_dataset(SOURCE.repo, {SOURCE.val: bytes(1026), "webtext_train_000001.bin": bytes(1026)})
    with pytest.raises(UserError, match="begins with the number 20240520"):
        fetch_shards(SOURCE, "web", tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path, hub):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out .*file: must be a directory that can be written"):
        fetch_shards(SOURCE, "web", tmp_path / "file")


def test_a_listing_of_several_pages_and_of_a_folder(hub):
    assert [file.name for file in hub_files(SOURCE.repo, "*.bin")] == sorted(
        [f"webtext_train_{i:06d}.bin" for i in range(1, SHARDS + 1)] + ["webtext_val_000000.bin"]
    )
    hub.add_dataset("a/b", {"sample/10BT/000_00000.parquet": b"1", "sample/100BT/000_00000.parquet": b"22", "data/x.parquet": b"333"})
    hub.requests.clear()
    assert [(file.name, file.size) for file in hub_files("a/b", "sample/10BT/*.parquet")] == [("sample/10BT/000_00000.parquet", 1)]
    assert [path for path, _ in hub.requests] == ["/api/datasets/a/b/tree/main/sample/10BT"]


@pytest.mark.parametrize("answer", [{"error": "gated"}, [{"path": "a"}], ["a"], [{"type": "file", "path": "a", "size": None}]])
def test_answers_that_are_no_listing(hub, answer):
    hub.files["/api/datasets/x/y/tree/main"] = json.dumps(answer).encode()
    with pytest.raises(UserError, match="must be the hub's list of files"):
        hub_files("x/y", "*.bin")


def test_a_data_set_that_is_not_there(hub):
    with pytest.raises(UserError, match="answers 404"):
        hub_files("no/where", "*.bin")
    with pytest.raises(UserError, match=r"must have files like \*.txt, and has none"):
        hub_files(SOURCE.repo, "*.txt")


def test_the_seed_is_the_trainers(tmp_path):
    from gpt2_numba.data.loader import DataLoader

    loader = DataLoader([np.zeros(9, np.uint16)], B=1, T=1, shuffle=True)
    assert loader.seed == shard_download.TRAINER_SEED
