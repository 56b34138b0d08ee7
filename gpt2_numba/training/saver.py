"""When a training saves itself: where its loop asks for it, and before it ends for a mistake that the user can mend."""

from dataclasses import replace

from gpt2_numba.errors import UserError
from gpt2_numba.training.resume import save_or_warn


class Saver:
    """Saves a run's latest whole step. Use it in a `with` statement around the loop, which calls `reached` before every step.

    If the loop ends with a UserError, for instance since a file of tokens can no longer be read, the latest step is saved first. Several
    processes do not: saving takes all of them, and the error may be that of one.

    failed   whether the latest attempt to save has failed
    """

    def __init__(self, run, finish_reports):
        """run: a PreparedRun. finish_reports: called before saving, so that the results of all steps are part of what is saved."""
        self._run, self._finish_reports = run, finish_reports
        self._step = self._saved_step = run.first_step
        self._position, self.failed = None, False

    def reached(self, step, position):
        """All steps before `step` are done, and `position` (a LoaderState) is where its data begin."""
        self._step, self._position = step, position

    def save(self, keep_all=False):
        """Save the latest step, unless that is done or the run has no log directory. keep_all: delete no older checkpoint for it."""
        settings = self._run.settings
        if not settings.log_dir or self._step == self._saved_step:
            return
        self._finish_reports()
        if keep_all:
            settings = replace(settings, keep_checkpoints=0)
        self.failed = not save_or_warn(settings, self._step, self._run.model, self._position, self._run.run_state, self._run.facts)
        if not self.failed:
            self._saved_step = self._step

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and issubclass(kind, UserError) and self._run.model.group.ranks == 1:
            self.save()
