"""Results of steps: each is reported once and in order, one step late on a device that overlaps; outliers are detected on demand."""

from types import SimpleNamespace

import pytest

from gpt2_numba.gpu.moment import HostMoment
from gpt2_numba.training.log import MainLog, read_main_log
from gpt2_numba.training.resume import RunState
from gpt2_numba.training.step_reports import StepReports, StepResult

WINDOW = 128


def result(step, loss, norm, run_state, waited=None):
    def wait():
        if waited is not None:
            waited.append(step)
        return loss, norm, False

    return StepResult(step, 1e-3, SimpleNamespace(wait=wait), run_state)


def state_with_windows(losses, norms):
    run_state = RunState()
    run_state.loss_outliers.load(losses)
    run_state.norm_outliers.load(norms)
    return run_state


USUAL = [4.0, 5.0] * (WINDOW // 2)  # mean 4.5, deviation 0.5


@pytest.mark.parametrize("loss, norm, loss_threshold, norm_threshold, expected", [
    (6.5, 4.5, 3.0, 0, True), (5.5, 4.5, 3.0, 0, False), (4.5, 6.5, 0, 3.0, True), (6.5, 4.5, 0, 3.0, False), (6.5, 4.5, 3.0, 99.0, True),
])  # fmt: skip
def test_an_outlier_is_above_its_threshold(loss, norm, loss_threshold, norm_threshold, expected):
    assert result(0, loss, norm, state_with_windows(USUAL, USUAL)).is_outlier(loss_threshold, norm_threshold) is expected


@pytest.mark.parametrize("loss, norm", [(2.5, 4.5), (4.5, 2.5), (-99.0, -99.0)])
def test_a_value_far_below_the_mean_is_no_outlier(loss, norm):
    one = result(0, loss, norm, state_with_windows(USUAL, USUAL))
    _, loss_z, _, norm_z = one.values()
    assert min(loss_z, norm_z) < -3.0
    assert not one.is_outlier(3.0, 3.0)


def test_nothing_is_an_outlier_while_the_window_fills():
    assert not result(0, 99.0, 99.0, state_with_windows(USUAL[1:-1], USUAL[1:-1])).is_outlier(1.0, 1.0)


def test_without_thresholds_the_gpu_is_not_waited_for():
    waited = []
    assert not result(0, 99.0, 99.0, state_with_windows(USUAL, USUAL), waited).is_outlier(0, 0)
    assert waited == []


def test_values_enter_the_windows_once():
    run_state = RunState()
    one = result(0, 4.0, 2.0, run_state)
    assert [one.values(), one.is_outlier(3.0, 3.0), one.values()][0][:3:2] == (4.0, 2.0)
    assert run_state.loss_outliers.values() == [4.0] and run_state.norm_outliers.values() == [2.0]


@pytest.mark.parametrize("overlap, waited_after_each", [(True, [[], [0], [0, 1]]), (False, [[0], [0, 1], [0, 1, 2]])])
def test_each_step_is_reported_once_and_in_order(tmp_path, capsys, overlap, waited_after_each):
    run_state, waited = RunState(), []
    reports = StepReports(3, 100, MainLog(tmp_path), overlap, peak_tokens_per_second=1e12)
    for step, expected in enumerate(waited_after_each):
        reports.begin(HostMoment())
        reports.add(result(step, 4.0 - step, 2.0 + step, run_state, waited), HostMoment())
        assert waited == expected
    reports.finish()
    reports.finish()  # nothing left to report
    assert waited == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[0].split() for line in lines] == [["step", f"{step}/3"] for step in (1, 2, 3)]
    series = read_main_log(tmp_path / "main.log")
    assert list(series["train_loss"][1]) == [4.0, 3.0, 2.0] and list(series["norm"][1]) == [2.0, 3.0, 4.0]


def test_a_step_is_timed_from_the_end_of_the_one_before(tmp_path, capsys, monkeypatch):
    now = iter([10.0, 13.0, 13.5, 14.0, 100.0, 102.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    run_state, reports = RunState(), StepReports(4, 100, MainLog(tmp_path), True)
    for step in range(2):
        reports.begin(HostMoment())  # 10; 13.5 is ignored, since the first step is not yet reported
        reports.add(result(step, 4.0, 2.0, run_state), HostMoment())  # 13, 14
    reports.finish()
    reports.begin(HostMoment())  # 100: the pause counts for no step
    reports.add(result(2, 4.0, 2.0, run_state), HostMoment())  # 102
    reports.finish()
    milliseconds = [float(line.split("|")[4].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert milliseconds == [3000.0, 1000.0, 2000.0]
