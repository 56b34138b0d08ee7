"""run.jsonl: what a run writes, what is read back, resumptions, and damage."""

import json
import math
import shutil

import numpy as np
import pytest
from tiny_training import tiny_training

from gpt2_numba import train as trainer
from gpt2_numba.errors import UserError
from gpt2_numba.training.log import MainLog, read_main_log
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.run_log import RunLog, read_run_log
from gpt2_numba.training.settings import parse_settings

HEADER = {"tokens_per_step": 100, "max_steps": 10}


@pytest.fixture
def clock(monkeypatch):
    """The seconds that RunLog reads: clock[0]."""
    seconds = [0.0]
    monkeypatch.setattr("gpt2_numba.training.run_log.time.monotonic", lambda: seconds[0])
    return seconds


def write_steps(log, clock, steps, seconds_per_step=3600, loss=5.0):
    for step in steps:
        clock[0] += seconds_per_step
        log.write("step", step, loss=loss - step, learning_rate=0.001, norm=1.5, mfu=None)


def test_what_is_written_is_json_and_is_read_back(tmp_path, clock):
    log = RunLog(tmp_path, HEADER | {"commit": None}, 0)
    log.write("validation", 0, loss=5.0)
    log.write("step", 0, loss=np.float32(1 / 3), norm=math.inf, loss_z=math.nan, mfu=None, learning_rate=6e-4, ms=1.0)
    log.write("accuracy", 1, accuracy=0.25)
    log.write("statistics", 0, gradients={"fcw": {"rms": [0.5, math.inf]}})
    log.write("end", 1, ending="all steps are done", done=True)

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["run", "validation", "step", "accuracy", "statistics", "end"]
    assert lines[2]["loss"] == 0.333333343 and lines[2]["norm"] == "inf" and "mfu" not in lines[2]
    history = read_run_log(tmp_path)
    assert history.series["train_loss"][1].tolist() == [0.333333343] and history.series["norm"][1].tolist() == [math.inf]
    assert math.isnan(history.series["loss_z"][1][0]) and "mfu" not in history.series
    assert history.series["eval_accuracy"][0].tolist() == [1] and history.end["done"]
    assert history.statistics == [(0, {"gradients": {"fcw": {"rms": [0.5, "inf"]}}})]


def test_tokens_and_hours_of_a_run_that_is_resumed(tmp_path, clock):
    """Steps 2 and 3 are done twice: what the first run logged of them does not count, nor does the time between the two."""
    log = RunLog(tmp_path, HEADER, 0)
    write_steps(log, clock, range(4))
    log.write("validation", 2, loss=4.0)
    log.write("validation", 4, loss=3.0)
    log.write("end", 4, ending="killed", done=False)
    clock[0] += 1000
    log = RunLog(tmp_path, HEADER | {"tokens_per_step": 200}, 2)
    write_steps(log, clock, [2], 7200, loss=9.0)
    history = read_run_log(tmp_path)
    assert history.series["train_loss"][0].tolist() == [0, 1, 2] and history.series["train_loss"][1].tolist() == [5.0, 4.0, 7.0]
    assert history.series["val_loss"][0].tolist() == [2]  # of the model in the checkpoint
    assert history.series["hours"][1].tolist() == [1, 2, 4]
    assert history.series["tokens"][1].tolist() == [100, 200, 400]
    assert [header["step"] for header in history.headers] == [0, 2] and history.end is None


def test_main_log_is_cut_at_the_same_place(tmp_path):
    """Also if it goes on with other lines of later steps, as another program's: only what was there at the resumption is cut."""
    main, log = MainLog(tmp_path), RunLog(tmp_path, HEADER, 0)
    for step in range(5):
        main.write_train_step(step, 5.0, 0.001, 1.0)
    main.write_validation(2, 4.5)
    main.write_validation(5, 4.0)
    log = RunLog(tmp_path, HEADER, 2)
    main.write_train_step(2, 3.0, 0.001, 1.0)
    main.write_train_step(7, 2.0, 0.001, 1.0)
    series = read_main_log(tmp_path / "main.log", read_run_log(tmp_path).resumptions)
    assert [values.tolist() for values in series["train_loss"]] == [[0, 1, 2, 7], [5.0, 5.0, 3.0, 2.0]]
    assert series["val_loss"][0].tolist() == [2]
    assert log is not None


def test_half_a_line_is_not_continued(tmp_path, clock, capsys):
    log = RunLog(tmp_path, HEADER, 0)
    write_steps(log, clock, [0])
    with open(tmp_path / "run.jsonl", "a") as file:
        file.write('{"kind": "step", "st')
    write_steps(RunLog(tmp_path, HEADER, 1), clock, [1])
    assert read_run_log(tmp_path).series["train_loss"][0].tolist() == [0, 1]
    assert capsys.readouterr().err == f"warning: skipping 1 damaged line of {tmp_path / 'run.jsonl'}\n"


@pytest.mark.parametrize("line", [
    "\0\0\0\0", "[]", "3", "{}", '{"kind": "step"}', '{"kind": "step", "step": -1, "seconds": 0}', '{"kind": "step", "step": 1.5, "seconds": 0}',
    '{"kind": "step", "step": true, "seconds": 0}', f'{{"kind": "step", "step": {2**63}, "seconds": 0}}', "[" * 100_000,
    '{"kind": "step", "step": 3, "seconds": 1, "loss": "much"}', '{"kind": "step", "step": 3, "seconds": 1, "loss": []}',
    '{"kind": "statistics", "step": 3, "seconds": 1, "gradients": 4}', '{"kind": "run", "step": 0, "seconds": 0, "format": 2}',
    '{"kind": "run", "step": 0, "seconds": 0, "format": 1}', "\udcff", '{"kind": []}', "1" * 5000,
])  # fmt: skip
def test_a_damaged_line_is_skipped_with_one_warning(tmp_path, clock, capsys, line):
    log = RunLog(tmp_path, HEADER, 0)
    write_steps(log, clock, [0])
    with open(tmp_path / "run.jsonl", "ab") as file:
        file.write(f"{line}\n{line}\n".encode(errors="surrogateescape"))
    write_steps(log, clock, [1])
    history = read_run_log(tmp_path)
    assert history.series["train_loss"][0].tolist() == [0, 1] and history.series["hours"][1].tolist() == [1, 2]
    assert capsys.readouterr().err == f"warning: skipping 2 damaged lines of {tmp_path / 'run.jsonl'}\n"


def test_without_a_run_log_there_is_no_history(tmp_path):
    assert read_run_log(tmp_path) is None
    (tmp_path / "run.jsonl").mkdir()
    with pytest.raises(UserError, match="a directory, not a regular file"):
        read_run_log(tmp_path)


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path, clock, capsys):
    log = RunLog(tmp_path / "log", HEADER, 0)
    shutil.rmtree(tmp_path / "log")
    write_steps(log, clock, [0, 1])
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1


def test_both_logs_of_an_earlier_run_are_kept_under_one_number(tmp_path, capsys):
    (tmp_path / "main.1.log").write_text("of a run before run.jsonl existed")
    for run in range(2):
        MainLog(tmp_path).write_validation(run, 9.0)
        RunLog(tmp_path, HEADER, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.1.log", "main.2.log", "main.log", "run.2.jsonl", "run.jsonl"]
    assert capsys.readouterr().out == f"the log of an earlier run is now {tmp_path / 'main.2.log'}\n"


# ------------------------------------------------------------------------------------------------------ of a training


@pytest.fixture
def flags(tmp_path):
    return tiny_training(tmp_path)


def train(flags, *more):
    trainer.train(choose_machine(parse_settings([*flags, *more])))


def test_a_training_and_its_continuation(flags, tmp_path):
    train(flags, "-x", "4", "-v", "2")
    train(flags, "-x", "6", "-v", "2", "-y", "1")
    history, main = read_run_log(tmp_path / "log"), read_main_log(tmp_path / "log" / "main.log")
    assert [(header["step"], header["max_steps"]) for header in history.headers] == [(0, 4), (4, 6)]
    header = history.headers[0]
    assert header["tokens_per_step"] == 8 and header["model"]["parameters"] > 0 and header["settings"]["learning_rate"] == 3e-4
    assert header["machine"]["CPU cores"] and "version of numpy" in header["versions"]
    assert history.series["tokens"][1].tolist() == [8, 16, 24, 32, 40, 48]
    assert (np.diff(history.series["hours"][1]) > 0).all()
    for name in ("train_loss", "val_loss"):
        assert history.series[name][0].tolist() == main[name][0].tolist()
        np.testing.assert_allclose(history.series[name][1], main[name][1], atol=6e-5)  # main.log has four decimals
    assert (history.series["ms"][1] > 0).all() and (history.series["tokens_per_second"][1] > 0).all()
    assert history.end["done"] and history.end["step"] == 6


def test_a_training_that_ends_otherwise_says_how(flags, tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("the questions are gone")

    monkeypatch.setattr(trainer, "validate", fails)
    with pytest.raises(UserError):
        train(flags, "-x", "2", "-v", "1")
    end = read_run_log(tmp_path / "log").end
    assert end["ending"] == "UserError: the questions are gone" and not end["done"]


def test_without_a_log_directory_there_is_none(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    train(flags[:-2], "-x", "1", "-v", "0")
    assert sorted(tmp_path.iterdir()) == before
