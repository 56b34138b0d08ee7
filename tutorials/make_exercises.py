"""Writes the learner's files: python -m tutorials.make_exercises [NAME ...]

A skeleton is its solution with the lines taken out that stand between `# your lines:` and `# end of your lines`, and nothing else. A file
that a learner has changed is not overwritten, unless --again is given: then the exercise begins again.
"""

from pathlib import Path

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError
from tutorials.check.exercises import names

HERE = Path(__file__).resolve().parent
BEGIN, END = "# your lines:", "# end of your lines"


def skeleton(solution):
    """The text of a solution without the learner's lines. Raises ValueError if the comments around them do not match."""
    lines, inside = [], False
    for line in solution.splitlines(keepends=True):
        if line.strip() in (BEGIN, END):
            if inside == (line.strip() == BEGIN):
                raise ValueError(f"{line.strip()!r} does not match the comment before it")
            inside = not inside
        elif inside:
            continue
        lines.append(line)
    if inside:
        raise ValueError(f"{END!r} is missing")
    return "".join(lines)


def solution_file(name):
    return HERE / "solutions" / f"{name}.py"


def exercise_file(name):
    return HERE / "exercises" / f"{name}.py"


def main(argv):
    return exit_code(_run, argv)


def _run(argv):
    parser = Parser(prog="python -m tutorials.make_exercises", doc=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="exercises (default: all)")
    parser.add_argument("--again", action="store_true", help="overwrite files that have been changed")
    chosen = parser.parse_args(argv)
    for name in chosen.names or names():
        if name not in names():
            raise UserError(f"there is no exercise {name!r}: python -m tutorials.check --list prints all names")
        text, path = skeleton(solution_file(name).read_text(encoding="utf-8")), exercise_file(name)
        if path.exists() and path.read_text(encoding="utf-8") != text and not chosen.again:
            print(f"{path.name} has been changed and stays as it is (--again overwrites it)")
            continue
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main_program(main)
