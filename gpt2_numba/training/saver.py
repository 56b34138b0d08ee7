"""When a run is saved: where its loop asks for it, and once more before a mistake that the user can fix ends it."""

from dataclasses import replace

from gpt2_numba.errors import UserError
from gpt2_numba.parallel.agreement import together
from gpt2_numba.training.resume import save_or_warn


class Saver:
    """Saves the last completed step of a run. Use it in a `with` statement around the loop, which calls `reached` before every step.

    If the loop ends with a UserError, for instance since a file of tokens can no longer be read, that step is saved first. Several processes
    do not do this: saving takes all of them, and the error may be that of one.

    failed      whether the latest attempt to save has failed
    saved_step  the newest step that this run can be resumed from, 0 if there is none
    """

    def __init__(self, run, reports, lock):
        """run: a PreparedRun. reports: its StepReports, finished before saving, so that all results are saved. lock: the RunLock."""
        self._run, self._reports, self._lock = run, reports, lock
        self._step = self.saved_step = run.first_step
        self._position, self.failed = None, False

    def reached(self, step, position):
        """All steps before `step` are done, and `position` (a LoaderState) is where its data begin."""
        self._step, self._position = step, position

    def save(self, keep_all=False):
        """Save the last completed step, unless it is saved already or there is no log directory. keep_all: delete no older checkpoint.

        Raises UserError if another run has begun to write to the directory, which only happens if somebody has removed the lock.
        """
        self._reports.finish()
        settings, group = self._run.settings, self._run.model.group
        if not settings.log_dir or self._step == self.saved_step:
            return
        together(group, self._lock.renew)
        if keep_all or self._reports.not_finite:  # the run may be about to diverge: the older checkpoints may be the last good ones
            settings = replace(settings, keep_checkpoints=0)
        self.failed = not save_or_warn(settings, self._step, self._run.model, self._position, self._run.run_state, self._run.facts)
        if not self.failed:
            self.saved_step = self._step

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and issubclass(kind, UserError) and self._run.model.group.ranks == 1:
            self.save()  # if this is what has failed, it raises the same again
