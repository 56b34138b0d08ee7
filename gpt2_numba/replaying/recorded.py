"""What a log directory says about a run: its settings, what it has logged of each step, and the checkpoints where it can be taken up.

Here steps are counted from 1, as the console prints them: step S makes the S-th update. In the logs, and in the names of checkpoints, S - 1
updates have been made before it.
"""

import dataclasses
import math
import sys
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.training.checkpoint import complete_checkpoints, outliers_file_name, read_outliers, verify_checkpoint
from gpt2_numba.training.log import RUN_LOG
from gpt2_numba.training.resume import open_checkpoint
from gpt2_numba.training.run_log import DIGITS, read_run_log
from gpt2_numba.training.settings import Settings

# Settings that do not change what a training step computes.
_INDIFFERENT = {
    "model", "log_dir", "val_data", "val_every", "val_batches", "sample_every", "sample_tokens", "hellaswag", "eval_file", "stats_every",
    "track", "gpu_info_every", "checkpoint_every", "final_checkpoint", "keep_checkpoints", "major_checkpoint_every", "resume",
    "restart_data", "graph", "guards", "zero_stage", "gpus_per_node", "init_method", "hang_timeout", "wait_for_shards", "peak_tflops",
}  # fmt: skip
FEWER_DIGITS = 7  # significant digits of the numbers in the run.jsonl of earlier versions


class RecordedRun:
    """A run as its log directory describes it.

    directory   its Path           logged   step -> (loss, norm) as run.jsonl has them, rounded
    last_step   the last one in the log        digits  significant digits that it keeps
    """

    def __init__(self, directory):
        """Raises UserError if the directory has no log with the settings of a run."""
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise UserError(f"LOGDIR must be the log directory of a run (its -o), got {str(directory)!r}, which is none: check the path")
        history = read_run_log(self.directory)
        if history is None or not history.headers or not all(_is_whole(header) for header in history.headers):
            raise UserError(
                f"{self.directory} must have the {RUN_LOG} of a run, which says with which settings to repeat it, and has none: give the log "
                "directory (-o) of a run of this program"
            )
        self._headers = history.headers
        losses, norms = (_by_step(history.series.get(name)) for name in ("train_loss", "norm"))
        self.logged = {step: (loss, norms[step]) for step, loss in losses.items() if step in norms}
        values = [value for pair in self.logged.values() for value in pair if math.isfinite(value)]
        self.digits = FEWER_DIGITS if all(float(f"{value:.{FEWER_DIGITS}g}") == value for value in values) else DIGITS
        self.last_step = max(self.logged, default=0)

    def header(self, step):
        """What run.jsonl says about the run that made a step: a dict (run_header.py)."""
        return [header for header in self._headers if header["step"] < step][-1]

    def check_step(self, step):
        """Raise UserError if a step is not in reach: at most one after the last that is logged, in which a run may have ended."""
        most = min(self.last_step + 1, int(self.header(max(1, self.last_step))["max_steps"]))
        if not 1 <= step <= most:
            raise UserError(
                f"the step must be from 1 to {most}, as the console counts them ({self.directory} logs {self.last_step}), got {step}"
            )
        if self._headers[0]["step"] >= step:
            raise UserError(f"the step must be one of those in {RUN_LOG}, which begins after step {self._headers[0]['step']}, got {step}")

    def settings(self, step):
        """The complete Settings with which a step was made, but for what a replay does not do: saving, validating, tracking."""
        header = self.header(step)
        recorded, known = header["settings"], {field.name for field in dataclasses.fields(Settings)}
        return dataclasses.replace(
            Settings(**{name: value for name, value in recorded.items() if name in known}),
            log_dir=str(self.directory), max_steps=int(header["max_steps"]), total_batch_tokens=int(header["tokens_per_step"]), resume=False,
            val_every=0, hellaswag=False, stats_every=0, track=None, gpu_info_every=-1, checkpoint_every=0, zero_stage=0, guards=False,
            wait_for_shards=False,
            sample_every=1,  # so that the tokenizer is looked for
        )  # fmt: skip

    def processes(self, step):
        """How many processes made a step."""
        return int(self.header(step).get("machine", {}).get("processes", 1))

    def start_before(self, step):
        """The newest intact Checkpoint from which a step can be made, or None: from the start of the run. A damaged one costs a warning.

        Raises UserError if the run had other settings between there and the step.
        """
        begins = self.header(step)["step"]
        for done_steps in complete_checkpoints(self.directory):
            if done_steps >= step:
                continue
            try:
                done = verify_checkpoint(self.directory, done_steps)
                checkpoint = open_checkpoint(self.directory, done_steps, done)
            except UserError as error:
                print(f"warning: the checkpoint of step {done_steps} cannot be used: {error}", file=sys.stderr)
                continue
            self.check_one_run(done_steps, step)
            return checkpoint
        if self._headers[0]["step"]:
            raise UserError(
                f"{self.directory} must have a checkpoint before step {step}, since its {RUN_LOG} begins after step {begins}, and has none: "
                "choose a later step"
            )
        self.check_one_run(0, step)
        return None

    def can_begin_before(self, step):
        """Whether a step can be made from the newest checkpoint before the step that follows it, so that it costs nothing to make both."""
        if step < 1 or self._headers[0]["step"] >= step:
            return False
        newest = max((done for done in complete_checkpoints(self.directory) if done <= step), default=0)
        return newest < step

    def restarts_data(self, done_steps, step):
        """Whether the run that made a step had begun its data over (--restart-data) at the checkpoint of `done_steps`."""
        header = self.header(step)
        return bool(header["settings"].get("restart_data")) and header["step"] == done_steps > 0

    def check_one_run(self, done_steps, step):
        """Raise UserError unless all steps after `done_steps`, up to `step`, were made with the same settings and number of processes."""
        now = self.header(step)
        between = {done_steps + 1, *(header["step"] + 1 for header in self._headers if done_steps < header["step"] < step)}
        for one in sorted(between):
            differ = _differences(self.header(one), now)
            if now["step"] > done_steps and now["settings"].get("restart_data"):
                differ.append("start of the data")
            if differ:
                raise UserError(
                    f"the steps from a checkpoint to the one to replay must have the same settings, but the run was resumed after step "
                    f"{now['step']} with another {', '.join(differ)}, and the newest checkpoint before step {step} is of step {done_steps}: "
                    "choose another step"
                )

    def exact(self, step):
        """(loss, norm) of a step, exact to the bit, from the windows of a later checkpoint; None if none holds them.

        A checkpoint's window ends with its last step; steps that are not finite have not entered it.
        """
        for done_steps in sorted(complete_checkpoints(self.directory)):
            later = range(step, done_steps + 1)
            if done_steps < step or not all(all(map(math.isfinite, self.logged.get(s, (math.nan,)))) for s in later):
                continue
            losses, norms = read_outliers(self.directory / outliers_file_name(done_steps))
            if len(losses) >= len(later) and len(norms) >= len(later):
                return losses[-len(later)], norms[-len(later)]
        return None


def _by_step(series):
    steps, values = series if series is not None else ((), ())
    return {int(step) + 1: float(value) for step, value in zip(steps, values)}


def _is_whole(header):
    return isinstance(header.get("settings"), dict) and isinstance(header.get("max_steps"), int)


def _differences(before, now):
    """In what the settings of two headers differ, where it matters to a step: a list of names."""
    names = sorted({*before["settings"], *now["settings"]} - _INDIFFERENT)
    differ = [name.replace("_", " ") for name in names if before["settings"].get(name) != now["settings"].get(name)]
    if before["max_steps"] != now["max_steps"] and "max steps" not in differ:
        differ.append("max steps")
    if before.get("machine", {}).get("processes") != now.get("machine", {}).get("processes"):
        differ.append("number of processes")
    return differ


def as_logged(value, logged, digits):
    """Whether a value is the logged one, in all the digits that the log has kept of it."""
    if not (math.isfinite(value) and math.isfinite(logged)):
        return str(float(value)) == str(float(logged))
    return float(f"{value:.{digits}g}") == logged
