"""Checks a file: in one process the learner's code runs in the simulator, in another it is compiled. Puts their reports together."""

import difflib
import json
from pathlib import Path

from gpt2_numba.errors import UserError
from tutorials.check.exercises import names
from tutorials.check.processes import ROOT, run_module
from tutorials.check.verdict import Verdict

SECONDS = 30  # for the learner's code at all sizes; the simulator needs about one
SPARE_SECONDS = 8  # for the process to start, and to end by itself when the time is over
COMPILER_SECONDS = 90
INSTALL = "pip install -e '.[tutorials]'"


def own_file(name):
    """The learner's file of an exercise."""
    return ROOT / "tutorials" / "exercises" / f"{name}.py"


def run(name, file=None, seconds=SECONDS):
    """Check an exercise. Returns a Verdict. Raises UserError for a name that no exercise has."""
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1)
        raise UserError(f"there is no exercise {name!r}: --list prints all names" + (f"; did you mean {near[0]}?" if near else ""))
    verdict = simulate(name, Path(file).resolve() if file is not None else own_file(name), seconds)
    if verdict.passed and verdict.kernels:
        look_at_compiled_code(verdict)
    return verdict


def simulate(name, path, seconds):
    """The Verdict of worker.py, which runs the learner's code in the simulator."""
    reports, code = run_module("tutorials.check.worker", [name, str(path), str(seconds)], seconds + SPARE_SECONDS, simulator=True)
    report = {}
    for fields in reports:
        report.update(fields)
    verdict = Verdict(name, path, failure=report.get("kind", ""), message=report.get("message", ""), size=report.get("size", ""))
    if "kind" not in report:  # the process did not come to its end
        verdict.failure = "time" if code is None else "crash"
        verdict.message = (
            f"it was still running after {seconds:g} seconds"
            if code is None
            else f"the process of your code ended without a word (exit code {code})"
        )
    for name in (
        "hints",
        "own_hint",
        "printed",
        "table",
        "pictures",
        "all_pictures",
        "notes",
        "kernels",
        "float64_refused",
        "local_refused",
    ):
        if name in report:
            setattr(verdict, name, report[name])
    return verdict


def look_at_compiled_code(verdict):
    """Compile the kernels for a GPU: may turn a pass into a failure, or add notes."""
    arguments = [str(verdict.path), json.dumps(verdict.kernels)]
    reports, code = run_module("tutorials.check.compiling", arguments, COMPILER_SECONDS, simulator=False)
    report = reports[-1] if reports else {"missing": "", "failed": f"the compiler's process failed (exit code {code})"}
    if "missing" in report:
        without_compiler(verdict, report.get("failed", f"that takes a compiler, but no GPU: {INSTALL}"))
        return
    for kernel, result in report.items():
        if result["error"]:
            message = f"it runs in the simulator, but Numba cannot compile {kernel}: {result['error']}"
            verdict.fail("compile", "\n".join([message, *quoted(verdict.path, [result["line"]])]))
            return
    in_memory = sorted({line for result in report.values() for line in result["local"]})
    if verdict.local_refused and in_memory:
        message = "an array of a thread's own is not in registers, but in memory, which is as far away as inp:"
        verdict.fail("local", "\n".join([message, *quoted(verdict.path, in_memory)]))
        return
    if any(result["float64"] for result in report.values()):
        found_float64(verdict, sorted({line for result in report.values() for line in result["float64"]}))
    else:
        verdict.notes.append("compiled for a GPU: no float64")


def without_compiler(verdict, reason):
    """The verdict where nothing could be compiled: a pass that looked at less, unless the exercise is about compiled code."""
    if "float64" in verdict.hints:
        verdict.fail("compiler", f"it is right in the simulator, but this exercise is about compiled code; {reason}")
    else:
        verdict.notes.append(f"not looked for: float64, and whether it compiles for a GPU; {reason}")


def found_float64(verdict, lines):
    message = "\n".join(["it computes in float64, 8 bytes where 4 will do:", *quoted(verdict.path, lines)])
    if verdict.float64_refused:
        verdict.fail("float64", message)
    else:
        verdict.notes.append(f"{message}\nThat does not count here: exercise 00_float32 is about it.")


def quoted(path, numbers):
    """These lines of a file, numbered; 0 and None are no lines."""
    text = path.read_text(encoding="utf-8").splitlines()
    return [f"    line {number}: {text[number - 1].strip()}" for number in numbers if number]
