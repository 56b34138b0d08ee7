"""Plot one or several runs: losses, HellaSwag, learning rate, gradient norm, z-scores, speed, MFU, and every layer's statistics.

    python -m gpt2_numba.plot LOGDIR ...                    a picture, LOGDIR/loss.png, or runs.png of several runs
    python -m gpt2_numba.plot LOGDIR ... --html runs.html   a page, with each run's settings and machine
    python -m gpt2_numba.plot LOGDIR --layers layers.png    gradients and activations of every layer (train --stats-every N)

Reads LOGDIR/main.log, ours or llm.c's, and LOGDIR/run.jsonl beside it, which only our runs have.
"""

import math
import time
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.errors import UserError
from gpt2_numba.plotting.curves import Style, matplotlib_alone, overview, save_figure, write_whole
from gpt2_numba.plotting.layers import STATISTICS, layers_figure
from gpt2_numba.plotting.page import page
from gpt2_numba.plotting.published import CHOICES, published_lines
from gpt2_numba.plotting.runs import AXES, check_axis, read_run, read_runs
from gpt2_numba.training.log import MAIN_LOG, RUN_LOG

WATCH_SECONDS = 10  # between two looks at the logs
DEFAULT_PANELS = ("loss", "rate", "norm")  # of the picture that every run draws at its end


def plot_losses(log_path, png_path, title):
    """Plot the main.log at log_path, and the run.jsonl beside it, to a PNG at png_path (1650 x 825 pixels), with `title` at the top.

    Needs no display. Values that are not finite, or too large for a float32, are gaps. Raises UserError if the log cannot be read or holds
    no finite loss, or if the PNG cannot be written.
    """
    run = read_run(Path(log_path).parent)
    _check_losses([run])
    style = Style(published=published_lines([run]))
    with matplotlib_alone():
        save_figure(overview([run], title, style, DEFAULT_PANELS), png_path)


def _check_losses(runs):
    for run in runs:
        values = np.concatenate([run.get(name)[1] for name in ("train_loss", "val_loss")])
        if np.isnan(values).all():
            raise UserError(
                f"a plot needs at least one finite loss, got none in {str(run.directory / MAIN_LOG)!r}: plot again when the run has done a step"
            )


def draw(arguments, runs, reload_seconds=None):
    """Write what the command line asks for. Returns the paths written."""
    _check_losses(runs)
    check_axis(runs, arguments.x)
    style = Style(arguments.x, arguments.smooth, arguments.top, published_lines(runs, arguments.baseline))
    title = " · ".join(run.name for run in runs)
    written = []
    picture = arguments.out
    if not (picture or arguments.html or arguments.layers):
        picture = runs[0].directory / "loss.png" if len(runs) == 1 else Path("runs.png")
    if picture:
        with matplotlib_alone():
            save_figure(overview(runs, title, style), picture)
        written.append(picture)
    if arguments.layers:
        for run, path in zip(runs, _paths_by_run(arguments.layers, runs)):
            with matplotlib_alone():
                save_figure(layers_figure(run, arguments.x, arguments.statistic, title=run.name), path)
            written.append(path)
    if arguments.html:
        write_whole(arguments.html, page(runs, title, style, reload_seconds).encode("utf-8", errors="replace"))
        written.append(arguments.html)
    return written


def _paths_by_run(path, runs):
    """FILE for one run; FILE_1, FILE_2, ... for several."""
    if len(runs) == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, len(runs) + 1)]


# ------------------------------------------------------------------------------------------------- the command line


def run(argv):
    """Draw what the command line asks for."""
    arguments = _parse(argv)
    if arguments.watch:
        return watch(arguments)
    for path in draw(arguments, read_runs(arguments.logdirs)):
        print(f"wrote {path}")


def _parse(argv):
    parser = Parser(prog="python -m gpt2_numba.plot", doc=__doc__)
    parser.add_argument("logdirs", metavar="LOGDIR", type=user_path, nargs="+", help="the log directory of a run (its -o)")
    parser.add_argument(
        "--out", metavar="FILE", type=_picture, help="the picture, PNG or SVG (default LOGDIR/loss.png, or runs.png of several)"
    )
    parser.add_argument("--html", metavar="FILE", type=user_path, help="a page with everything, for a browser, in one file")
    parser.add_argument("--layers", metavar="FILE", type=_picture, help="statistics of every layer, PNG or SVG, of runs with --stats-every")
    parser.add_argument(
        "--statistic", choices=list(STATISTICS), help="what --layers shows (default rms of gradients, largest of activations)"
    )
    parser.add_argument("--x", choices=AXES, default="steps", help="the horizontal axis (default steps)")
    parser.add_argument("--smooth", metavar="N", type=_positive, help="running mean over N steps; 1 = none (default 1/50 of the run)")
    parser.add_argument("--top", metavar="LOSS", type=_number, help="the largest loss shown (default: chosen)")
    parser.add_argument(
        "--baseline", choices=CHOICES, default="auto",
        help="the size of GPT-2 and GPT-3 to compare with (default auto: the nearest, where model and data allow it)",
    )  # fmt: skip
    parser.add_argument(
        "--watch", metavar="SECONDS", type=_positive, nargs="?", const=WATCH_SECONDS,
        help=f"draw again whenever a log has grown, every SECONDS ({WATCH_SECONDS}) at most, until all runs are done or Ctrl-C",
    )  # fmt: skip
    return parser.parse_args(argv)


def _picture(text):
    path = user_path(text)
    if path.suffix.lower() not in (".png", ".svg"):
        raise ArgumentTypeError(f"a picture ends in .png or .svg, got {text!r}; --html writes a page")
    return path


def _positive(text):
    if not text.isdecimal() or not 1 <= int(text[:10]) <= 10**9:
        raise ArgumentTypeError(f"a whole number of at least 1 is needed, got {text[:40]!r}")
    return int(text[:10])


def _number(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"a finite number is needed, got {text[:40]!r}")
    return value


def watch(arguments):
    """Draw again whenever a log has grown, until all runs have done their steps: one that was stopped may be resumed."""
    before, first = None, True
    while True:
        now = [_size(directory / name) for directory in arguments.logdirs for name in (MAIN_LOG, RUN_LOG)]
        if now != before:
            before = now
            try:
                runs = read_runs(arguments.logdirs, warn=first)
                done = all(run.done for run in runs)
                written = draw(arguments, runs, None if done else arguments.watch)
            except UserError as error:
                if not first and not any(now):
                    raise
                print(f"waiting: {error}", flush=True)
            else:
                steps = ", ".join(f"{run.name}: {run.steps_done} steps" for run in runs)
                print(f"wrote {', '.join(map(str, written))} ({steps})", flush=True)
                if done:
                    return
                first = False
        time.sleep(arguments.watch)


def _size(path):
    try:
        return path.stat().st_size
    except OSError:
        return 0


def main(argv):
    """Run the command line. Returns the exit code: 0, or 2 for a mistake of the user's, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
