"""Progress: silent for what is short, a line that rewrites itself on a terminal, a line now and then elsewhere, and nothing on stdout."""

import io
import os

import pytest

from gpt2_numba import progress
from gpt2_numba.progress import Progress, duration, file_size


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    times = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[0])
    return times


def show(monkeypatch, clock, terminal, steps, seconds):
    """What a Progress of 100 things prints that advances `steps` times by 1, a pause of `seconds` before each."""
    stream = Stream(terminal)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((60, 20)))
    with Progress("counting", 100, "sheep") as shown:
        for _ in range(steps):
            clock[0] += seconds
            shown.advance(1, "so far")
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_short_work_is_silent(monkeypatch, clock, capsys, terminal):
    assert show(monkeypatch, clock, terminal, 19, 0.1) == ""
    assert capsys.readouterr().out == ""


def test_a_line_every_ten_seconds_in_a_file(monkeypatch, clock):
    lines = show(monkeypatch, clock, False, 60, 0.5).splitlines()
    assert lines == [
        "counting: 20 %, 20 sheep of 100 sheep, 2 sheep/s, so far, 40 s left",
        "counting: 40 %, 40 sheep of 100 sheep, 2 sheep/s, so far, 30 s left",
        "counting: 60 %, 60 sheep of 100 sheep, 2 sheep/s, so far, 20 s left",
    ]


def test_a_line_that_rewrites_itself_on_a_terminal_and_is_gone(monkeypatch, clock):
    shown = show(monkeypatch, clock, True, 60, 0.5)
    assert "\n" not in shown and shown.count("\r") == 58 and shown.endswith("\r\033[K")
    assert all(len(line.removesuffix("\033[K")) < 60 for line in shown.split("\r"))


def test_a_dumb_terminal_gets_lines(monkeypatch, clock):
    monkeypatch.setenv("TERM", "dumb")
    assert show(monkeypatch, clock, True, 60, 0.5).count("\n") == 3


def test_no_stream(monkeypatch, clock):
    monkeypatch.setattr("sys.stderr", None)
    with Progress("counting", 2) as shown:
        clock[0] += 100
        shown.advance()


def test_what_was_done_before_counts_but_not_for_the_rate(clock):
    shown = Progress("loading", 1000, "B", done=500)
    clock[0] += 10
    shown.advance(100)
    assert shown.line(10) == "loading: 60 %, 600 B of 1.0 kB, 10 B/s, 40 s left"


def test_an_unknown_total(clock):
    shown = Progress("loading", None, "B")
    shown.advance(5_000_000)
    assert shown.line(2) == "loading: 5.0 MB, 2.5 MB/s"


@pytest.mark.parametrize(("nbytes", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9949, "9.9 kB"), (9999, "10 kB"), (999_600, "1.0 MB"), (2.2e9, "2.2 GB"), (3e14, "300 TB"),
])  # fmt: skip
def test_sizes(nbytes, text):
    assert file_size(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7625, "2 h 7 min"), (360_000, "100 h 0 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
