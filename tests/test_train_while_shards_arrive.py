"""`--wait-for-shards on`: a run whose shards are still being downloaded has the bits of one that has them all, and can be stopped or lost."""

import os
import signal
import threading

import numpy as np
import pytest

from gpt2_numba import train as trainer
from gpt2_numba.data import arriving_shards
from gpt2_numba.data.fetching import shard_download
from gpt2_numba.data.fetching.shard_download import ReadyShards, fetch_shards
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.training.log import read_main_log
from tests.file_server import FileServer

V, B, T = 37, 2, 8
SHARDS = 4  # of three samples each
SOURCE = ReadyShards("someone/text", "text_train_*.bin", "text_val_000000.bin")
FLAGS = ["-e", f"L=1,NH=2,C=16,V={V}", "-b", B, "-t", T, "-d", 2 * B * T, "-m", "1", "-v", "3", "-s", "0", "-x", "9", "--device", "cpu"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the data set; every training shard is held back until `Gate` opens."""
    files, rng = {}, np.random.default_rng(1)
    for name, samples in [(SOURCE.val, 1), *((f"text_train_{number:06d}.bin", 3) for number in range(1, SHARDS + 1))]:
        write_shard(tmp_path / "shard", rng.integers(0, V, samples * B * T + 1))
        files[name] = (tmp_path / "shard").read_bytes()
    monkeypatch.setattr(shard_download, "record_tokenizer", lambda *_, **__: None)  # the vocabulary here is nobody's
    with FileServer() as server:
        server.add_dataset(SOURCE.repo, files)
        server.gates = {path: threading.Event() for path in server.files if "train" in path}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def download(hub, tmp_path):
    """The download in the background, into tmp_path/arriving."""
    failures = []

    def run():
        try:
            fetch_shards(SOURCE, "text", tmp_path / "arriving", command="python -m gpt2_numba.data text")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield failures
    for gate in hub.gates.values():
        gate.set()
    thread.join()


def when_waiting(monkeypatch, act):
    """Call act(name of the shard) whenever the run waits for a shard, instead of a pause."""

    def pause(self, begin, what):
        act(os.path.basename(what))
        arriving_shards.time.sleep(0.002)

    monkeypatch.setattr(arriving_shards.Arrivals, "_pause", pause)


def train(directory, *flags, wait=True):
    """The exit code of a run on the shards in `directory`."""
    data = ["-i", f"{directory}/text_train_*.bin", "-j", f"{directory}/text_val_*.bin"]
    return trainer.main([str(word) for word in [*FLAGS, *data, *flags, *(["--wait-for-shards", "on"] if wait else [])]])


def results(log_dir):
    """All that a run has logged, and the bytes of its last model."""
    series = {name: [list(values) for values in part] for name, part in read_main_log(log_dir / "main.log").items()}
    return series["train_loss"], series["val_loss"], (log_dir / "model_00000009.bin").read_bytes()


def open_gate(hub, name):
    gate = hub.gates.get(f"/datasets/{SOURCE.repo}/resolve/main/{name}")
    if gate:
        gate.set()


@pytest.fixture
def expected(hub, tmp_path):
    """The results of a run with all shards."""
    (tmp_path / "complete").mkdir()
    for path, data in hub.files.items():
        (tmp_path / "complete" / path.rpartition("/")[2]).write_bytes(data)
    assert train(tmp_path / "complete", "-o", tmp_path / "log", wait=False) == 0
    return results(tmp_path / "log")


def test_the_bits_are_those_of_a_run_with_all_shards(tmp_path, hub, expected, download, monkeypatch, capsys):
    missing = []

    def bring(name):
        if name not in missing:
            missing.append(name)
        open_gate(hub, name)

    when_waiting(monkeypatch, bring)
    assert train(tmp_path / "arriving", "-o", tmp_path / "log2") == 0
    assert results(tmp_path / "log2") == expected and download == []
    assert len([name for name in missing if name.startswith("text_train_")]) == SHARDS  # none of them was there before it was needed
    assert "differs" not in capsys.readouterr().out


def test_a_signal_while_waiting_saves_the_last_whole_step(tmp_path, hub, expected, download, monkeypatch, capsys):
    seen, asked, next_batch = set(), [], Prefetcher.next_batch

    def bring_two_then_stop(name):
        seen.add(name)
        if len([name for name in seen if name.startswith("text_train_")]) <= 2:
            open_gate(hub, name)
        elif len(asked) == 7:  # the loop itself waits for this batch, not only the thread that reads ahead
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Prefetcher, "next_batch", lambda self: asked.append(1) or next_batch(self))
    when_waiting(monkeypatch, bring_two_then_stop)
    assert train(tmp_path / "arriving", "-o", tmp_path / "log2") == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"stopped while waiting for {tmp_path}/arriving/text_train_") and "add -y 1" in message
    assert (tmp_path / "log2" / "DONE_00000003").exists()  # two shards of three micro-batches
    when_waiting(monkeypatch, lambda name: open_gate(hub, name))
    assert train(tmp_path / "arriving", "-o", tmp_path / "log2", "-y", "1") == 0
    assert results(tmp_path / "log2") == expected
    assert "differs" not in capsys.readouterr().out


def test_a_download_that_fails_ends_the_run_after_saving(tmp_path, hub, download, monkeypatch, capsys):
    seen = []

    def bring_two_then_fail(name):
        if name.startswith("text_train_") and name not in seen:
            seen.append(name)
            if len(seen) == 3:
                hub.files.clear()
            open_gate(hub, name)

    when_waiting(monkeypatch, bring_two_then_fail)
    assert train(tmp_path / "arriving", "-o", tmp_path / "log2") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and "its download has failed" in message and "404" in message
    assert "Start that again: python -m gpt2_numba.data text; then resume the run" in message
    assert (tmp_path / "log2" / "DONE_00000003").exists()
