"""How long the trainer takes from the command to its first step, and where the time goes.

    python -m dev.bench.start [--cold] [--alone] [--out FILE] -- FLAGS OF gpt2_numba.train
    python -m dev.bench.starts                                   several of them, side by side

The training runs one step. --cold gives it an empty cache, without the compiled kernels and other choices kept by earlier runs; --alone no
processes that compile ahead (training/compile_ahead.py). Prints a table; --out also writes it as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path

# Runs in the trainer's process. The GPU's context and cuBLASLt, which would start a little later, are started here to get rows of their
# own.
PROGRAM = """
import json, sys, time
began = last = float(sys.argv[1])
parts, inside = {}, {}

def part(name):
    global last
    now = time.time()
    parts[name], last = parts.get(name, 0) + now - last, now

part("Python starts")
import numpy
part("import NumPy")
from numba import cuda
part("import Numba")
from gpt2_numba import model, train
from gpt2_numba.training import preparation, settings
part("import the trainer")
from gpt2_numba.gpu import cublaslt, kernel_cache
from gpt2_numba.gpu.backend import real_gpu
if real_gpu():
    cuda.current_context()
    part("the GPU's context")
    from nvmath.bindings import cublasLt
    part("import nvmath")
    cublaslt._library()
    part("cuBLASLt's handle")

def timed(home, function, name, before="settings, the rest"):
    work = getattr(home, function)
    def call(*args, **kwargs):
        part(before)
        result = work(*args, **kwargs)
        part(name() if callable(name) else name)
        return result
    setattr(home, function, call)

def counted(home, function, name):
    work = getattr(home, function)
    def call(*args, **kwargs):
        start = time.time()
        result = work(*args, **kwargs)
        number, seconds = inside.get(name, (0, 0))
        inside[name] = number + 1, seconds + time.time() - start
        return result
    setattr(home, function, call)

def timed_weights(tensors):
    for tensor in tensors:
        part("weights: drawn")
        yield tensor
        part("weights: converted and copied")

draw = preparation.draw_initial_weights
preparation.draw_initial_weights = lambda *args: timed_weights(draw(*args))
for function, name in {"make_model": "memory for the model", "make_loaders": "data", "choose_matmuls": "matmul choices"}.items():
    timed(preparation, function, name)

begin = train.StepReports.begin
def first_step_begins(*args):
    part("settings, the rest")
    inside["first step begins"] = 1, last - began
    return begin(*args)
train.StepReports.begin = first_step_begins
passes = {"forward": 0, "backward": 0}
def pass_name(direction):
    def name():
        passes[direction] += 1
        return f"first {direction} pass queued" if passes[direction] == 1 else "other micro-steps queued"
    return name
for method in passes:
    timed(model.GPT2, method, pass_name(method), "first step: batches")
for method in ("zero_grad", "measure", "update"):
    timed(model.GPT2, method, "zeros, norm and update queued", "first step: batches")
timed(train.StepReports, "finish", "waiting for the GPU", "first step: batches")
counted(cublaslt, "_make_plan", "kinds of matmuls planned")
counted(cublaslt, "_search", "of these, algorithm searched")
arguments = sys.argv[3:]
if arguments[0] == "alone":
    preparation.compile_in_background = lambda *_: None
train.train(preparation.choose_machine(settings.parse_settings(arguments[1:])))
kernels = [(use.kernel, use.types, use.loaded, use.seconds) for use in kernel_cache.uses]
open(sys.argv[2], "w").write(json.dumps({"parts": parts, "inside": inside, "kernels": kernels, "problems": kernel_cache.problems}))
"""


def measure(flags, cache=None, alone=False):
    """Start a training with these flags and time it until it reports its first step.

    cache: directory in place of the user's. alone: without processes that compile ahead
    """
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.json")
        environment = dict(os.environ)
        if cache is not None:
            environment |= {"XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": str(cache)}
        start = time.time()
        command = [
            sys.executable,
            "-u",
            "-c",
            PROGRAM,
            repr(start),
            str(report),
            "alone" if alone else "",
            *flags,
            "-x",
            "1",
            "-v",
            "0",
            "-s",
            "0",
        ]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        seconds, line = None, ""
        for line in process.stdout:
            if seconds is None and line.startswith("step "):
                seconds, first = time.time() - start, line.strip()
        if process.wait() or seconds is None:
            raise RuntimeError(f"the training failed (exit code {process.returncode}); its last line: {line.strip()}")
        return {"seconds": seconds, "step": first} | json.loads(report.read_text())


def format_result(result):
    """The result as text: the parts, details within them, and the kernels that took longest."""
    lines, end = [f"{'part':<40}{'seconds':>9}{'sum':>9}"], 0.0
    for name, seconds in result["parts"].items():
        end += seconds
        lines.append(f"{name:<40}{seconds:>9.2f}{end:>9.2f}")
    inside = dict(result["inside"])
    _, begins = inside.pop("first step begins")
    lines += [
        f"{'first step begins after':<40}{begins:>9.2f}",
        f"{'first step reported after':<40}{result['seconds']:>9.2f}",
        "",
        "within the parts:",
    ]
    kernels = sorted(result["kernels"], key=lambda kernel: -kernel[3])
    for was_loaded, what in ((True, "kernels loaded"), (False, "kernels compiled")):
        load_seconds = [seconds for *_, loaded, seconds in kernels if loaded == was_loaded]
        inside[what] = len(load_seconds), sum(load_seconds)
    lines += [f"{number:>4} {name:<35}{seconds:>9.2f}" for name, (number, seconds) in inside.items()]
    lines += [f"     {name:<51}{seconds:>9.2f}" for name, _, _, seconds in kernels[:5]]
    return "\n".join([*lines, *result["problems"]])


def run(argv):
    """Measure as the command line says."""
    parser = Parser(prog="python -m dev.bench.start", doc=__doc__)
    parser.add_argument("--cold", action="store_true", help="with an empty cache")
    parser.add_argument("--alone", action="store_true", help="without processes that compile ahead")
    parser.add_argument("--out", type=user_path, help="file for the result, as JSON")
    parser.add_argument("flags", nargs="+", help="flags of gpt2_numba.train, after --")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as empty:
        result = measure(arguments.flags, empty if arguments.cold else None, arguments.alone)
    print(format_result(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
