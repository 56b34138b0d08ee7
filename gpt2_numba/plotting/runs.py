"""The logs of a run, ours or llm.c's, as series that can be drawn over steps, tokens or hours."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.training.log import MAIN_LOG, RUN_LOG, read_main_log
from gpt2_numba.training.run_log import RunHistory, read_run_log

AXES = ("steps", "tokens", "hours")


@dataclass(frozen=True)
class Run:
    """A run that may still be going on.

    name     of its directory, unique among the runs of a plot
    series   name -> (steps (n,) int64, ascending; values (n,) float64), as in run.jsonl; NaN for what cannot be drawn
    history  a RunHistory; None without run.jsonl
    """

    name: str
    directory: Path
    series: dict
    history: RunHistory | None

    @property
    def header(self):
        """What run.jsonl said when the run was last started or resumed; empty without it."""
        return self.history.headers[-1] if self.history and self.history.headers else {}

    @property
    def ended(self):
        """How the run ended, as text; None while it goes on, or if it was killed."""
        return self.history.end.get("ending") if self.history and self.history.end else None

    @property
    def done(self):
        """Whether the run has done all its steps, as far as run.jsonl says; one that was stopped may be resumed."""
        return bool(self.history and self.history.end and self.history.end.get("done"))

    def get(self, name):
        """A series; empty if there is none."""
        return self.series.get(name, (np.array([], np.int64), np.array([])))

    def along(self, name, axis):
        """(x (n,) float64 or int64, values (n,)) of a series on one of AXES.

        A loss at step s is the model's after s updates, so it is drawn where s steps have taken it.
        """
        steps, values = self.get(name)
        return self.reached(steps, axis), values

    def reached(self, steps, axis):
        """Steps, tokens or hours after that many steps; NaN where not known."""
        if axis == "steps":
            return steps
        known_steps, reached = self.get(axis)
        first = self.history.headers[0]["step"] if self.history and self.history.headers else 0
        if not len(known_steps):
            return np.where(steps == first, 0.0, np.nan)
        start = (0, 0.0) if axis == "tokens" else (first, 0.0)  # tokens before the first entry grow as they do in it
        knots = np.concatenate([[start[0]], known_steps + 1]), np.concatenate([[start[1]], reached])
        return np.interp(steps, *knots, left=np.nan)

    def last(self, name):
        """The last value of a series, or None."""
        _, values = self.get(name)
        return float(values[-1]) if len(values) else None

    @property
    def steps_done(self):
        """Training steps that are logged."""
        steps, _ = self.get("train_loss")
        return int(steps[-1]) + 1 if len(steps) else 0


def read_run(directory, name=None, warn=True):
    """The Run in a log directory. What run.jsonl has more precisely than main.log is taken from there.

    warn  print a warning about damaged lines
    Raises UserError if there is no log, or it cannot be read.
    """
    directory = Path(directory)
    history = read_run_log(directory, warn)
    series = {}
    if history is None or not history.series or (directory / MAIN_LOG).exists():
        resumptions = history.resumptions if history else ()
        series = read_main_log(directory / MAIN_LOG, resumptions, warn)
    for key, (steps, values) in (history.series if history else {}).items():
        coarse_steps, coarse_values = series.get(key, (np.array([]), np.array([])))
        merged = dict(zip(coarse_steps.tolist(), coarse_values.tolist())) | dict(zip(steps.tolist(), values.tolist()))
        steps = sorted(merged)
        series[key] = np.array(steps, np.int64), np.array([merged[step] for step in steps], np.float64)
    series = {key: (steps, _with_gaps(values)) for key, (steps, values) in series.items()}
    return Run(name or directory.resolve().name, directory, series, history)


def read_runs(directories, warn=True):
    """The Runs of several directories, with as much of their paths as it takes to tell them apart."""
    paths = [Path(directory).resolve() for directory in directories]
    depth = 1
    while len({_tail(path, depth) for path in paths}) < len(set(paths)) and depth < max(len(path.parts) for path in paths):
        depth += 1
    return [read_run(directory, _tail(path, depth), warn) for directory, path in zip(directories, paths)]


def _tail(path, parts):
    return "/".join(path.parts[-parts:])


def _with_gaps(values):
    """The values (n,) float64, with NaN, which matplotlib leaves out, for all that it cannot draw."""
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


def check_axis(runs, axis):
    """Raise UserError if a run's logs do not say how many tokens or hours its steps took."""
    for run in runs:
        if axis != "steps" and not len(run.get(axis)[0]):
            raise UserError(
                f"--x {axis} needs the {RUN_LOG} of every run, and {run.directory} has none with a training step: take --x steps"
            )
