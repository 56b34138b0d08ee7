"""All exercises, by name: NN_NAME is described in chapter_NN/NAME.py. The chapter lists them, in the order of the course."""

import dataclasses
import functools
import importlib
import pkgutil


@functools.cache
def chapters():
    """Number of each chapter, such as "03" -> the names of its exercises, without the number."""
    numbers = sorted(module.name.removeprefix("chapter_") for module in pkgutil.iter_modules(__path__))
    return {number: importlib.import_module(f"{__name__}.chapter_{number}").EXERCISES for number in numbers}


def names():
    """The names of all exercises, in the order of the course."""
    return [f"{chapter}_{exercise}" for chapter, exercises in chapters().items() for exercise in exercises]


def find(name):
    """The Exercise of this name. Raises KeyError if there is none."""
    if name not in names():
        raise KeyError(name)
    chapter, _, exercise = name.partition("_")
    module = importlib.import_module(f"{__name__}.chapter_{chapter}.{exercise}")
    return dataclasses.replace(module.EXERCISE, name=name)
