"""All exercises, by name: NN_NAME is described in chapter_NN/NAME.py."""

import dataclasses
import importlib

# In the order of the course.
CHAPTERS = {
    "00": (
        "double", "many_blocks", "2d", "shift", "coalesced", "shared_reverse", "block_sum", "find_the_barrier", "row_sum", "float32",
    ),
}  # fmt: skip


def names():
    """The names of all exercises, in the order of the course."""
    return [f"{chapter}_{exercise}" for chapter, exercises in CHAPTERS.items() for exercise in exercises]


def find(name):
    """The Exercise of this name. Raises KeyError if there is none."""
    if name not in names():
        raise KeyError(name)
    chapter, _, exercise = name.partition("_")
    module = importlib.import_module(f"tutorials.check.exercises.chapter_{chapter}.{exercise}")
    return dataclasses.replace(module.EXERCISE, name=name)
