"""main.log, the step line and its throughput, against llm.c's formats and values worked out by hand."""

import math
import os
import shutil

import numpy as np
import pytest

from gpt2_numba.errors import UserError
from gpt2_numba.training.log import MainLog, Throughput, read_main_log, step_line


def test_lines_are_those_of_llmc(tmp_path):
    log = MainLog(tmp_path / "new" / "directory")
    log.write_validation(0, 10.98765)
    log.write_train_step(0, 11.133732, 8.57e-07, 52.9732)
    log.write_train_step(1, math.nan, 6e-4, math.inf)
    assert (tmp_path / "new" / "directory" / "main.log").read_text() == (
        "s:0 tel:10.9877\ns:0 trl:11.1337 lr:0.000001 norm:52.97\ns:1 trl:nan lr:0.000600 norm:inf\n"
    )


def test_each_line_is_on_disk_at_once(tmp_path):
    log = MainLog(tmp_path)
    log.write_validation(3, 1.5)
    assert log.path.read_text() == "s:3 tel:1.5000\n"


def test_a_new_run_keeps_the_log_of_an_earlier_one(tmp_path, capsys):
    for run in range(3):
        MainLog(tmp_path).write_validation(run, 9.0)
    logs = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert logs == {"main.1.log": "s:0 tel:9.0000\n", "main.2.log": "s:1 tel:9.0000\n", "main.log": "s:2 tel:9.0000\n"}
    assert capsys.readouterr().out == "".join(f"the log of an earlier run is now {tmp_path / f'main.{n}.log'}\n" for n in (1, 2))


def test_an_empty_log_and_one_that_is_continued_are_not_renamed(tmp_path, capsys):
    (tmp_path / "main.log").write_text("")
    MainLog(tmp_path).write_validation(0, 9.0)
    MainLog(tmp_path, append=True).write_validation(1, 8.0)
    assert [path.name for path in tmp_path.iterdir()] == ["main.log"] and capsys.readouterr().out == ""
    assert read_main_log(tmp_path / "main.log")["val_loss"][1].tolist() == [9.0, 8.0]


def test_half_a_line_is_not_continued(tmp_path, capsys):
    """Left by a full disk, in this run or in the one before."""
    log = MainLog(tmp_path)
    log.write_validation(0, 9.0)
    for step in (1, 2):
        with open(log.path, "a") as file:
            file.write(f"s:{step} tel:7.0")
        if step == 1:
            log = MainLog(tmp_path, append=True)
        log.write_train_step(step, 8.0, 1e-3, 1.0)
    assert log.path.read_text().splitlines() == [
        "s:0 tel:9.0000",
        "s:1 tel:7.0",
        "s:1 trl:8.0000 lr:0.001000 norm:1.00",
        "s:2 tel:7.0",
        "s:2 trl:8.0000 lr:0.001000 norm:1.00",
    ]


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = MainLog(None)
    log.write_validation(0, 1.0)
    log.write_train_step(0, 1.0, 1.0, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="-o"):
        MainLog(tmp_path / "file" / "log")


def test_series_are_sorted_by_step_and_the_later_of_two_lines_counts(tmp_path):
    path = tmp_path / "main.log"
    path.write_text(
        "s:0 tel:5.5000\n"
        "s:0 trl:5.4000 lr:0.000100 norm:2.00\n"
        "s:2 trl:5.2000 lr:0.000300 norm:-nan\n"
        "s:1 trl:9.9999 lr:0.000900 norm:9.00\n"
        "s:2 eval:0.2500\n"
        "s:1 trl:5.3000 lr:0.000200 norm:1.50\n"
    )
    series = read_main_log(path)
    expected = {
        "val_loss": ([0], [5.5]),
        "eval_accuracy": ([2], [0.25]),
        "train_loss": ([0, 1, 2], [5.4, 5.3, 5.2]),
        "learning_rate": ([0, 1, 2], [1e-4, 2e-4, 3e-4]),
        "norm": ([0, 1, 2], [2.0, 1.5, math.nan]),
    }
    assert series.keys() == expected.keys()
    for name, (steps, values) in expected.items():
        np.testing.assert_array_equal(series[name][0], steps)
        np.testing.assert_array_equal(series[name][1], values)


BAD_LINES = [
    "loss 3.0", "s:1 foo:2.0", "tel:3.0", "s:1.5 tel:3.0", "s:1 tel:three", "s:1:2", "s:1 te", f"s:{2**63} tel:3.0", "s:-1 tel:3.0",
    "s:" + 5000 * "1" + " tel:3.0", "s:1\0\0 tel:3.0", "s:1 tel:3.0 \udcff",
]  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_damaged_line_is_skipped_with_one_warning_that_names_the_first(tmp_path, capsys, line):
    path = tmp_path / "main.log"
    path.write_bytes(f"s:0 tel:5.5000\n\n{line}\ns:7 tel:4.5000\r\n{line}".encode(errors="surrogateescape"))
    series = read_main_log(path)
    assert [series["val_loss"][0].tolist(), series["val_loss"][1].tolist()] == [[0, 7], [5.5, 4.5]]
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: skipping 2 damaged lines of {path}, the first is '{line[:3]}")
    assert warning.endswith("in line 3\n") and warning.count("\n") == 1


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_file_without_any_line_of_a_log_is_a_users_mistake(tmp_path, capsys, line):
    path = tmp_path / "main.log"
    path.write_bytes(f"{line}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="in line 1 of"):
        read_main_log(path)
    assert capsys.readouterr().err == ""


def test_a_missing_log_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_main_log(tmp_path / "main.log")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs exist on Unix")
def test_a_log_that_is_no_regular_file_is_a_users_mistake(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # reading it would wait for ever
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            read_main_log(path)


def line_with(**changes):
    values = dict(
        step=0,
        max_steps=32000,
        loss=11.133732,
        loss_z=math.nan,
        norm=52.9732,
        norm_z=math.nan,
        learning_rate=8.57e-07,
        step_seconds=3.05636,
        mfu=0.426,
        tokens_per_second=343080.4,
        seconds_left=754,
    )
    return step_line(**{**values, **changes})


def test_step_line_is_that_of_llmc_plus_the_time_left():
    assert line_with() == (
        "step    1/32000 | loss 11.133732 (+nanz)| norm 52.9732 (+nanz)| lr 8.57e-07 | 3056.36 ms | "
        "42.6% bf16 MFU | 343080 tok/s | 12:34 left"
    )


@pytest.mark.parametrize(
    "changes, part",
    [
        (dict(step=31999), "step 32000/32000 |"),
        (dict(loss=3.25, loss_z=-0.126), "| loss 3.250000 (-0.13z)|"),
        (dict(norm=0.5, norm_z=2.0), "| norm 0.5000 (+2.00z)|"),
        (dict(mfu=None), "|   n/a MFU |"),
        (dict(seconds_left=0), "| 00:00 left"),
        (dict(seconds_left=59.6), "| 01:00 left"),
        (dict(seconds_left=3725), "| 1:02:05 left"),
    ],
)
def test_parts_of_the_step_line(changes, part):
    assert part in line_with(**changes)


def test_throughput_ignores_the_first_step_and_corrects_the_bias():
    throughput = Throughput(tokens_per_step=100)
    assert throughput.update(50.0) == 2.0  # compilation: shown, not averaged
    assert throughput.update(1.0) == pytest.approx(100.0)  # the average of one step is that step
    # Of the two steps, at 100 and 200 tok/s, the later one weighs 1, the earlier 0.95.
    assert throughput.update(0.5) == pytest.approx((0.95 * 100 + 200) / 1.95)


def test_time_left_assumes_the_throughput_shown():
    throughput = Throughput(tokens_per_step=100)
    throughput.update(4.0)
    assert throughput.seconds_left(3) == pytest.approx(12.0)
    throughput.update(2.0)
    assert throughput.seconds_left(3) == pytest.approx(6.0)


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path, capsys):
    log = MainLog(tmp_path / "log")
    log.write_validation(0, 5.0)
    shutil.rmtree(tmp_path / "log")
    log.write_train_step(0, 5.0, 1e-3, 1.0)
    log.write_train_step(1, 4.0, 1e-3, 1.0)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1 and str(tmp_path / "log" / "main.log") in warning
    (tmp_path / "log").mkdir()
    log.write_train_step(2, 3.0, 1e-3, 1.0)
    assert read_main_log(tmp_path / "log" / "main.log")["train_loss"][0].tolist() == [2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_in_place_of_main_log_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "main.log")
    with pytest.raises(UserError, match="main.log must be a file that can be written .*a pipe"):
        MainLog(tmp_path)
