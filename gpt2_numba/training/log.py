"""The logs of a run: main.log for plots, the console's line per step, and the throughput that it shows.

main.log has llm.c's format, so that either program can plot the other's. One line per event:

    s:STEP tel:LOSS                     validation loss
    s:STEP eval:ACCURACY                accuracy of an evaluation
    s:STEP trl:LOSS lr:RATE norm:NORM   training loss, learning rate, gradient norm of one step

Steps count from 0, losses are in nats per token. What else is known of a step, run.jsonl holds beside it (run_log.py).
"""

import io
import itertools
import sys
from pathlib import Path

import numpy as np

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

MAIN_LOG, RUN_LOG = "main.log", "run.jsonl"

# The keys of main.log, and the names under which read_main_log returns them.
_SERIES_NAMES = {"tel": "val_loss", "eval": "eval_accuracy", "trl": "train_loss", "lr": "learning_rate", "norm": "norm"}


class LogFile:
    """A text file to which a run appends a line per event. A line that cannot be written costs one warning."""

    def __init__(self, path):
        """path: created if absent. Raises UserError if it cannot be written."""
        self.path, self._warned = Path(path), False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            open_regular(self.path, "a").close()
        except OSError as error:
            raise UserError(f"{self.path} must be a file that can be written ({error.strerror}): name another directory (-o)") from error

    def append(self, line):
        """Write a line, a str without its end."""
        try:
            with open_regular(self.path, "ab+") as file:  # opened for every line, so that none is lost if the run is killed
                file.write(_fresh_line(file) + line.encode() + b"\n")
        except OSError as error:  # a full disk, a removed directory: no reason to lose the run
            if not self._warned:
                self._warned = True
                print(f"warning: {self.path} cannot be written ({error.strerror}): lines of the log are lost", file=sys.stderr)


def _fresh_line(file):
    """What a new line must begin with: a line end if the last one is a stump, left by a full disk or a machine that went down."""
    if file.seek(0, io.SEEK_END):
        file.seek(-1, io.SEEK_END)
    return b"" if file.read(1) in (b"", b"\n") else b"\n"


class MainLog:
    """Writes DIRECTORY/main.log, or nothing if the directory is None."""

    def __init__(self, directory, append=False):
        """Begin the log of a run.

        directory   created if absent
        append      continue its main.log; otherwise a main.log that is there is kept under another name, main.1.log or the next free
                    number, and its run.jsonl under the same
        Raises UserError if it cannot be written.
        """
        self.path, self._file = None, None
        if directory is None:
            return
        self.path = Path(directory) / MAIN_LOG
        if not append:
            keep_earlier_logs(self.path.parent)
        self._file = LogFile(self.path)

    def write_validation(self, step, loss):
        """Log a validation: its step and mean loss (nats per token)."""
        self._append(f"s:{step} tel:{loss:.4f}")

    def write_accuracy(self, step, accuracy):
        """Log an evaluation: its step and the fraction of questions answered correctly."""
        self._append(f"s:{step} eval:{accuracy:.4f}")

    def write_train_step(self, step, loss, learning_rate, norm, **others):
        """Log a training step: its mean loss (nats per token), learning rate, and gradient norm before clipping.

        others  what run.jsonl says besides
        """
        self._append(f"s:{step} trl:{loss:.4f} lr:{learning_rate:.6f} norm:{norm:.2f}")

    def _append(self, line):
        if self._file:
            self._file.append(line)


def keep_earlier_logs(directory):
    """Rename the logs of an earlier run that are not empty, all with the same free number: main.1.log, run.1.jsonl.

    Raises UserError if that is not possible.
    """
    logs = [directory / name for name in (MAIN_LOG, RUN_LOG)]

    def kept(log, number):
        return log.with_name(f"{log.stem}.{number}{log.suffix}")

    try:
        earlier = [log for log in logs if log.is_file() and log.stat().st_size]
        if earlier:
            number = next(number for number in itertools.count(1) if not any(kept(log, number).exists() for log in logs))
            for log in earlier:
                log.rename(kept(log, number))
            print(f"the log of an earlier run is now {kept(earlier[0], number)}")
    except OSError as error:
        raise UserError(
            f"the logs of an earlier run in {directory} cannot be renamed ({error.strerror}): name another directory (-o)"
        ) from error


def read_main_log(path, resumptions=(), warn=True):
    """Read a main.log, ours or llm.c's.

    resumptions  [(bytes, step)]: at that length of the file, a run was resumed from that step. What had been logged of later ones does not
                 count
    warn         print a warning about damaged lines

    Returns a dict with the keys val_loss, eval_accuracy, train_loss, learning_rate and norm; each value is a pair (steps (n,) int64,
    ascending; values (n,) float64), empty if the log has none. If a step occurs twice (a resumed run appends to its log), the later line
    counts. Lines that are not a main.log's are skipped, with one warning.
    Raises UserError if the file is missing, or if it has no line of a main.log but others.
    """
    path = Path(path)
    try:
        with open_regular(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise UserError(f"main.log must be readable, got {str(path)!r} ({error.strerror}): give the log directory of a run") from error

    by_step, bad = {name: {} for name in _SERIES_NAMES.values()}, []
    waiting, offset = sorted(resumptions), 0
    for number, line in enumerate(lines, start=1):
        while waiting and offset >= waiting[0][0]:
            cut_resumed(by_step, waiting.pop(0)[1])
        offset += len(line) + 1
        line = line.decode("utf-8", errors="replace")
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
    if bad and warn:
        print(f"warning: skipping {len(bad)} damaged line{'s' * (len(bad) > 1)} of {path}, the first is {bad[0]}", file=sys.stderr)
    return {name: _as_series(points) for name, points in by_step.items()}


def cut_resumed(by_step, first_step):
    """Remove what a run resumed from first_step does again: all from that step on, but not the evaluations before it, of the checkpoint.

    by_step  name of a series -> {step: value}, changed in place
    """
    for name, points in by_step.items():
        last = first_step if name in ("val_loss", "eval_accuracy") else first_step - 1
        for step in [step for step in points if step > last]:
            del points[step]


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
