"""Quote the package in a chapter, so that the text cannot drift from the code: what is shown is read from the file that is tested.

    quote(layernorm_backward_ref)       prints where the function is, and its source

tests/test_tutorials_chapters.py compares what a notebook shows with the file it names.
"""

import inspect
from pathlib import Path

import gpt2_numba

ROOT = Path(gpt2_numba.__file__).resolve().parents[1]


def quotation(function):
    """The text that `quote` prints: a comment with the file of the function, relative to the repository, then its source."""
    function = getattr(function, "py_func", function)  # a kernel, or a function compiled by Numba, keeps the Python one here
    file = Path(inspect.getsourcefile(function)).resolve().relative_to(ROOT).as_posix()
    return f"# {file}\n\n{inspect.getsource(function)}"


def quote(*functions):
    """Print the source of functions of the package, each under the name of its file."""
    print("\n\n".join(quotation(function).rstrip() for function in functions))
