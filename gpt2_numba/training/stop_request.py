"""Ctrl-C and SIGTERM as a request to stop: the current step is finished, a checkpoint is written, then the run ends.

SIGHUP too, unless it is ignored, as under nohup. And SIGUSR1: mpirun (Open MPI 5) forwards it to its processes and waits for them, whereas SIGINT or SIGTERM makes it kill them at once.
"""

import signal
import threading

from gpt2_numba.training.checkpoint import done_checkpoints


class StopRequest:
    """Use in a `with` statement around the training loop; `requested` is the name of the first signal, None before it.

    A second Ctrl-C stops at once, as usual. Outside the main thread, where Python delivers no signals, it does nothing. The handler only sets a
    flag: a signal may arrive in the middle of any other function, even of a print.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )  # not all on Windows

    def __init__(self):
        self.requested, self._announced = None, False

    def __enter__(self):
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            heeded = [
                signum for signum in self.SIGNALS if signal.getsignal(signum) != signal.SIG_IGN or signum != getattr(signal, "SIGHUP", None)
            ]
            self._handlers = {signum: signal.signal(signum, self._handle) for signum in heeded}
        return self

    def __exit__(self, *_):
        self._restore_handlers()

    def _restore_handlers(self):
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def _handle(self, signum, _frame):
        self.requested = signal.Signals(signum).name
        self._restore_handlers()

    def announce(self):
        """Print once that the request has been noticed. Called wherever the loop comes by."""
        if self.requested and not self._announced:
            self._announced = True
            print(f"{self.requested}: finishing this step (a second one stops at once)", flush=True)


class NotSaved(Exception):
    """The run is done, but its last checkpoint could not be written."""

    code = 1  # exit code


class Stopped(Exception):
    """The run was asked to stop and did so after `step` updates. saved: whether the checkpoint that was due could be written."""

    def __init__(self, signal_name, step, settings, saved=True):
        self.code = 128 + signal.SIGINT if saved else 1  # exit code
        how = "no checkpoint was written, since no log directory was given (-o)"
        if settings.log_dir:
            steps = done_checkpoints(settings.log_dir)
            how = f"there is no checkpoint in {settings.log_dir}: the same command starts from the beginning"
            if steps:
                how = f"to continue, add -y 1 to the command: it resumes from the checkpoint of step {steps[0]} in {settings.log_dir}"
        super().__init__(f"stopped by {signal_name} after {step} steps; {how}")
