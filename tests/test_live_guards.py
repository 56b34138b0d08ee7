"""Guards that every run has: tensors that do not move, a rehearsal before the first step, and data that are not what they were."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba import train as trainer
from gpt2_numba.data import token_shards
from gpt2_numba.data.evaluation.multiple_choice import Example, write_examples
from gpt2_numba.data.manifest import ListedShard, write_manifest
from gpt2_numba.data.token_shards import Shard, TokenArray, write_shard
from gpt2_numba.errors import UserError
from gpt2_numba.layers import layernorm
from gpt2_numba.training import rehearsal
from gpt2_numba.training.frozen_tensors import LOOK_FIRST, STEPS, _has_nonzero
from gpt2_numba.training.log import RUN_LOG
from gpt2_numba.training.run_facts import check_training_data, differences
from gpt2_numba.training.shard_log import earlier_digests

V, T = 23, 4


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(5)
    for name, tokens in (("train_0", 400), ("train_1", 301), ("val", 81)):
        write_shard(tmp_path / f"{name}.bin", rng.integers(0, V, tokens))
    return ["-i", str(tmp_path / "train_*.bin"), "-j", str(tmp_path / "val.bin"), "-e", f"L=2,NH=1,C=8,V={V}", "-b", "2", "-t", str(T)]


def run(*flags, code=0):
    """Train on the CPU, quietly, as the command line asks."""
    assert trainer.main(["--device", "cpu", "-v", "0", "-s", "0", *map(str, flags)]) == code


def files_of(directory):
    return {path.name: path.read_bytes() for path in Path(directory).glob("*.bin")}


# ------------------------------------------------------------------------------------------------------ frozen tensors


@pytest.fixture
def bias_left_out(monkeypatch):
    """The backward pass of LayerNorm forgets its bias."""
    backward = layernorm.layernorm_backward_ref

    def without_bias(dinp, dweight, dbias, *others, **named):
        return backward(dinp, dweight, np.zeros_like(dbias), *others, **named)

    monkeypatch.setattr(layernorm, "layernorm_backward_ref", without_bias)


def test_a_run_with_frozen_tensors_ends_with_their_names(data, tmp_path, bias_left_out, capsys):
    run(*data, "-x", STEPS + 5, "-o", tmp_path / "log", code=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: after {STEPS} steps AdamW has not moved ln1b of block 0, ln1b of block 1, ln2b of block 0, ln2b of block 1"
    )
    assert line.endswith("and 1 more: every gradient was exactly 0. Does a backward function leave it out? To train on all the same, add "
                         "--frozen-tensors warn")  # fmt: skip


def test_frozen_tensors_can_be_allowed(data, bias_left_out, capsys):
    run(*data, "-x", 2 * STEPS + 5, "--frozen-tensors", "warn")
    (line,) = capsys.readouterr().err.splitlines()  # said once
    assert line.startswith(f"warning: after {STEPS} steps AdamW has not moved ln1b of block 0") and "--frozen" not in line


def test_a_whole_model_moves_though_rows_of_its_embeddings_do_not(data, capsys):
    """V is padded to 128, and the model could read more tokens than -t."""
    run(*data, "-e", f"L=1,NH=1,C=8,V={V},T=64", "-x", STEPS + 1)
    assert capsys.readouterr().err == ""


def test_nothing_is_judged_while_every_update_is_skipped(data, monkeypatch, capsys):
    monkeypatch.setattr(trainer.StepResult, "is_outlier", lambda *_: True)
    run(*data, "-x", STEPS + 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", [0, LOOK_FIRST - 1, LOOK_FIRST, LOOK_FIRST + 1, None])
def test_one_number_is_enough(place):
    values = np.zeros(LOOK_FIRST + 2, np.float32)
    if place is not None:
        values[place] = 1e-40
    assert _has_nonzero(values) == (place is not None)
    assert not _has_nonzero(values[:0])


# ----------------------------------------------------------------------------------------------------------- rehearsal

FLAGS = ["-x", 6, "-n", 3, "-s", 6, "-g", 3]


def test_a_rehearsal_changes_no_bit_and_leaves_no_file(data, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        rehearsal, "rehearse_save", lambda *a, real=rehearsal.rehearse_save: (real(*a), seen.append(sorted(os.listdir(a[0]))))
    )
    run(*data, *FLAGS, "-o", tmp_path / "with")
    assert [name for name in seen[0] if not name.endswith("lock")] == [] and len(seen) == 1
    assert "rehearsed a checkpoint and a sample in " in capsys.readouterr().out
    monkeypatch.setattr(trainer, "rehearsed", lambda run: run)
    run(*data, *FLAGS, "-o", tmp_path / "without")
    assert files_of(tmp_path / "with") == files_of(tmp_path / "without") != {}


def test_without_checkpoints_nothing_is_rehearsed(data, tmp_path, capsys):
    run(*data, "-x", 1, "-o", tmp_path / "log")
    run(*data, "-x", 1, "-n", 1)
    assert "rehearsed" not in capsys.readouterr().out


def test_a_full_disk_ends_the_run_before_its_first_step(data, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt2_numba.training.resume.write_state_file", full)
    run(*data, *FLAGS, "-o", tmp_path / "log", code=2)
    printed = capsys.readouterr()
    assert "step " not in printed.out.split("memory, allocated once")[1]
    assert printed.err == (
        f"error: checkpoints cannot be written to {tmp_path / 'log'} (No space left on device), as a rehearsal has shown. Free some "
        "space, or name another directory with -o\n"
    )
    assert not [name for name in os.listdir(tmp_path / "log") if "model" in name or "state" in name]


def test_a_sampler_that_fails_ends_the_run_before_its_first_step(data, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise UserError("sampling needs finite logits")

    monkeypatch.setattr(rehearsal, "sample", fail)
    run(*data, *FLAGS, "-o", tmp_path / "log", code=2)
    printed = capsys.readouterr()
    assert printed.err == "error: sampling needs finite logits\n" and "| lr " not in printed.out


def test_questions_are_rehearsed(data, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(7)
    write_examples(tmp_path / "questions.bin", [Example(0, rng.integers(0, V, n), [rng.integers(0, V, n)] * 2) for n in (1, 2)])
    flags = [*data, *FLAGS, "-h", 1, "--eval-file", tmp_path / "questions.bin"]
    run(*flags, "-o", tmp_path / "log")
    assert "rehearsed a checkpoint, a sample and questions in " in capsys.readouterr().out

    def fail(*_):
        raise UserError("the rows do not fit")

    monkeypatch.setattr(rehearsal.Answers, "add", fail)
    run(*flags, "-o", tmp_path / "other", code=2)
    printed = capsys.readouterr()
    assert printed.err == "error: the rows do not fit\n" and "| lr " not in printed.out


# ----------------------------------------------------------------------------------------------------------------- data


def logged(directory, kind="shard"):
    lines = map(json.loads, (directory / RUN_LOG).read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_the_log_knows_every_shard(data, tmp_path):
    run(*data, "-x", 3, "-o", tmp_path / "log")
    (header,) = logged(tmp_path / "log", "run")
    assert [(s["name"], s["tokens"], s["bytes"]) for s in header["data"]["shards"]["training"]] == [
        ("train_0.bin", 400, 1824),
        ("train_1.bin", 301, 1626),
    ]
    assert header["data"]["shards"]["validation"][0]["modified"].endswith("Z")
    assert {"settings", "versions", "machine", "commit"} <= set(header) | {"commit"}
    digests = {line["name"]: line["sha256"] for line in logged(tmp_path / "log")}
    assert digests == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.bin")}
    assert earlier_digests(tmp_path / "log" / RUN_LOG)["training", "train_1.bin"] == digests["train_1.bin"]


def test_one_changed_token_in_the_middle_of_a_shard_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt2_numba.parallel.agreement.END_BYTES", 64)
    rng = np.random.default_rng(5)
    for name, tokens in (("train", 4000), ("val", 81)):
        write_shard(tmp_path / f"{name}.bin", rng.integers(0, V, tokens))
    flags = [
        "-i",
        tmp_path / "train.bin",
        "-j",
        tmp_path / "val.bin",
        "-e",
        f"L=1,NH=1,C=8,V={V}",
        "-b",
        2,
        "-t",
        T,
        "-o",
        tmp_path / "log",
    ]
    run(*flags, "-x", 2)
    tokens = np.array(Shard(tmp_path / "train.bin")[:])
    tokens[2000] = (tokens[2000] + 1) % V
    write_shard(tmp_path / "train.bin", tokens)
    capsys.readouterr()
    run(*flags, "-x", 3, "-y", 1)
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: train.bin (training data) is not the file that an earlier part of this run has read: SHA-256 ")
    assert printed.err.count("\n") == 1 and "what differs from the run that wrote the checkpoint: max steps 3, before 2\n" in printed.out
    run(*flags, "-x", 4, "-y", 1)
    assert "SHA-256" not in capsys.readouterr().err  # it is compared with the latest


def test_other_built_in_tokens_have_another_digest():
    shards = [TokenArray(np.arange(n, dtype=np.uint16), "built-in corpus") for n in (3, 4)]
    for shard in shards:
        shard.check()
    assert len({shard.sha256 for shard in shards}) == 2


SIZES = ["1,024 bytes (aa)", "2,048 bytes (bb)"]


@pytest.mark.parametrize(
    ("now", "text", "fatal"),
    [
        (SIZES, None, False),
        (["1,024 bytes (aa)", "2,050 bytes (bb)"], "shard 2 of 2 has 2,050 bytes, before 2,048 bytes", True),
        (["1,026 bytes (aa)", "2,050 bytes (bb)"], "shard 1 of 2 has 1,026 bytes, before 1,024 bytes, and 1 more", True),
        (["1,024 bytes (xx)", "2,048 bytes (bb)"], "shard 1 of 2 has other contents, of the same size", False),
        (SIZES[:1], "1 shard, before 2 shards", True),
        ("built-in", "built-in, before 2 shards", True),
        (["1,024 bytes", "2,048 bytes"], None, False),  # --wait-for-shards knows the sizes only
        (["1,024 bytes", "2,050 bytes"], "shard 2 of 2 has 2,050 bytes, before 2,048 bytes", True),
    ],
)
def test_what_differs_between_two_runs_data(now, text, fatal):
    before, after = {"training data": SIZES}, {"training data": now}
    assert differences(before, after) == ([f"training data: {text}"] if text else [])
    if fatal:
        with pytest.raises(UserError, match=r"must be those of the run that is resumed: .*\(--restart-data on\)"):
            check_training_data(before, after)
    else:
        check_training_data(before, after)
    check_training_data({"validation data": SIZES}, {"validation data": now})
    check_training_data({}, after)
    check_training_data({"training data": 7}, {"training data": 7})  # of a later version


def test_a_resumed_run_whose_shards_still_arrive_compares_their_sizes(tmp_path, capsys):
    rng = np.random.default_rng(5)

    def write(train_tokens):
        sizes = {"a_train_0.bin": train_tokens, "a_val_0.bin": 81}
        for name, tokens in sizes.items():
            write_shard(tmp_path / name, rng.integers(0, V, tokens))
        write_manifest(tmp_path / "a", [ListedShard(name, tokens, 1024 + 2 * tokens) for name, tokens in sizes.items()])

    write(401)
    flags = ["-i", tmp_path / "a_train_*.bin", "-j", tmp_path / "a_val_*.bin", "--wait-for-shards", "on", "-e", f"L=1,NH=1,C=8,V={V}"]
    flags += ["-b", 2, "-t", T, "-o", tmp_path / "log"]
    run(*flags, "-x", 2)
    run(*flags, "-x", 3, "-y", 1)
    write(402)
    run(*flags, "-x", 4, "-y", 1, code=2)
    assert "shard 1 of 1 has 1,828 bytes, before 1,826 bytes. Put the same files back" in capsys.readouterr().err
    run(*flags, "-x", 4, "-y", 1, "--restart-data", "on")


def test_a_digest_takes_little_memory(tmp_path, monkeypatch):
    """A shard is read in pieces: never more than SCANNED_TOGETHER tokens at a time."""
    monkeypatch.setattr(token_shards, "SCANNED_TOGETHER", 64)
    write_shard(tmp_path / "shard.bin", np.arange(1000) % V)
    shard, longest = Shard(tmp_path / "shard.bin"), []
    read = shard._read
    monkeypatch.setattr(shard, "_read", lambda file, start, stop: (longest.append(stop - start), read(file, start, stop))[1])
    shard.check(V)
    assert max(longest) == 64 and len(longest) == 16 and len(shard.sha256) == 64
