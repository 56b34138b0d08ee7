"""Ctrl-C and SIGTERM as a request: the step in hand is finished, what must be kept is written, then the run ends.

SIGUSR1, too: mpirun hands it on to its processes and waits for them, while a SIGINT or SIGTERM makes it end them at once.
"""

import signal
import threading


class StopRequest:
    """Use in a `with` statement around the training loop; `requested` turns True at the first signal.

    A second Ctrl-C stops at once, as usual. Outside of the main thread, where Python delivers no signals, it does nothing.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))  # the last not on Windows

    def __init__(self):
        self.requested = None  # the signal's name, once it has come

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        self._give_back()

    def _give_back(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        self.requested = signal.Signals(number).name
        self._give_back()
        print(f"\n{self.requested}: finishing this step (once more stops at once)", flush=True)
