"""Compiles the learner's kernels for a GPU, without one: what the simulator accepts may not compile, or compute in float64 unnoticed.

Numba compiles for a GPU only if its simulator is off, so this runs in a process of its own:

    python -m tutorials.check.compiling FILE '{"double_kernel": ["float32 1", "float32 1"]}'

prints {"double_kernel": {"error": "", "float64": [12], "local": []}}: the lines of FILE with float64 arithmetic, and those that put what
looks like a register into memory. Arguments are described by type and
number of axes. Without a compiler it prints {"missing": REASON}.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

COMPUTE_CAPABILITY = (9, 0)


def describe_arguments(arguments):
    """The arguments of a launch in the simulator as text: type and number of axes, such as "float32 2" or, for a number, "int64 0"."""
    return [_describe(getattr(argument, "_item", argument)) for argument in arguments]


def _describe(argument):
    import numpy as np

    array = getattr(argument, "_ary", argument)
    if isinstance(array, (np.ndarray, np.generic)):
        return f"{array.dtype} {array.ndim}"
    name = {bool: "boolean", int: "int64", float: "float64"}.get(type(array), "unknown")
    return f"{name} 0"


def compile_kernels(path, described):
    """{kernel: {"error": first line of Numba's error, "line": its line or None, "float64": lines, "local": lines}}.

    Kernels that are not found are left out.
    """
    from numba import cuda, types
    from numba.cuda import dispatcher

    from tutorials.check.loading import load_module

    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=COMPUTE_CAPABILITY)  # all that the compiler asks it for
    module, results = load_module(path), {}
    kernels = {thing.py_func.__name__: thing.py_func for thing in vars(module).values() if hasattr(thing, "py_func")}
    for name, arguments in described.items():
        if name not in kernels or any(argument.startswith("unknown") for argument in arguments):
            continue
        signature = tuple(_numba_type(types, *argument.split()) for argument in arguments)
        try:
            ptx, _ = cuda.compile_ptx(kernels[name], signature, cc=COMPUTE_CAPABILITY, lineinfo=True)
            results[name] = {"error": "", "line": None, "float64": lines_with(".f64", ptx, path), "local": lines_with(".local", ptx, path)}
        except Exception as error:  # Numba's errors are of many types
            message, line = first_line(str(error))
            results[name] = {"error": message or type(error).__name__, "line": line, "float64": [], "local": []}
    return results


def _numba_type(types, name, axes):
    element = types.boolean if name in ("bool", "boolean") else getattr(types, name)
    return types.Array(element, int(axes), "C") if int(axes) else element


def lines_with(part, ptx, path):
    """The lines of the source with instructions such as ".f64" (float64) or ".local" (memory in place of registers); 0: of no known line."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(.*?)"', ptx, flags=re.M))
    lines, current = set(), 0
    for instruction in ptx.splitlines():
        if place := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", instruction):
            current = int(place[2]) if Path(files.get(place[1], path)).name == Path(path).name else current
        elif part in instruction and not instruction.lstrip().startswith((".reg", "//", ".param")):
            lines.add(current)
    return sorted(lines)


def first_line(message):
    """(what Numba says, the number of the line that it says it of or None), from a message of many lines."""
    place = re.search(r'File "[^"]*", line (\d+)|typing of .* at \S+ \((\d+)\)', message)
    said = [line.strip() for line in message.splitlines() if line.strip()]
    said = [line for line in said if not line.startswith(("Failed in", "File ", "During:", ">>>", "- ", "<source"))]
    first = said[0].removesuffix(" found for signature:") if said else ""
    first = re.sub(r"Function\(<(?:built-in )?function (\w+).*?>\)", r"\1", first)
    return first, int(place[1] or place[2]) if place else None


def missing_compiler():
    """Why nothing can be compiled; "" if it can."""
    try:
        import cuda.bindings.nvrtc
        import cuda.bindings.nvvm
        import numba_cuda  # noqa: F401

        cuda.bindings.nvvm.version()
        cuda.bindings.nvrtc.nvrtcVersion()
    except Exception as error:  # a library may be missing, or not load
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def main(arguments):
    path, described = arguments
    missing = missing_compiler()
    with contextlib.redirect_stdout(io.StringIO()):  # the file may print as it is loaded
        report = {"missing": missing} if missing else compile_kernels(Path(path), json.loads(described))
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
