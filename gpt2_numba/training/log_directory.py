"""The log directory (-o) belongs to one run at a time; a run on the built-in corpus, which names its own, moves an earlier one aside."""

import contextlib
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.parallel.agreement import together
from gpt2_numba.training.checkpoint import done_checkpoints
from gpt2_numba.training.run_lock import FILE_NAME as LOCK_FILE
from gpt2_numba.training.run_lock import RunLock
from gpt2_numba.training.settings import BUILT_IN_CPU_DEFAULTS


@contextlib.contextmanager
def log_directory(settings, group):
    """Reserve the log directory for this run, in a `with` statement around all of it. Yields its RunLock, which rank 0 holds.

    All processes of the group call it. Raises UserError, in all of them, if another run is writing to the directory or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        own = settings.log_dir and group.rank == 0
        yield together(group, lambda: _reserve(settings, stack) if own else RunLock(None))


def _reserve(settings, stack):
    directory = Path(settings.log_dir).resolve()  # a link stays where it is, and leads to the new directory
    lock = stack.enter_context(RunLock(directory))
    is_default = settings.train_data is None and settings.log_dir == BUILT_IN_CPU_DEFAULTS.log_dir
    if is_default and not settings.resume and _holds_a_run(directory):
        aside = _free_name(directory)
        try:
            directory.rename(aside)
        except OSError as error:
            raise UserError(
                f"{directory} holds an earlier run and cannot be renamed to {aside} ({error.strerror}): name another with -o"
            ) from error
        print(f"the earlier run in {settings.log_dir} is now in {aside.name}")
        (aside / LOCK_FILE).unlink(missing_ok=True)
        lock.release()
        lock = stack.enter_context(RunLock(directory))
    return lock


def _holds_a_run(directory):
    return bool(done_checkpoints(directory)) or (directory / "main.log").exists()


def _free_name(directory):
    """DIRECTORY.1, or the first number that is free."""
    number = 1
    while (name := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    return name
