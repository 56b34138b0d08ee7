"""The results of a run in Weights & Biases, trackio or TensorBoard as well (--track), if the package is installed.

A tracker that fails costs one warning and is then left alone: it never ends a run, and nothing of the training depends on it. main.log and
run.jsonl hold everything in any case. A resumed run continues the tracker's run, whose name run.jsonl records.
"""

import contextlib
import os
import re
import sys
import time
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.training.run_log import read_run_log

PROJECT = "gpt2_numba"  # WANDB_PROJECT and TRACKIO_PROJECT name another
_PREFIXES = {"validation": "val", "accuracy": "hellaswag"}
_SPEED = ("ms", "tokens_per_second", "mfu", "host_bytes", "gpu_bytes")


def open_tracker(name, directory, header, first_step):
    """A Tracker.

    name        one of TRACKERS        directory   the log directory, or None
    header      of run.jsonl, shown as the run's configuration
    first_step  steps already done
    Raises UserError for TensorBoard without a log directory. If the package cannot begin a run, that is a warning.
    """
    if name == "tensorboard" and directory is None:
        raise UserError("--track tensorboard writes to the log directory, and there is none: add -o DIR")
    identity = _earlier_identity(name, directory) if first_step else None
    run = identity or re.sub(r"[^\w.-]", "-", f"{Path(directory or 'run').resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}")
    return Tracker(name, run, directory, header, first_step)


def _earlier_identity(name, directory):
    with contextlib.suppress(UserError):
        history = directory and read_run_log(directory, warn=False)
        for header in reversed(history.headers if history else []):
            tracker = header.get("tracker")
            if isinstance(tracker, dict) and tracker.get("name") == name and isinstance(tracker.get("run"), str):
                return tracker["run"]
    return None


class Tracker:
    """A run of one of TRACKERS. identity: what run.jsonl records of it."""

    def __init__(self, name, run, directory, header, first_step):
        """See open_tracker. run: the name, the same when the run is resumed."""
        self._name, self.identity, self._backend = name, {"name": name, "run": run}, None
        self._backend = self._try(lambda: TRACKERS[name](run, directory, header, first_step))

    def log(self, kind, step, values):
        """Track what run.jsonl says of a step: kind, and {name: number or None}."""
        prefix = _PREFIXES.get(kind, "train")
        named = {f"{'speed' if name in _SPEED else prefix}/{name}": value for name, value in values.items() if value is not None}
        if self._backend:
            self._try(lambda: self._backend.log(step, named))

    def close(self, failed):
        """Finish the run; failed: it has not done all its steps."""
        if self._backend:
            self._try(lambda: self._backend.close(failed))

    def _try(self, work):
        """work(), or a warning; after that the tracker is left alone."""
        try:
            return work()
        except Exception as error:
            self._backend = None
            lines = str(error).splitlines() or [type(error).__name__]
            print(f"warning: {self._name} has failed and is left alone from here on: {lines[0]}", file=sys.stderr)
        return None


class _WandB:
    def __init__(self, run, directory, header, first_step):
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        # Nothing that is printed passes through wandb: it must not be able to stop the run.
        options = dict(project=project, id=run, name=run, resume="allow", config=header, settings={"console": "off"})
        self._run = wandb.init(**options, **({"dir": str(directory)} if directory else {}))
        # An axis of ours: wandb's own steps only go up, and a resumed run may go back.
        self._run.define_metric("*", step_metric="step")

    def log(self, step, values):
        self._run.log({"step": step, **values})

    def close(self, failed):
        self._run.finish(exit_code=int(failed))


class _Trackio:
    def __init__(self, run, directory, header, first_step):
        import trackio

        self._trackio = trackio
        trackio.init(project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=run, config=header, resume="allow")

    def log(self, step, values):
        self._trackio.log(values, step=step)

    def close(self, failed):
        self._trackio.finish()


class _TensorBoard:
    """Event files in DIRECTORY/tensorboard: tensorboard --logdir DIRECTORY."""

    def __init__(self, run, directory, header, first_step):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(Path(directory) / "tensorboard"))
        if first_step:  # what was logged of later steps does not count
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def log(self, step, values):
        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self, failed):
        self._writer.close()


TRACKERS = {"wandb": _WandB, "trackio": _Trackio, "tensorboard": _TensorBoard}  # also the packages' names
