"""The command: python -m tutorials.check NAME."""

from gpt2_numba.command_line import Parser, exit_code
from gpt2_numba.errors import UserError
from tutorials.check import check
from tutorials.check.exercises import names


def main(argv):
    """Run the command. Returns its exit code: 0 for a pass, 1 for a failure, 2 for a wrong command line."""
    return exit_code(_run, argv)


def _run(argv):
    parser = Parser(prog="python -m tutorials.check", doc="Check a solved exercise.", allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="the exercise, such as 00_double")
    parser.add_argument("--file", help="check this file (default: tutorials/exercises/NAME.py)")
    parser.add_argument("--list", action="store_true", help="print the names of all exercises")
    parser.add_argument("--draw", action="store_true", help="draw who touches what in every array")
    chosen = parser.parse_args(argv)
    if chosen.list:
        print("\n".join(names()))
        return 0
    if chosen.name is None:
        raise UserError("an exercise is needed, such as 00_double: --list prints all names")
    return 0 if check(chosen.name, file=chosen.file, draw=chosen.draw) else 1
