"""Which of GPT-2's layer functions has the learner written? Their exercises, each with what the check says about it."""

import ast
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.kernel_sets import FUNCTIONS
from tutorials.check.exercises import find, names
from tutorials.check.layer_exercises import LayerExercise
from tutorials.check.running import SECONDS, run
from tutorials.make_exercises import skeleton, solution_file

# What an exercise can be.
NOT_BEGUN, WRONG, SOLVED = "not begun", "not right yet", "solved"
MOST_CHECKS = 8  # at a time
LAYERS = {}  # name -> its functions, in the order of a training step
for _name, _function in FUNCTIONS.items():
    LAYERS.setdefault(_function.__module__.split(".")[2], []).append(_name)


@dataclass
class Attempt:
    """The learner's file of an exercise that is one of GPT-2's functions."""

    name: str  # of the exercise
    function: str
    path: Path
    state: str = NOT_BEGUN
    message: str = ""  # what is wrong, in a line

    @property
    def text(self):
        return self.path.read_text(encoding="utf-8")


def layer_exercises():
    """Name -> function, of the exercises that are GPT-2's functions, in the order of the course."""
    exercises = {name: find(name) for name in names()}
    return {name: exercise.function for name, exercise in exercises.items() if isinstance(exercise, LayerExercise)}


def attempts(directory, check=True, report=lambda attempt: None):
    """The Attempts in a directory, in the order of the course.

    check    run the check of each that has been begun; otherwise what has been begun counts as solved
    report   called with each that has been checked
    Raises UserError if there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"--exercises must be a directory, such as tutorials/exercises, got {directory}")
    found = [Attempt(name, function, directory / f"{name}.py") for name, function in layer_exercises().items()]
    begun = [attempt for attempt in found if has_begun(attempt)]
    if check:
        check_all(begun, report)
    else:
        for attempt in begun:
            attempt.state, attempt.message = judge_by_its_text(attempt)
    return found


def has_begun(attempt):
    """Whether there is a file other than the exercise as it was given."""
    try:
        return attempt.path.is_file() and attempt.text != skeleton(solution_file(attempt.name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return True  # the check says what is wrong with it


def check_all(begun, report):
    """Check several Attempts at a time, each in a process of its own."""
    with ThreadPoolExecutor(max(1, min(MOST_CHECKS, os.cpu_count() or 1))) as pool:
        try:
            running = {pool.submit(judge, attempt): attempt for attempt in begun}
            for done in as_completed(running):
                attempt = running[done]
                attempt.state, attempt.message = done.result()
                report(attempt)
        finally:
            pool.shutdown(cancel_futures=True)


def judge(attempt):
    """(state, message): what the check says."""
    verdict = run(attempt.name, attempt.path, 2 * SECONDS)  # others are running beside it
    if verdict or verdict.failure == "compiler":  # it is right, but nothing has looked for float64, which would only be slow
        return judge_by_its_text(attempt)
    where = f"with {verdict.size}: " if verdict.size else ""
    return WRONG, where + " ".join(verdict.message.split())


def judge_by_its_text(attempt):
    """(state, message) without running it: the function must be defined, not imported from the package."""
    try:
        tree = ast.parse(attempt.text)
    except (OSError, SyntaxError, ValueError) as error:
        return WRONG, f"it cannot be read: {error}"
    statements = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    if any(getattr(node, "name", "") == attempt.function for node in statements):
        return SOLVED, ""
    return WRONG, f"it does not define {attempt.function} with `def`"


def chosen(found):
    """Function -> the Attempt that counts: the last one that is solved."""
    return {attempt.function: attempt for attempt in found if attempt.state == SOLVED}


def whole_layers(solved):
    """The layers of which all functions are the learner's."""
    return [layer for layer, functions in LAYERS.items() if all(function in solved for function in functions)]
