"""run.jsonl, beside main.log: what that has no place for. One JSON object a line, each with its `kind`, `step` and `seconds` since the start:

    {"kind": "run", ...}            when a run starts or is resumed: settings, model, machine, versions (run_header.py)
    {"kind": "step", ...}           a training step: loss, learning rate, norm, z-scores, ms, tokens/s, MFU, now and then memory
    {"kind": "validation", ...}     its loss            {"kind": "accuracy", ...}     of an evaluation
    {"kind": "shard", ...}          a shard of the data has been read as a whole: its digest (shard_log.py)
    {"kind": "statistics", ...}     gradients and activations of every layer (layer_statistics.py)
    {"kind": "end", ...}            how the run ended; a killed one has none

Steps count from 0, losses are in nats per token. JSON has no infinity and no NaN: they are the strings "inf", "-inf" and "nan". A value that
is not known is left out. What a resumed run does again counts once: `step` of a "run" cuts what was logged of later steps.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError
from gpt2_numba.training.log import MAIN_LOG, RUN_LOG, LogFile, cut_resumed

FORMAT = 1  # a reader refuses a larger one
DIGITS = 9  # significant digits of what is logged: as many as tell any two float32 apart
# What is logged of a step, and how its series is called.
SERIES = {
    "step": ("loss", "learning_rate", "norm", "loss_z", "norm_z", "ms", "tokens_per_second", "mfu", "host_bytes", "gpu_bytes"),
    "validation": ("loss",),
    "accuracy": ("accuracy",),
}
SERIES_NAMES = {
    ("step", "loss"): "train_loss", ("validation", "loss"): "val_loss", ("accuracy", "accuracy"): "eval_accuracy",
}  # fmt: skip


class RunLog:
    """Writes DIRECTORY/run.jsonl."""

    def __init__(self, directory, header, first_step):
        """Begin the log of a run, or of its continuation, after MainLog has begun.

        header      dict of JSON's types (run_header.py)
        first_step  steps already done
        Raises UserError if it cannot be written.
        """
        directory = Path(directory)
        self._file, self._start = LogFile(directory / RUN_LOG), time.monotonic()
        main_log = directory / MAIN_LOG
        length = main_log.stat().st_size if main_log.exists() else 0
        self.write("run", first_step, format=FORMAT, time=time.strftime("%Y-%m-%d %H:%M:%S %z"), main_log_bytes=length, **header)

    def write(self, kind, step, **values):
        """Append an object; a value of None is left out."""
        seconds = round(time.monotonic() - self._start, 3)
        line = {"kind": kind, "step": step, "seconds": seconds} | {name: value for name, value in values.items() if value is not None}
        self._file.append(json.dumps(_jsonable(line), allow_nan=False))


def _jsonable(value):
    """The value with floats rounded, and those that are not finite as strings."""
    if isinstance(value, dict):
        return {str(name): _jsonable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(float(value))
    return int(value) if isinstance(value, np.integer) else value


class RunHistory:
    """What run.jsonl tells of a run, resumptions included.

    headers      the "run" objects, oldest first
    series       name -> (steps (n,) int64, ascending; values (n,) float64): see SERIES; also "hours", of training until the end of a step,
                 and "tokens", seen until then
    statistics   [(step, {"gradients": ..., "activations": ...})], ascending
    end          the "end" object, if the last continuation has one
    """

    def __init__(self, objects):
        """objects: the parsed lines, in order. Those that are no such object are skipped; `bad` is their number."""
        self.headers, self.end = [], None
        self._points, self._statistics = {}, {}
        self._base = {}  # of the current continuation: its first step, and the seconds and tokens before it
        self.bad = 0
        for line in objects:
            try:
                self._add(line)
            except (KeyError, TypeError, ValueError, OverflowError):
                self.bad += 1
        self.series = {name: _as_series(points) for name, points in self._points.items()}
        self.statistics = sorted(self._statistics.items())

    def _add(self, line):
        kind, step, seconds = line["kind"], _step(line["step"]), float(line["seconds"])
        if kind == "run":
            if line["format"] > FORMAT:
                raise ValueError("a later format")
            tokens_per_step = int(line["tokens_per_step"])
            cut_resumed(self._points | {"statistics": self._statistics}, step)
            self._base = {
                "step": step, "hours": self._last("hours"), "tokens": self._last("tokens"), "tokens_per_step": tokens_per_step,
            }  # fmt: skip
            if step and not self.headers:  # an earlier program has done these
                self._base["tokens"] = step * tokens_per_step
            self.headers.append(line)
            self.end = None
        elif kind in SERIES:
            values = {name: float(line[name]) for name in SERIES[kind] if name in line}
            for name, value in values.items():
                self._points.setdefault(SERIES_NAMES.get((kind, name), name), {})[step] = value
            if kind == "step" and self._base:
                base = self._base
                self._points.setdefault("hours", {})[step] = base["hours"] + seconds / 3600
                self._points.setdefault("tokens", {})[step] = base["tokens"] + (step + 1 - base["step"]) * base["tokens_per_step"]
        elif kind == "statistics":
            self._statistics[step] = {name: dict(line[name]) for name in ("gradients", "activations") if name in line}
        elif kind == "end":
            self.end = line

    def _last(self, name):
        points = self._points.get(name)
        return points[max(points)] if points else 0

    @property
    def resumptions(self):
        """[(bytes of main.log, step)] of the continuations, for read_main_log."""
        return [(int(header.get("main_log_bytes", 0)), header["step"]) for header in self.headers]


def _step(value):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= np.iinfo(np.int64).max:
        raise ValueError("no step")
    return value


def _as_series(points):
    steps = sorted(points)
    return np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64)


def read_run_log(directory, warn=True):
    """The RunHistory of DIRECTORY/run.jsonl; None if there is none, as of llm.c's runs.

    warn  print a warning about lines that are not such an object; they are skipped
    Raises UserError if the file cannot be read.
    """
    path = Path(directory) / RUN_LOG
    if not os.path.lexists(path):
        return None
    try:
        with open_regular(path, "r", encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise UserError(f"run.jsonl must be readable, got {str(path)!r} ({error.strerror}): remove it to plot main.log alone") from error
    objects, bad = [], 0
    for line in lines:
        if line.strip():
            try:
                objects.append(json.loads(line))
            except (ValueError, RecursionError):
                bad += 1
    history = RunHistory(objects)
    bad += history.bad
    if bad and warn:
        print(f"warning: skipping {bad} damaged line{'s' * (bad > 1)} of {path}", file=sys.stderr)
    return history
