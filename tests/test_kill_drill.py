"""The drill of killing and resuming, on a small scale, and that it detects unequal bits."""

import numpy as np
import pytest

from dev import kill_drill
from gpt2_numba.training.checkpoint import done_file_name, model_file_name, state_file_name


def test_two_kills(capsys):
    assert kill_drill.main(["--kills", "2", "--", "-x", "60"]) == 0
    printed = capsys.readouterr().out
    assert "undisturbed: 60 steps" in printed and "kill   1: after" in printed and "kill   2: after" in printed
    assert printed.endswith("all bits are equal\nequal bits after 2 kills\n")


def test_a_failed_training_is_reported(capsys):
    assert kill_drill.main(["--kills", "1", "--", "-b", "0"]) == 1
    assert "code 2" in (printed := capsys.readouterr().out) and "at least 1, or auto, got" in printed


@pytest.fixture
def trainings(monkeypatch):
    """Fake trainings that write their last checkpoint at once and are never killed; returns their parameters, which can be changed."""
    contents = {"undisturbed": b"12345678", "killed_1": b"12345678"}

    def run_training(command, output, *_):
        directory = output.parent / command[command.index("-o") + 1]
        directory.mkdir(exist_ok=True)
        for name in (state_file_name(20, 0), done_file_name(20)):
            (directory / name).write_bytes(bytes(16))
        (directory / model_file_name(20)).write_bytes(contents[directory.name])
        output.write_text("step   20/20 |\n")
        return False, 2.0, 1.0

    monkeypatch.setattr(kill_drill, "run_training", run_training)
    return contents


@pytest.mark.parametrize(("killed", "code", "words"), [
    (b"12345678", 0, "\nequal bits after 0 kills"),
    (b"12x456y8", 1, "model_00000020.bin: 2 of 8 bytes differ, the first at 2\nUNEQUAL"),
    (b"1234", 1, "model_00000020.bin: 8 bytes undisturbed, 4 killed\nUNEQUAL"),
])  # fmt: skip
def test_verdict(trainings, capsys, killed, code, words):
    trainings["killed_1"] = killed
    assert kill_drill.main(["--kills", "0"]) == code
    assert words in capsys.readouterr().out


def test_files_on_one_side_only_are_differences():
    assert kill_drill.differences({"a": b"1"}, {"a": b"1"}) == []
    assert kill_drill.differences({"a": b"1", "b": b"2"}, {"a": b"1", "c": b"2"}) == [
        "b: only in the undisturbed training",
        "c: only in the killed training",
    ]


def test_data_fit_the_flags(tmp_path):
    """An epoch consists of 14 micro-batches from two shards."""
    kill_drill.write_data(tmp_path)
    sizes = [(path.stat().st_size - 1024) // 2 for path in sorted(tmp_path.glob("train_*.bin"))]
    assert np.array_equal(sizes, [6 * 64 + 1, 8 * 64 + 1])
