"""Which hint is shown: one that fits the failure, and a further one each time the learner fails again.

What has been shown is kept in a small file, in the user's cache or, where that cannot be written, in a temporary directory.
"""

import json
import os
import tempfile
from pathlib import Path

# Hints for failures that are the same in every exercise.
GENERAL = {
    "file": ("The learner's files are in tutorials/exercises; --file checks another one.",),
    "syntax": ("Look at that line and at the one before it: a bracket or a colon may be missing there.",),
    "load": ("The file is run once before anything is checked: what stands outside of its functions must run by itself.",),
    "function": ("The name and the parameters are given, so that the check can call the function: leave that line as it was.",),
    "error": ("In the simulator you can print inside a kernel: the check shows the first lines that are printed.",),
    "launch": ("kernel[blocks, threads](...) launches `blocks` blocks of `threads` threads; both must be whole numbers of at least 1.",),
    "not launched": ("Defining a kernel runs nothing: the function must launch it, kernel[blocks, threads](...).",),
    "bounds": ("On a GPU nothing stops a thread there, it reads or writes some other array. Which threads have nothing to do?",),
    "race": ("Between a write and another thread's read or write of the same element there must be a barrier.",),
    "barrier": ("Every thread of a block must reach every barrier: put none under a condition that differs between threads.",),
    "input": ("A function may only write to its outputs.",),
    "host": ("Outside of a kernel, Python computes, not the GPU.",),
    "shared": ("values = cuda.shared.array(SIZE, float32) makes an array that all threads of a block see.",),
    "accesses": ("A thread should do its own part only: which of these accesses belong to other threads, or are made twice?",),
    "compile": ("A kernel may use numbers, arrays, tuples, loops and math functions, but neither lists nor most of NumPy.",),
    "float64": ("A bare 0.0 is float64, and so is what it is added to: make it a constant outside of the kernel, np.float32(0).",),
    "local": ("Registers have no index: a local array is in registers only if each of its indices is known when the kernel is compiled.",),
    "compiler": ("The compiler comes with the extra `tutorials` and needs no GPU.",),
    "time": (
        "Does every loop come to its end? In the simulator an operation takes a thread microseconds. (On a busy machine, try again.)",
    ),
    "crash": ("Take out what you added last, until it runs again.",),
}
ALONE = {"file", "syntax", "load", "function", "compiler", "crash", "time"}  # kinds that an exercise's general hints do not fit


def fitting(failure_kind, own_hint, exercise_hints):
    """All hints for a failure, the one to show first first."""
    special = [own_hint] if own_hint else []
    special += exercise_hints.get(failure_kind, ())
    general = () if failure_kind in ALONE else exercise_hints.get("", ())
    return list(dict.fromkeys([*special, *GENERAL.get(failure_kind, ()), *general]))


def next_hint(exercise, hints):
    """The first of these hints that has not been shown, and how many are left after it; ("", 0) when all have been shown."""
    state = _read()
    shown = state.setdefault(exercise, [])
    fresh = [hint for hint in hints if hint not in shown]
    if not fresh:
        return "", 0
    shown.append(fresh[0])
    _write(state)
    return fresh[0], len(fresh) - 1


def forget(exercise):
    """Begin again with the first hint: the exercise has been solved."""
    state = _read()
    if state.pop(exercise, None):
        _write(state)


def _directories():
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~")) / ".cache"
    return cache / "gpt2_numba" / "tutorials", Path(tempfile.gettempdir()) / f"gpt2_numba_tutorials_{getattr(os, 'getuid', int)()}"


def _read():
    """Exercise -> hints that have been shown; empty if there is no such file, or a damaged one."""
    for directory in _directories():
        try:
            state = json.loads((directory / "hints.json").read_text(encoding="utf-8"))
            if isinstance(state, dict) and all(isinstance(shown, list) for shown in state.values()):
                return state
        except (OSError, ValueError):
            continue
    return {}


def _write(state):
    for directory in _directories():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            unfinished = directory / f"hints.{os.getpid()}"
            unfinished.write_text(json.dumps(state), encoding="utf-8")
            os.replace(unfinished, directory / "hints.json")
            return
        except OSError:
            continue
