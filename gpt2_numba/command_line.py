"""Shared by the command lines: a user's mistake gives one line on stderr and exit code 2, never a traceback or a page of usage."""

import argparse
import os
import sys
from pathlib import Path

from gpt2_numba import console
from gpt2_numba.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError for a wrong command line."""

    def __init__(self, *, doc=None, **options):
        """doc: the program's docstring, whose first line becomes the description; `python -OO` leaves None of it."""
        if doc:
            options["description"] = doc.partition("\n")[0]
        super().__init__(**options)

    def error(self, message):
        raise UserError(f"{message}: see {self.prog} --help")


def user_path(text):
    """The path that a user has typed, with ~ replaced by their home: a shell leaves that to the program in --out=~/data."""
    return Path(os.path.expanduser(text))  # of an unknown user, ~name remains as it is


def file_name(name):
    """`name`, if it can begin the name of a file; for argparse."""
    if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise argparse.ArgumentTypeError(f"must be a file name without a directory, got {name!r}")
    return name


def exit_code(run, argv):
    """Call run(argv), the body of a program. Returns its result, 0 for None, or 2 after printing a UserError."""
    try:
        return run(argv) or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def one_line(message):
    """The message with control characters escaped: a file name may contain a newline, or a terminal's escape sequence."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(message))


def main_program(main, outlives_pipe=False):
    """Run main(argv) as this process's program, and exit with the code that it returns; 130 after Ctrl-C.

    outlives_pipe   see console.prepare_streams: whether the program goes on when the reader of its output goes away
    """
    console.prepare_streams(outlives_pipe)
    try:
        console.raise_at_ctrl_c()
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        console.exit_at_ctrl_c()
        print("stopped by Ctrl-C", file=sys.stderr)
        code = console.INTERRUPTED
    console.exit_at_ctrl_c()
    sys.exit(code)
