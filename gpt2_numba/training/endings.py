"""How a training can end other than by doing all its steps: exceptions with an exit code, each told in one line."""

import contextlib
import signal

from gpt2_numba.errors import SharedError, UserError
from gpt2_numba.training.checkpoint import done_checkpoints

STOPPED, FAILED = 128 + signal.SIGINT, 1  # exit codes


class Ending(Exception):
    """The base of the three. code: the program's exit code."""

    code = FAILED


class Stopped(Ending):
    """The run was asked to stop and did so after `step` updates. saved: whether the checkpoint that was due could be written."""

    def __init__(self, reason, step, settings, saved=True):
        """reason: the name of a signal, say."""
        self.code = STOPPED if saved else FAILED
        how = "no checkpoint was written, since no log directory was given (-o)"
        if settings.log_dir:
            steps = []
            with contextlib.suppress(UserError):  # the directory may be gone by now
                steps = done_checkpoints(settings.log_dir)
            how = f"there is no checkpoint in {settings.log_dir}: the same command starts from the beginning"
            if steps:
                how = f"to continue, add -y 1 to the command: it resumes from the checkpoint of step {steps[0]} in {settings.log_dir}"
        super().__init__(f"stopped by {reason} after {step} steps; {how}")


class NotSaved(Ending):
    """The run is done, but its last checkpoint could not be written."""

    def __init__(self, step):
        super().__init__(f"all {step} steps are done, but the last checkpoint was not written: see the warning above")


class Diverged(Ending):
    """Loss or gradient norm were not finite for several steps in a row."""

    def __init__(self, step, steps_in_a_row):
        super().__init__(
            f"error: after {step} steps the run has diverged: {steps_in_a_row} steps in a row have updated nothing, since the loss or the "
            "gradient norm was not finite. Resume from an older checkpoint (delete the newer ones, add -y 1), with a smaller learning rate "
            "(-l) or a longer warm-up (-u)"
        )


def raise_shared_problem(group, problem):
    """Raise SharedError in all processes if one of them has stopped the run for a problem with its data: a UserError, None for the others."""
    problems = [text for text in group.gather(problem and str(problem)) if text]
    if problems:
        raise SharedError(problems[0])
