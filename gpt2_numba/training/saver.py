"""When a run is saved: where its loop asks for it, and once more before a mistake that the user can fix ends it."""

from dataclasses import replace

from gpt2_numba.errors import UserError
from gpt2_numba.training.resume import save_or_warn


class Saver:
    """Saves the last completed step of a run. Use it in a `with` statement around the loop, which calls `reached` before every step.

    If the loop ends with a UserError, for instance since a file of tokens can no longer be read, that step is saved first. Several processes
    do not do this: saving takes all of them, and the error may be that of one.

    failed      whether the latest attempt to save has failed
    saved_step  the newest step that this run can be resumed from, 0 if there is none
    """

    def __init__(self, run, finish_reports):
        """run: a PreparedRun. finish_reports: called before saving, so that the results of all steps are part of what is saved."""
        self._run, self._finish_reports = run, finish_reports
        self._step = self.saved_step = run.first_step
        self._position, self.failed = None, False

    def reached(self, step, position):
        """All steps before `step` are done, and `position` (a LoaderState) is where its data begin."""
        self._step, self._position = step, position

    def save(self, keep_all=False):
        """Save the last completed step, unless it is saved already or there is no log directory. keep_all: delete no older checkpoint."""
        self._finish_reports()
        settings = self._run.settings
        if not settings.log_dir or self._step == self.saved_step:
            return
        if keep_all:
            settings = replace(settings, keep_checkpoints=0)
        self.failed = not save_or_warn(settings, self._step, self._run.model, self._position, self._run.run_state, self._run.facts)
        if not self.failed:
            self.saved_step = self._step

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and issubclass(kind, UserError) and self._run.model.group.ranks == 1:
            self.save()
