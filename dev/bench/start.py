"""How long the trainer takes from the command to its first step, and where the time goes.

    python -m dev.bench.start [--cold] [--out FILE] -- FLAGS OF gpt2_numba.train

The training makes one step. With --cold it finds no compiled kernels and no other choices that earlier runs have kept: it is given an
empty cache. Prints a table; --out writes it as JSON as well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Runs in the trainer's process. The GPU's context and cuBLASLt would start by themselves a little later: here they get rows of their own.
PROGRAM = """
import json, sys, time
parts, last = {}, float(sys.argv[1])

def part(name):
    global last
    now = time.time()
    parts[name], last = parts.get(name, 0) + now - last, now

part("Python starts")
import numpy, numba
from numba import cuda
part("import NumPy and Numba")
from gpt2_numba import train
part("import the rest")
from gpt2_numba.gpu.backend import real_gpu
if real_gpu():
    cuda.current_context()
    part("the GPU's context")
    from gpt2_numba.gpu import cublaslt
    cublaslt._library()
    part("cuBLASLt")

def timed(name, function):
    def call(*args, **kwargs):
        part("the rest")
        result = function(*args, **kwargs)
        part(name)
        return result
    return call

for name, function in {"memory for the model": "GPT2", "weights": "load_start", "data": "make_loaders", "choice of matmuls": "choose_matmuls"}.items():
    if hasattr(train, function):
        setattr(train, function, timed(name, getattr(train, function)))
train.train(train.choose_machine(train.parse_settings(sys.argv[3:])))
part("first step, with its kernels")
from gpt2_numba.gpu import kernel_cache
kernels = [(use.kernel, use.types, use.loaded, use.seconds) for use in kernel_cache.uses]
open(sys.argv[2], "w").write(json.dumps({"parts": parts, "kernels": kernels, "problems": kernel_cache.problems}))
"""


def measure(flags, cache=None):
    """Start a training with these flags and time it until it tells of its first step. cache: directory in place of the user's."""
    with tempfile.TemporaryDirectory() as directory:
        told = Path(directory, "told.json")
        environment = dict(os.environ)
        if cache is not None:
            environment |= {"XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": str(cache)}
        start = time.time()
        command = [sys.executable, "-u", "-c", PROGRAM, repr(start), str(told), *flags, "-x", "1", "-v", "0", "-s", "0"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        seconds, line = None, ""
        for line in process.stdout:
            if seconds is None and line.startswith("step "):
                seconds, first = time.time() - start, line.strip()
        if process.wait() or seconds is None:
            raise RuntimeError(f"the training failed (exit code {process.returncode}); it said at last: {line.strip()}")
        return {"seconds": seconds, "step": first} | json.loads(told.read_text())


def format_result(result):
    """The parts, and the kernels that took longest, as text."""
    kernels = sorted(result["kernels"], key=lambda kernel: -kernel[3])
    lines = [f"{name:<40}{seconds:8.2f} s" for name, seconds in result["parts"].items()]
    lines += [f"{'from the command to the first step':<40}{result['seconds']:8.2f} s", ""]
    for was_loaded, what in ((True, "loaded"), (False, "compiled")):
        of_these = [seconds for *_, loaded, seconds in kernels if loaded == was_loaded]
        lines.append(f"{len(of_these):>3} kernels {what:<28}{sum(of_these):8.2f} s")
    lines += [f"    {name:<52}{seconds:8.2f} s" for name, _, _, seconds in kernels[:5]]
    return "\n".join([*lines, *result["problems"]])


def main(argv):
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dev.bench.start", description=__doc__.split("\n")[0])
    parser.add_argument("--cold", action="store_true", help="with an empty cache")
    parser.add_argument("--out", type=Path, help="file for the result, as JSON")
    parser.add_argument("flags", nargs="+", help="flags of gpt2_numba.train, after --")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as empty:
        result = measure(arguments.flags, empty if arguments.cold else None)
    print(format_result(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
