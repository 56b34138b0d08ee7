"""Standard output and error of a program: no print fails, whatever it says and wherever it goes; and Ctrl-C before the program has begun.

A full disk, a terminal that is gone, a closed stream (`>&-`) or a character missing from the encoding must not end a run of several days.
If the reader of a pipe goes away (`| head`), a short program ends quietly, as in any Unix pipeline; a trainer notices (`pipe_closed`),
saves and stops.
"""

import contextlib
import io
import os
import select
import signal
import sys
import threading

STDOUT, STDERR = 1, 2  # file descriptors
CLOSED_PIPE = 141  # exit code: 128 + SIGPIPE, as a shell reports a program that this signal ended
INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C

_pipe_closed = threading.Event()


def prepare_streams(outlives_pipe=False):
    """Make print safe: replaces sys.stdout and sys.stderr. To be called once, before the program prints or opens anything.

    outlives_pipe   if the reader of stdout goes away: True, discard the rest and leave it to the program to look at `pipe_closed`; False,
                    end the program with the exit code 141
    What the encoding lacks is printed as an escape such as \\u03c0, and each line is written at once. What cannot be written is discarded,
    after one warning on the other stream. Streams that are not files, as in notebooks, remain as they are.
    """
    for name in ("stdin", "stdout", "stderr"):  # in this order, a missing one is given its own file descriptor, the lowest free one
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        elif name != "stdin":
            setattr(sys, name, _safe(stream, outlives_pipe))


def pipe_closed():
    """Has the reader of stdout gone away?"""
    return _pipe_closed.is_set()


def _safe(stream, outlives_pipe):
    """A text stream like the given one, whose `write` and `flush` cannot fail."""
    file = getattr(getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None))  # under `python -u` there is no buffer between
    if type(file) is io.FileIO:
        stream.flush()
        buffer = io.BufferedWriter(_SafeFile(file.fileno(), outlives_pipe))
        return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)
    if hasattr(stream, "reconfigure"):  # a console of Windows
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    return stream


class _SafeFile(io.FileIO):
    """A file descriptor that accepts everything and discards what cannot be written."""

    def __init__(self, descriptor, outlives_pipe):
        super().__init__(descriptor, "wb", closefd=False)
        self._outlives_pipe, self._failed = outlives_pipe, False

    def write(self, data):
        try:
            while (count := super().write(data)) is None:  # another program has made the terminal non-blocking
                select.select([], [self], [])
            return count
        except OSError as error:
            if isinstance(error, BrokenPipeError) and self.fileno() == STDOUT:
                self._lost_its_reader()
            else:
                self._warn(error)
        return len(data)

    def _lost_its_reader(self):
        if self._outlives_pipe:
            _pipe_closed.set()
        elif not self._failed and threading.current_thread() is threading.main_thread():
            self._failed = True
            raise SystemExit(CLOSED_PIPE)

    def _warn(self, error):
        """Once, and past sys.stdout and sys.stderr: a stream that is being written must not be entered again."""
        if not self._failed:
            self._failed = True
            name, other = ("stderr", STDOUT) if self.fileno() == STDERR else ("stdout", STDERR)
            with contextlib.suppress(OSError):
                os.write(other, f"warning: {name} cannot be written ({error.strerror}): what is printed there is lost\n".encode())


# ------------------------------------------------------------------------------------------------ Ctrl-C before the program


def end_at_ctrl_c():
    """Until `raise_at_ctrl_c`, Ctrl-C ends the process with one line. While NumPy and Numba are imported, nothing could catch an exception."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as in a shell's background jobs
        signal.signal(signal.SIGINT, _end)


def raise_at_ctrl_c():
    """From here on, Ctrl-C raises KeyboardInterrupt, as usual."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_at_ctrl_c():
    """From here on, Ctrl-C ends the process at once: all that is left is to write what has been printed, to a reader that may be gone."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def _end(*_):
    with contextlib.suppress(OSError):
        os.write(STDERR, b"stopped by Ctrl-C while starting\n")
    os._exit(INTERRUPTED)
