"""Progress of work that takes more than two seconds: how much is done, how fast, and the time left.

    with Progress("tokenizing", total=nbytes, unit="B") as progress:
        for block in blocks:
            ...
            progress.advance(len(block), f"{tokens:,} tokens")

On a terminal one line rewrites itself and is gone at the end. Elsewhere (a log file, a pipe) a line is printed every ten seconds. Work of
less than two seconds prints nothing. All of it goes to stderr, so that stdout holds results only.
"""

import os
import shutil
import sys
import time

SILENT_SECONDS = 2.0  # shorter work needs no progress
REWRITE_SECONDS = 0.2  # on a terminal
LINE_SECONDS = 10.0  # elsewhere


class Progress:
    """The progress of one piece of work; a context manager. Threads may advance it only one at a time.

    what   the work in a word or two: "tokenizing"
    total  how much there is to do, in `unit`s; None if that is unknown
    unit   "B" for bytes, printed as kB, MB and GB, or a noun in the plural: "questions"
    done   how much of it was done before, as in a resumed download: it counts as done, but not for the rate
    """

    def __init__(self, what, total=None, unit="", done=0):
        self.what, self.total, self.unit = what, total, unit
        self.done = self._done_before = done
        self._note = ""
        self._begun = self._printed = time.monotonic()
        self._line_is_open = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def advance(self, count=1, note=None):
        """`count` more are done. note: text that is printed after them from here on."""
        self.done += count
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._begun < SILENT_SECONDS:
            return
        terminal = _is_terminal(sys.stderr)
        if now - self._printed >= (REWRITE_SECONDS if terminal else LINE_SECONDS):
            self._printed = now
            self._print(self.line(now - self._begun), terminal)

    def line(self, seconds):
        """The line that says what has been done in `seconds`."""
        rate = (self.done - self._done_before) / max(seconds, 1e-9)
        parts = [f"{self._quantity(self.done)} of {self._quantity(self.total)}" if self.total else self._quantity(self.done)]
        if self.total:
            parts.insert(0, f"{100 * min(self.done / self.total, 1):.0f} %")
        parts.append(f"{self._quantity(rate)}/s")
        if self._note:
            parts.append(self._note)
        if self.total and rate > 0:
            parts.append(f"{duration(max(0, self.total - self.done) / rate)} left")
        return f"{self.what}: {', '.join(parts)}"

    def close(self):
        """Remove the line from a terminal."""
        if self._line_is_open:
            self._line_is_open = False
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def _quantity(self, number):
        return (
            file_size(number)
            if self.unit == "B"
            else f"{number:,.{0 if number >= 10 or number == int(number) else 1}f} {self.unit}".rstrip()
        )

    def _print(self, line, terminal):
        if not terminal:
            print(line, file=sys.stderr, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1  # a full line would wrap, and the next one would not replace it
        sys.stderr.write(f"\r{line[:width]}\033[K")
        sys.stderr.flush()
        self._line_is_open = True


def file_size(nbytes):
    """A number of bytes as it is printed of files: '812 B', '1.5 MB', '20 GB'; powers of 1000."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if nbytes < 999.5:
            break
        nbytes, unit = nbytes / 1000, larger
    return f"{nbytes:.1f} {unit}" if unit != "B" and nbytes < 9.95 else f"{nbytes:.0f} {unit}"


def duration(seconds):
    """A time as it is printed: '42 s', '3 min 5 s', '2 h 7 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60, seconds // 3600
    return f"{minutes} min {seconds % 60} s" if hours == 0 else f"{hours} h {minutes % 60} min"


def _is_terminal(stream):
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
