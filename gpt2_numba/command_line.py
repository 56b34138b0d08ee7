"""Shared by the command lines: a user's mistake gives one line on stderr and exit code 2, never a traceback or a page of usage."""

import argparse
import sys

from gpt2_numba.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError for a wrong command line."""

    def error(self, message):
        raise UserError(f"{message}: see {self.prog} --help")


def exit_code(run, argv):
    """Call run(argv), the body of a program. Returns its result, 0 for None, or 2 after printing a UserError."""
    try:
        return run(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
