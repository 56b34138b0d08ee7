"""The logs of a run: main.log for plots, the console's line per step, and the throughput that it shows.

main.log has llm.c's format, so that either program can plot the other's. One line per event:

    s:STEP tel:LOSS                     validation loss
    s:STEP eval:ACCURACY                accuracy of an evaluation
    s:STEP trl:LOSS lr:RATE norm:NORM   training loss, learning rate, gradient norm of one step

Steps count from 0, losses are in nats per token.
"""

import io
import itertools
import sys
from pathlib import Path

import numpy as np

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

# The keys of main.log, and the names under which read_main_log returns them.
_SERIES_NAMES = {"tel": "val_loss", "eval": "eval_accuracy", "trl": "train_loss", "lr": "learning_rate", "norm": "norm"}


class MainLog:
    """Writes DIRECTORY/main.log, or nothing if the directory is None."""

    def __init__(self, directory, append=False):
        """Begin the log of a run.

        directory   created if absent
        append      continue its main.log; otherwise a main.log that is there is kept under another name, main.1.log or the next free number
        Raises UserError if it cannot be written.
        """
        self.path, self._warned = None, False
        if directory is None:
            return
        self.path = Path(directory) / "main.log"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not append:
                _keep(self.path)
            open_regular(self.path, "a").close()
        except OSError as error:
            raise UserError(f"{self.path} must be a file that can be written ({error.strerror}): name another directory (-o)") from error

    def write_validation(self, step, loss):
        """Log a validation: its step and mean loss (nats per token)."""
        self._append(f"s:{step} tel:{loss:.4f}")

    def write_accuracy(self, step, accuracy):
        """Log an evaluation: its step and the fraction of questions answered correctly."""
        self._append(f"s:{step} eval:{accuracy:.4f}")

    def write_train_step(self, step, loss, learning_rate, norm):
        """Log a training step: its mean loss (nats per token), learning rate, and gradient norm before clipping."""
        self._append(f"s:{step} trl:{loss:.4f} lr:{learning_rate:.6f} norm:{norm:.2f}")

    def _append(self, line):
        if self.path is None:
            return
        try:
            with open_regular(self.path, "ab+") as file:  # opened for every line, so that none is lost if the run is killed
                file.write(_fresh_line(file) + line.encode() + b"\n")
        except OSError as error:  # a full disk, a removed directory: no reason to lose the run
            if not self._warned:
                self._warned = True
                print(f"warning: {self.path} cannot be written ({error.strerror}): lines of the log are lost", file=sys.stderr)


def _keep(path):
    """Rename the main.log of an earlier run, unless it is empty."""
    if path.is_file() and path.stat().st_size:
        kept = next(name for name in (path.with_name(f"main.{n}.log") for n in itertools.count(1)) if not name.exists())
        path.rename(kept)
        print(f"the log of an earlier run is now {kept}")


def _fresh_line(file):
    """What a new line must begin with: a line end if the last one is a stump, left by a full disk or a machine that went down."""
    if file.seek(0, io.SEEK_END):
        file.seek(-1, io.SEEK_END)
    return b"" if file.read(1) in (b"", b"\n") else b"\n"


def read_main_log(path):
    """Read a main.log, ours or llm.c's.

    Returns a dict with the keys val_loss, eval_accuracy, train_loss, learning_rate and norm; each value is a pair (steps (n,) int64,
    ascending; values (n,) float64), empty if the log has none. If a step occurs twice (a resumed run appends to its log), the later line
    counts. Lines that are not a main.log's are skipped, with one warning.
    Raises UserError if the file is missing, or if it has no line of a main.log but others.
    """
    path = Path(path)
    try:
        with open_regular(path, "r", encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise UserError(f"main.log must be readable, got {str(path)!r} ({error.strerror}): give the log directory of a run") from error

    by_step, bad = {name: {} for name in _SERIES_NAMES.values()}, []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            step, values = _parse_line(line)
        except (KeyError, ValueError):
            bad.append(f"{line[:60]!r} in line {number}")
            continue
        for name, value in values.items():
            by_step[name][step] = value
    if bad and not any(by_step.values()):
        raise UserError(
            f"a main.log has lines like 's:STEP trl:LOSS lr:RATE norm:NORM', got {bad[0]} of {str(path)!r}, and no better one: give the log "
            "directory of a run"
        )
    if bad:
        print(f"warning: skipping {len(bad)} damaged line{'s' * (len(bad) > 1)} of {path}, the first is {bad[0]}", file=sys.stderr)
    return {name: _as_series(points) for name, points in by_step.items()}


def _parse_line(line):
    """'s:3 tel:4.5' -> (3, {"val_loss": 4.5}). Raises KeyError or ValueError for anything else."""
    fields = dict(field.split(":") for field in line.split())
    step = int(fields.pop("s"))
    if not 0 <= step <= np.iinfo(np.int64).max:
        raise ValueError("no step")
    return step, {_SERIES_NAMES[key]: float(text) for key, text in fields.items()}


def _as_series(points):
    """{step: value} -> (steps, values), by ascending step."""
    steps = sorted(points)
    return np.array(steps, dtype=np.int64), np.array([points[step] for step in steps], dtype=np.float64)


# Eleven parameters, one for each figure in the line, all passed by keyword.
def step_line(*, step, max_steps, loss, loss_z, norm, norm_z, learning_rate, step_seconds, mfu, tokens_per_second, seconds_left):
    """The console's line for one training step: llm.c's, plus the time left.

    step, max_steps    counted from 0; shown from 1, so that the last line reads S/S
    loss, norm         nats per token; gradient norm before clipping
    loss_z, norm_z     their z-scores (NaN while the detector's window fills)
    step_seconds       time of this step; shown in milliseconds
    mfu                model FLOP utilisation, as a fraction of the chip's bf16 peak; None if that peak is unknown
    tokens_per_second  from Throughput.update
    seconds_left       from Throughput.seconds_left
    """
    mfu_text = "  n/a MFU" if mfu is None else f"{100 * mfu:.1f}% bf16 MFU"
    return (
        f"step {step + 1:4d}/{max_steps} | loss {loss:7.6f} ({loss_z:+.2f}z)| norm {norm:6.4f} ({norm_z:+.2f}z)| "
        f"lr {learning_rate:.2e} | {1000 * step_seconds:.2f} ms | {mfu_text} | {tokens_per_second:.0f} tok/s | "
        f"{_clock(seconds_left)} left"
    )


def _clock(seconds):
    """MM:SS, or H:MM:SS from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


class Throughput:
    """Training throughput as a moving average, and the time left at that speed."""

    DECAY = 0.95  # a new step weighs 5 %, so the average covers about 20 steps (llm.c's value)

    def __init__(self, tokens_per_step):
        """tokens_per_step: tokens of one update, all micro-batches and ranks together."""
        self._tokens_per_step = tokens_per_step
        self._average = 0.0  # of tokens/s; starts at 0, and after n steps is too small by the factor 1 - DECAY**n
        self._steps_averaged = None  # None before the first step
        self._tokens_per_second = None

    def update(self, step_seconds):
        """Add the time of one step (seconds) and return the throughput in tokens/s.

        The first step includes compilation and warm-up: its own throughput is returned, but kept out of the average.
        """
        speed = self._tokens_per_step / step_seconds
        if self._steps_averaged is None:
            self._steps_averaged = 0
            self._tokens_per_second = speed
        else:
            self._steps_averaged += 1
            self._average = self.DECAY * self._average + (1 - self.DECAY) * speed
            self._tokens_per_second = self._average / (1 - self.DECAY**self._steps_averaged)  # as AdamW corrects m, v
        return self._tokens_per_second

    def seconds_left(self, steps_left):
        """Seconds for steps_left more steps at the throughput that the last update returned, without validation and sampling."""
        return steps_left * self._tokens_per_step / self._tokens_per_second
