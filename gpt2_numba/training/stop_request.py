"""Ctrl-C and SIGTERM as a request to stop: the current step is finished, a checkpoint is written, then the run ends.

SIGHUP too. And SIGUSR1: mpirun (Open MPI 5) forwards it to its processes and waits for them, whereas SIGINT or SIGTERM makes it kill them
at once. Signals that are ignored remain so: SIGHUP under nohup, SIGINT in a script's background jobs. A pipe whose reader has gone counts
as a request, too: nobody is watching, so the run should not go on for days.
"""

import signal
import threading

from gpt2_numba.console import pipe_closed


class StopRequest:
    """Use in a `with` statement around the training loop.

    After a first signal Ctrl-C stops at once, as usual; other signals are still caught, since systems send several. Outside the main
    thread, where Python delivers no signals, it does nothing. The handler only sets flags: a signal may arrive in the middle of any other
    function, even of a print.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )  # not all on Windows

    def __init__(self, on_signal=lambda: None):
        """on_signal: called at the first signal, in its handler."""
        self._signal, self._announced, self._on_signal = None, False, on_signal

    def __enter__(self):
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            heeded = [signum for signum in self.SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
            self._handlers = {signum: signal.signal(signum, self._handle) for signum in heeded}
        return self

    def __exit__(self, *_):
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    @property
    def requested(self):
        """What asks the run to stop, as in "stopped by SIGTERM"; None if nothing does."""
        return self._signal or ("a closed pipe" if pipe_closed() else None)

    def announce(self):
        """Print once that a signal has been noticed. Called in every micro-step."""
        if self._signal and not self._announced:
            self._announced = True
            print(f"{self._signal}: finishing this step (Ctrl-C stops at once)", flush=True)

    def _handle(self, signum, _frame):
        self._signal = self._signal or signal.Signals(signum).name
        self._on_signal()
        if signal.SIGINT in self._handlers:
            signal.signal(signal.SIGINT, self._handlers[signal.SIGINT])
