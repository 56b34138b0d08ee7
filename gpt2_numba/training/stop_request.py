"""Ctrl-C and SIGTERM as a request to stop: the current step is finished, a checkpoint is written, then the run ends.

SIGHUP too, unless it is ignored, as under nohup. And SIGUSR1: mpirun (Open MPI 5) forwards it to its processes and waits for them, whereas
SIGINT or SIGTERM makes it kill them at once. And a pipe whose reader has gone: nobody is left to see the run, so it is not to run for days.
"""

import signal
import threading

from gpt2_numba.console import pipe_closed


class StopRequest:
    """Use in a `with` statement around the training loop.

    A second Ctrl-C stops at once, as usual. Outside the main thread, where Python delivers no signals, it does nothing. The handler only
    sets a flag: a signal may arrive in the middle of any other function, even of a print.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )  # not all on Windows

    def __init__(self):
        self._signal, self._announced = None, False

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

    @property
    def requested(self):
        """What asks the run to stop, as in "stopped by SIGTERM"; None if nothing does."""
        return self._signal or ("a closed pipe" if pipe_closed() else None)

    def announce(self):
        """Print once that a signal has been noticed. Called wherever the loop comes by."""
        if self._signal and not self._announced:
            self._announced = True
            print(f"{self._signal}: finishing this step (a second one stops at once)", flush=True)

    def _handle(self, signum, _frame):
        self._signal = signal.Signals(signum).name
        self._restore_handlers()

    def _restore_handlers(self):
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
