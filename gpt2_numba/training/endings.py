"""How a training can end other than by doing all its steps: exceptions with an exit code, each reported in one line."""

import signal

from gpt2_numba.errors import SharedError

STOPPED, FAILED = 128 + signal.SIGINT, 1  # exit codes


class Ending(Exception):
    """The base of the others. code: the program's exit code."""

    code = FAILED


class Stopped(Ending):
    """The run was asked to stop and did so after `step` updates."""

    def __init__(self, reason, step, settings, saver):
        """reason: the name of a signal, say. saver: the run's Saver."""
        self.code, log_dir = FAILED if saver.failed else STOPPED, settings.log_dir
        if not log_dir:
            how = "no checkpoint was written, since no log directory was given (-o)"
        elif saver.saved_step:
            flags = "add -y 1 to the command" + (" and leave out --restart-data" if settings.restart_data else "")
            how = f"to continue, {flags}: it resumes from the checkpoint of step {saver.saved_step} in {log_dir}"
        else:
            how = f"there is no checkpoint in {log_dir}: the same command starts from the beginning"
        super().__init__(f"stopped by {reason} after {step} step{'s' * (step != 1)}; {how}")


class NotSaved(Ending):
    """The run is done, but its last checkpoint could not be written."""

    def __init__(self, step):
        super().__init__(f"all {step} steps are done, but the last checkpoint was not written: see the warning above")


class Diverged(Ending):
    """Loss or gradient norm were not finite for several steps in a row."""

    def __init__(self, step, steps_in_a_row, log_dir):
        again = "Resume from an older checkpoint (delete the newer ones, add -y 1)" if log_dir else "Start again"
        super().__init__(
            f"error: after {step} steps the run has diverged: {steps_in_a_row} steps in a row have updated nothing, since the loss or the "
            f"gradient norm was not finite. {again}, with a smaller learning rate (-l) or a longer warm-up (-u)"
        )


class Frozen(Ending):
    """Tensors of parameters have not moved in the first updates. finding: the same without the way to go on."""

    def __init__(self, names, steps):
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        self.finding = (
            f"after {steps} steps AdamW has not moved {shown}: every gradient was exactly 0. Does a backward function leave it out?"
        )
        super().__init__(f"error: {self.finding} To train on all the same, add --frozen-tensors warn")


def raise_shared_problem(group, problem):
    """Raise SharedError in all processes if one of them has a problem with its data. problem: this process's UserError about it, or None."""
    problems = [text for text in group.gather(problem and str(problem)) if text]
    if problems:
        raise SharedError(problems[0])
