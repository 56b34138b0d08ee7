"""Tries, their verdicts, and the row of the table that a drill makes of them.

A drill is a module with a function `tries(scale)`, which returns a list of Try. A try that ends survived; one that finds a fault raises
Lost or Silent, and one that this machine cannot do raises Needs.
"""

import importlib
import random
import shlex
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HEADER = "| drill      | tried | survived | lost | silent | notes |\n| ---------- | ----: | -------: | ---: | -----: | ----- |"


class Lost(Exception):
    """Work that should have been kept is gone, or a run ended in another way than with one line and the right exit code."""


class Silent(Exception):
    """Something wrong was accepted, or something was not done, without a word."""


class Needs(Exception):
    """This machine lacks what the try needs; the message says what, such as "root"."""


@dataclass(frozen=True)
class Try:
    """One try of a drill.

    what  what is done, in words
    run   function (directory, rng): an empty directory of its own, and a random.Random that depends on the seed and on the try's number
          only. Returns the number of faults tried; None is one
    """

    what: str
    run: Callable


@dataclass(frozen=True)
class Scale:
    """How much a drill tries: everything, with `times` as many random tries, or a few of each (`short`)."""

    times: float = 1.0
    short: bool = False

    def random(self, count, short):
        """The number of random tries: `count` in the long form, times `times`; `short` in the short form."""
        return short if self.short else max(1, round(count * self.times))

    def some(self, items, short):
        """All items, or `short` of them in even steps."""
        items = list(items)
        if not self.short or len(items) <= short:
            return items
        return [items[index * len(items) // short] for index in range(short)]


@dataclass
class Row:
    """The result of a drill."""

    drill: str
    command: str  # what repeats the drill, without --only
    tried: int = 0
    survived: int = 0
    lost: int = 0
    silent: int = 0
    failures: list = field(default_factory=list)  # (verdict, number, what, why)
    needs: dict = field(default_factory=dict)  # what is missing -> number of tries

    @property
    def passed(self):
        return self.lost == self.silent == 0

    def __str__(self):
        notes = "; ".join(f"needs {what} ({count} not tried)" for what, count in self.needs.items())
        return f"| {self.drill:<10} | {self.tried:5d} | {self.survived:8d} | {self.lost:4d} | {self.silent:6d} | {notes} |"

    def details(self, extra_flags=()):
        """For each failure a line that says what was tried and what came of it, and one with the command that repeats it."""
        extra = f" -- {shlex.join(extra_flags)}" if extra_flags else ""
        for verdict, number, what, why in self.failures:
            yield f"\n{verdict}: {self.drill} {number}, {what}: {why}\n    {self.command} --only {number}{extra}"


def run_drill(name, scale, seed=1, only=None):
    """Run a drill, or its try number `only` alone. Returns its Row."""
    command = f"python -m dev.drills {name} --seed {seed}"
    command += " --short" if scale.short else f" --times {scale.times:g}" * (scale.times != 1)
    row = Row(name, command)
    try:
        tries = importlib.import_module(f"dev.drills.{name}").tries(scale)
    except Needs as missing:
        row.needs[str(missing)] = 1
        return row
    for number, attempt in enumerate(tries):
        if only is None or number == only:
            _run_try(row, number, attempt, random.Random(f"{seed} {name} {number}"))
    return row


def _run_try(row, number, attempt, rng):
    with tempfile.TemporaryDirectory(prefix="drill_") as directory:
        try:
            count = attempt.run(Path(directory), rng)
        except Needs as missing:
            row.needs[str(missing)] = row.needs.get(str(missing), 0) + 1
            return
        except Silent as why:
            row.tried, row.silent = row.tried + 1, row.silent + 1
            row.failures.append(("silent", number, attempt.what, why))
        except Lost as why:
            row.tried, row.lost = row.tried + 1, row.lost + 1
            row.failures.append(("lost", number, attempt.what, why))
        except Exception:  # a fault of the drill, which must not pass for a success
            row.tried, row.lost = row.tried + 1, row.lost + 1
            row.failures.append(("lost", number, attempt.what, f"the drill itself failed\n{traceback.format_exc()}"))
        else:
            row.tried, row.survived = row.tried + (count or 1), row.survived + (count or 1)
