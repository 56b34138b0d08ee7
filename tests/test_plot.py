"""The plot of a run: it is drawn for every log that a run can write, and mistakes are reported in one line."""

import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt2_numba.errors import UserError
from gpt2_numba.plot import main, plot_losses
from gpt2_numba.training.log import MainLog

ROOT = Path(__file__).resolve().parents[1]


def write_log(directory, steps, losses=None):
    """The log of a run with `steps` steps: a validation before and after, training losses in between."""
    log = MainLog(directory)
    log.write_validation(0, 5.5)
    for step in range(steps):
        log.write_train_step(step, losses[step] if losses else 5.0 - 0.01 * step, 1e-3, 1.0 + step % 3)
    log.write_validation(steps, 3.25)
    return log.path


@pytest.fixture
def drawn(monkeypatch):
    """The lines drawn, as (x, y, label), in order: training loss first."""
    lines = []
    plot = Axes.plot

    def spy(axes, x, y, **style):
        lines.append((np.asarray(x), np.asarray(y), style.get("label")))
        return plot(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", spy)
    return lines


def test_a_short_run_shows_every_step_and_the_last_validation(tmp_path, drawn):
    plot_losses(write_log(tmp_path, steps=3), tmp_path / "loss.png", "three steps")
    (train_x, train_y, train_label), (val_x, val_y, val_label), (_, rates, _), (_, norms, _) = drawn
    assert (train_label, val_label) == ("training", "validation (last 3.2500)")
    np.testing.assert_array_equal(train_x, [0, 1, 2])
    np.testing.assert_array_equal(train_y, [5.0, 4.99, 4.98])
    np.testing.assert_array_equal(val_x, [0, 3])
    np.testing.assert_array_equal(val_y, [5.5, 3.25])
    np.testing.assert_array_equal(rates, [1e-3] * 3)
    np.testing.assert_array_equal(norms, [1.0, 2.0, 3.0])


def test_a_long_run_also_shows_a_running_mean_that_does_not_lag(tmp_path, drawn):
    plot_losses(write_log(tmp_path, steps=130), tmp_path / "loss.png", "130 steps")
    (raw_x, raw_y, _), (mean_x, mean_y, label) = drawn[:2]
    assert len(raw_x) == 130 and label == "training (mean of 3 steps)"
    np.testing.assert_array_equal(mean_x, raw_x[1:-1])
    # The losses are on a straight line, so a centred mean is too, up to a few float64 roundings.
    np.testing.assert_allclose(mean_y, raw_y[1:-1], rtol=1e-14)


def test_the_plot_is_a_png_of_the_documented_size(tmp_path):
    plot_losses(write_log(tmp_path, steps=2), tmp_path / "loss.png", "two steps")
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (1650, 825)  # width and height in the header chunk


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "lines",
    [
        "s:0 tel:5.5000\n",
        "s:0 trl:5.5000 lr:0.000000 norm:1.00\n",
        "s:0 trl:5.5000 lr:0.000100 norm:1.00\ns:1 trl:nan lr:0.000100 norm:nan\n",
        "s:0 trl:5.5000 lr:0.000100 norm:inf\n",
        "s:0 trl:5.5000 lr:0.000100 norm:1e308\ns:1 trl:1e308 lr:1e308 norm:-1e308\ns:1 tel:-1e308\n",
        f"s:{2**63 - 1} trl:5.5000 lr:0.000100 norm:1.00\n",
        f"s:0 tel:5.5000\ns:{2**63 - 1} tel:5.5000\n",
    ],
    ids=["validation only", "one step", "diverged", "infinite norm", "huge", "the last possible step", "a very long run"],
)
def test_logs_with_little_data_are_drawn(tmp_path, lines):
    (tmp_path / "main.log").write_text(lines)
    plot_losses(tmp_path / "main.log", tmp_path / "loss.png", "little")
    assert (tmp_path / "loss.png").stat().st_size > 0


def test_what_is_not_finite_is_a_gap_also_in_the_running_mean(tmp_path, drawn):
    losses = [5.0] * 130
    losses[60:63] = math.nan, math.inf, 1e308
    plot_losses(write_log(tmp_path, steps=130, losses=losses), tmp_path / "loss.png", "gaps")
    (_, raw, _), (_, means, _) = drawn[:2]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(raw)), [60, 61, 62])
    np.testing.assert_array_equal(
        np.flatnonzero(np.isnan(means)), [58, 59, 60, 61, 62]
    )  # windows of 3, the first of which is around step 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("title", ["$\\foo$", "$", "a\nb\0c", "\udc80", "中" * 300, "x" * 5000])
def test_a_title_may_be_any_name_of_a_directory(tmp_path, title):
    plot_losses(write_log(tmp_path, steps=2), tmp_path / "loss.png", title)


def test_a_dollar_in_the_title_begins_no_formula(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: titles.append(figure._suptitle))
    plot_losses(write_log(tmp_path, steps=2), tmp_path / "loss.png", "$x$")
    assert titles[0].get_text() == "$x$" and not titles[0].get_parse_math()


@pytest.mark.parametrize("lines", ["", f"s:0 trl:{math.nan} lr:0.000100 norm:1.00\n", "s:0 eval:0.2500\n"])
def test_a_log_without_losses_is_a_users_mistake(tmp_path, lines):
    (tmp_path / "main.log").write_text(lines)
    with pytest.raises(UserError, match="at least one finite loss"):
        plot_losses(tmp_path / "main.log", tmp_path / "loss.png", "nothing")


def test_the_users_backend_does_not_matter(tmp_path):
    """A notebook sets one for the programs that it starts, too."""
    write_log(tmp_path, steps=2)
    command = [sys.executable, "-m", "gpt2_numba.plot", str(tmp_path)]
    drawn = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}, capture_output=True, text=True
    )
    assert (drawn.returncode, drawn.stderr) == (0, "") and (tmp_path / "loss.png").exists()


def test_command_line_writes_next_to_the_log_or_to_out(tmp_path, capsys):
    write_log(tmp_path, steps=2)
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--out", str(tmp_path / "other.png")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'loss.png'}\nwrote {tmp_path / 'other.png'}\n"
    assert (tmp_path / "loss.png").exists() and (tmp_path / "other.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "LOGDIR"),
        (["absent"], "No such file"),
        (["log", "--uot", "x.png"], "--uot"),
        (["log", "--out", "absent/x.png"], "choose another"),
    ],
)
def test_mistakes_on_the_command_line_give_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_log("log", steps=2)
    assert main(arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and message in complaint and complaint.count("\n") == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks")
def test_ctrl_c_waits_while_matplotlib_is_loaded():
    """Interrupted in the middle, its extension modules end the process with a fatal error when it exits, a training's, too."""
    program = (
        "import signal, sys\n"
        "masked = lambda: signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "class Finder:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name in ('matplotlib.ft2font', 'matplotlib.backends._backend_agg'): print(name, masked())\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from gpt2_numba.plotting.curves import matplotlib_alone\n"
        "with matplotlib_alone(): print('drawing', masked())\n"
    )
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.split("\n")
    assert sorted(printed[:-1]) == ["drawing False", "matplotlib.backends._backend_agg True", "matplotlib.ft2font True"]
