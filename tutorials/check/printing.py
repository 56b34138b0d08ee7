"""Prints a Verdict for the learner."""

import textwrap

from tutorials.check import drawing, hints
from tutorials.check.processes import ROOT

WIDTH = 100


def print_verdict(verdict, draw=False):
    """Print a Verdict, with a hint if it is a failure. draw: every picture, not only those that the exercise asks for."""
    if verdict.printed.strip():
        print("your code printed:\n" + textwrap.indent(verdict.printed.rstrip("\n"), "    "))
    if verdict.passed:
        hints.forget(_key(verdict))
        print(f"pass: {verdict.exercise}, {verdict.message}")
        if verdict.table:
            print(textwrap.indent(verdict.table, "  "))
        for note in verdict.notes:
            print(wrapped(note))
    else:
        print(f"not yet: {verdict.exercise}" + (f", with {verdict.size}" if verdict.size else ""))
        print(wrapped(verdict.message))
    for picture in verdict.all_pictures if draw and verdict.all_pictures else verdict.pictures:
        drawing.show(drawing.from_json(picture))
    if not verdict.passed:
        print_hint(verdict)


def print_hint(verdict):
    fitting = hints.fitting(verdict.failure, verdict.own_hint, verdict.hints)
    if verdict.failure in hints.ALONE:  # it says nothing about the exercise, so the same hint fits again
        print(wrapped(f"hint: {fitting[0]}"))
        return
    hint, left = hints.next_hint(_key(verdict), fitting)
    if hint:
        print(wrapped(f"hint: {hint}" + (f" ({left} more)" if left else "")))
    else:
        solution = ROOT / "tutorials" / "solutions" / f"{verdict.exercise}.py"
        print(wrapped(f"These were all the hints for it. A solution: {solution.relative_to(ROOT).as_posix()}"))


def wrapped(text):
    """The text filled to WIDTH, indented by two; lines of code, which are indented already, as they are."""
    lines = []
    for line in text.splitlines():
        lines += (
            [f"  {line}"]
            if line.startswith(" ")
            else textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        )
    return "\n".join(lines)


def _key(verdict):
    """Under which the shown hints are kept: another file begins with the first hint."""
    return f"{verdict.exercise} {verdict.path}"
