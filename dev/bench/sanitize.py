"""NVIDIA's compute-sanitizer on a small training of every attention engine: memcheck, synccheck, racecheck.

    python -m dev.bench.sanitize --out sanitize.txt      # on a GPU; pip install nvidia-cuda-sanitizer-api, or a CUDA toolkit

It sees each thread: addresses outside an allocation, barriers that not all threads reach, races in shared memory. What it cannot see, since
all arrays lie in one allocation, `--guards on` does (gpu/guards.py). initcheck is left out: it does not know what cuBLASLt writes.

Each engine trains for two steps at lengths that end inside a tile, first without the sanitizer, so that its kernels are compiled, then
under each tool, several at a time. The last lines of each run are kept.

synccheck and racecheck leave cuDNN's kernels out, which are not this project's: in them they report barriers and races that they do not
follow (cuDNN 9.19 on an H200: 108 and 28, in kernels named cudnn_generated_* only).
"""

import glob
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import real_gpu

TOOLS = ("memcheck", "synccheck", "racecheck")
KEPT_LINES = 6
FOUND = 77  # the exit code of a run in which the sanitizer has found something
TIMEOUT = 200  # seconds
LEFT_OUT = ["--kernel-name-exclude", "kernel_substring=cudnn_generated"]
COMMON = "-b 2 -t 67 -x 2 -v 0 -s 0 -d 268 --final-checkpoint off --graph off --matmul-search off --device gpu".split()
# engine -> flags. Heads of 64 use wgmma on Hopper; -r 2 recomputes LayerNorms, too.
ENGINES = {
    "plain": "-e L=1,NH=2,C=48,T=67 --kernels plain",
    "matmuls": "-e L=1,NH=2,C=128,T=67 --precision fp32 -f 0",
    "tf32": "-e L=1,NH=2,C=128,T=67 --precision fp32 -f 1 -r 2",
    "mma": "-e L=1,NH=2,C=160,T=67 --precision bf16 --attention numba",
    "wgmma": "-e L=1,NH=2,C=128,T=67 --precision bf16 --attention numba -r 2 -ge 0",
    "cudnn": "-e L=1,NH=2,C=128,T=67 --precision bf16 --attention cudnn",
}


def find_sanitizer():
    """The path of compute-sanitizer: on the PATH, in a CUDA toolkit, or from the wheel. Raises UserError if there is none."""
    packages = sysconfig.get_paths()["purelib"]
    patterns = ("/usr/local/cuda*/bin/compute-sanitizer", f"{packages}/nvidia/**/compute-sanitizer")
    places = [shutil.which("compute-sanitizer"), *(path for pattern in patterns for path in glob.glob(pattern, recursive=True))]
    found = next((path for path in places if path and Path(path).is_file()), None)
    if found is None:
        raise UserError("compute-sanitizer must be installed, and is not: pip install nvidia-cuda-sanitizer-api, or give --sanitizer PATH")
    return found


def training(engine, log_dir):
    """The command of an engine's training."""
    return [sys.executable, "-m", "gpt2_numba.train", *ENGINES[engine].split(), *COMMON, "-o", str(log_dir)]


def attempt(command):
    """(exit code, output, seconds) of a command; code None: it has taken too long."""
    begin = time.monotonic()
    try:
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
        return done.returncode, done.stdout, time.monotonic() - begin
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        return None, output.decode(errors="replace") if isinstance(output, bytes) else output, time.monotonic() - begin


def sanitize(engine, tool, sanitizer, log_dir):
    """Run an engine's training under a tool. Returns (verdict, the last lines)."""
    left_out = LEFT_OUT if tool != "memcheck" else []
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20", *left_out, *training(engine, log_dir)]
    code, output, seconds = attempt(command)
    lines = output.strip().splitlines()
    summary = next((line.strip("= ") for line in reversed(lines) if "SUMMARY" in line), "no summary")
    verdict = "ok" if code == 0 and "SUMMARY" in summary else "too slow" if code is None else f"FAILED, exit code {code}"
    print(f"{engine:<8} {tool:<10} {seconds:6.1f} s  {verdict}: {summary}", flush=True)
    return verdict, lines if code == FOUND else lines[-KEPT_LINES:]


def run(argv):
    """Run all engines under all tools. Returns the exit code: 1 if anything was found."""
    parser = Parser(prog="python -m dev.bench.sanitize", description="compute-sanitizer on every attention engine.")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--at-once", type=int, default=6, metavar="N", help="runs at the same time (default: 6)")
    parser.add_argument("--sanitizer", metavar="PATH", help="compute-sanitizer (default: searched for)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the last lines of each run")
    arguments = parser.parse_args(argv)
    if not real_gpu():
        raise UserError("compute-sanitizer needs a GPU")
    return run_all(arguments.engines, arguments.tools, arguments.sanitizer or find_sanitizer(), arguments.at_once, arguments.out)


def run_all(engines, tools, sanitizer, at_once, out):
    """The same, without the command line."""
    if "cudnn" in engines and importlib.util.find_spec("cudnn") is None:
        print("cudnn    is left out: it is not installed")
        engines = [engine for engine in engines if engine != "cudnn"]
    with ThreadPoolExecutor(at_once) as pool, tempfile.TemporaryDirectory() as directory:
        compiled = dict(zip(engines, pool.map(lambda engine: attempt(training(engine, f"{directory}/{engine}")), engines)))
        broken = [engine for engine, (code, *_) in compiled.items() if code != 0]
        for engine in broken:
            print(f"{engine:<8} fails without the sanitizer: {compiled[engine][1].strip().splitlines()[-1:]}")
        pairs = [(engine, tool) for tool in tools for engine in engines if engine not in broken]
        results = list(pool.map(lambda pair: sanitize(*pair, sanitizer, "/".join((directory, *pair))), pairs))
    if out:
        parts = [f"## {engine}, {tool}: {verdict}\n\n" + "\n".join(lines) for (engine, tool), (verdict, lines) in zip(pairs, results)]
        out.write_text("\n\n".join(parts) + "\n")
    return int(bool(broken) or any(verdict != "ok" for verdict, _ in results))


def main(argv):
    """The command line. Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
