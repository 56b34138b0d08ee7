"""Where a run prints to: closed streams, pipes whose reader leaves, and encodings that lack the letters of a sample.

None of them costs a step. A pipe whose reader has left is a request to stop.
"""

import os
import shlex
import signal
import subprocess
import sys

from dev.drills.checkpoints import expect_end, expect_resumable, expect_same_bits
from dev.drills.report import Lost, Needs, Silent, Try
from dev.drills.training import Training, command_line, start, train, write_data

SAMPLES = {"-s": 2, "-g": 12}
LONG = {"-x": 200, "-n": 50}  # longer than any pipe's buffer
ENCODINGS = ("ascii", "cp1252", "latin-1", "koi8-r", "utf-16", "utf-8")
SHELL_LINES = {
    "stdout closed": (">&-", (0,)),
    "stderr closed": ("2>&-", (0,)),
    "all three closed": ("<&- >&- 2>&-", (0,)),
    "stdout on /dev/full": ("> /dev/full", (0,)),
    "head -3": ("| head -3", (130,)),
    "head -30": ("| head -30", (130,)),
    "stdout and stderr to head": ("2>&1 | head -3", (130,)),
}
SHORT_COMMANDS = ("-m gpt2_numba.train --help", "-m gpt2_numba", "-m gpt2_numba.doctor --help", "-m gpt2_numba.plot --help")
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}


def tries(scale):
    return [
        *(Try(f"samples in {encoding}", _encoded(encoding)) for encoding in ENCODINGS),
        Try("a directory that the encoding lacks", _odd_directory),
        *(Try(f"the reader leaves after {lines} lines", _reader_leaves(lines)) for lines in scale.some((0, 1, 3, 30, 60, 62, 64, 66), 3)),
        *(Try(f"a shell: {what}", _in_shell(*SHELL_LINES[what])) for what in scale.some(SHELL_LINES, 2)),
        *(Try(f"python {command} | head -1", _short(command)) for command in scale.some(SHORT_COMMANDS, 1)),
        *(Try(f"PYTHONIOENCODING={encoding}", _environment(PYTHONIOENCODING=encoding)) for encoding in scale.some(("ascii", "cp1252"), 1)),
        *(Try("LC_ALL=C without UTF-8", _environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")) for _ in range(not scale.short)),
    ]


def _encoded(encoding):
    def run(directory, _rng):
        def prepare():
            sys.stdout = open(1, "w", encoding=encoding, closefd=False)

        expect_end(train(directory, SAMPLES, prepare), 0)
        expect_same_bits(directory)

    return run


def _odd_directory(directory, _rng):
    def prepare():
        sys.stdout = open(1, "w", encoding="ascii", closefd=False)
        sys.stderr = open(2, "w", encoding="ascii", closefd=False)

    ended = train(directory, {"-o": "logü"}, prepare)
    expect_end(ended, 0)
    (directory / "logü").rename(directory / "log")
    expect_same_bits(directory)


def _reader_leaves(lines):
    """After so many lines; about sixty are printed before the first step."""

    def run(directory, _rng):
        reading, writing = os.pipe()
        training = Training(directory, LONG, streams=(writing, None))
        os.close(writing)
        with os.fdopen(reading, errors="replace") as pipe:
            for _ in range(lines):
                pipe.readline()
        ended = training.wait()
        expect_end(ended, 130, "stopped")
        if "after 0 steps" not in ended.err and not list((directory / "log").glob("DONE_*")):
            raise Lost(f"there is no checkpoint: {ended}")
        expect_resumable(directory, LONG)

    return run


def _in_shell(redirections, codes):
    """A real Python; the exit code is the trainer's, not that of the last command of a pipe."""

    def run(directory, _rng):
        ended = _shell(directory, f"-m gpt2_numba.train {shlex.join(command_line(LONG))}", redirections)
        expect_exit(ended, codes)
        expect_resumable(directory, LONG)

    return run


def _short(command):
    def run(directory, _rng):
        expect_exit(_shell(directory, command, "| head -1"), (0, 128 + signal.SIGPIPE))

    return run


def _shell(directory, arguments, redirections):
    """(exit code, stdout, stderr) of Python with arguments in a shell line."""
    if not (directory / "data").exists():
        write_data(directory)
    if not os.path.exists("/bin/sh"):
        raise Needs("/bin/sh")
    line = f"({sys.executable} {arguments}; echo $? > code.txt) {redirections}"
    if "|" not in redirections:
        line = f"{sys.executable} {arguments} {redirections}; echo $? > code.txt"
    _, out, err = _output(start(directory, ["/bin/sh", "-c", line], **PIPES))
    return int((directory / "code.txt").read_text()), out, err


def _output(process):
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def expect_exit(ended, codes):
    code, out, err = ended
    if "Traceback" in err or "Error" in err or "Exception ignored" in err:
        raise Lost(f"a traceback: exit code {code}, stderr ends with {err[-600:]!r}")
    if code not in codes:
        raise (Silent if code == 0 else Lost)(f"the exit code should be {codes}: {code}, stdout {out[-200:]!r}, stderr {err[-400:]!r}")


def _environment(**variables):
    def run(directory, _rng):
        write_data(directory)
        command = [sys.executable, "-m", "gpt2_numba.train", *command_line(SAMPLES)]
        expect_exit(_output(start(directory, command, env=variables, **PIPES)), (0,))
        expect_same_bits(directory)

    return run
