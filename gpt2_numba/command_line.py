"""What the small command lines share: a user's mistake is one line on stderr and exit code 2, never a traceback or a page of usage."""

import argparse
import sys

from gpt2_numba.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints as a UserError."""

    def error(self, message):
        raise UserError(f"{message}: see {self.prog} --help")


def exit_code(run, argv):
    """run(argv), a program's body; returns what it returns, 0 for None, or 2 after printing a UserError."""
    try:
        return run(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
