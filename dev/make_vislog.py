"""Make dev/vislog.ipynb from dev/vislog.py, with its outputs:  python -m dev.make_vislog   (needs the `tutorials` extra)"""

from pathlib import Path

from gpt2_numba.command_line import exit_code, main_program
from tutorials.make_notebooks import execute

SOURCE = Path(__file__).with_name("vislog.py")


def run(argv):
    """Write the notebook."""
    SOURCE.with_suffix(".ipynb").write_text(execute(SOURCE), encoding="utf-8", newline="\n")


def main(argv):
    """The program; returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
