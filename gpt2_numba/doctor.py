"""What this machine has, what is missing or too old, and the command that fixes it:  python -m gpt2_numba.doctor

A line begins with [ok], with [!!] for what a run needs and does not find, or with [--] for what it can do without (machine_checks.py). Exit
code: 0 if no line has [!!] and no check failed, otherwise 1; 2 for a mistake in the command line.

With --check it also checks every layer and prints tables of the largest errors: the NumPy references against finite differences, and both
sets of kernels, plain and fast, against the references, on the GPU or, without one, in Numba's simulator at tiny sizes.

With --warm it compiles the trainer's kernels for this machine's GPU and stores them on disk (gpu/kernel_cache.py), so that a training
starts at once. It uses several processes, since Numba compiles one kernel at a time in a process. Without it the first training of its kind
has its kernels compiled while it prepares (training/compile_ahead.py).

With --verify DIR it checks the files of all checkpoints in a log directory instead, and prints a line for each (training/verification.py).
"""

import contextlib
import io
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu
from gpt2_numba.machine_checks import BAD, findings

WARM_MODELS = ("d12", "d48")  # some kernels are specialised for the number of channels: those of other models are compiled on first use
MAX_PROCESSES = 16  # each takes half a GiB of GPU memory


def examine():
    """Print what this machine has, a line for each check. Returns True if nothing that a run needs is missing, too old or wrong."""
    all_ok = True
    for finding in findings():
        print(finding, flush=True)  # a later check may take seconds
        all_ok = all_ok and finding.state != BAD
    return all_ok


# --------------------------------------------------------------------------------------- kernels, compiled in advance


def warm_tasks(models, precisions):
    """Tasks (precision, model, layer) that together compile every kernel, layers first; layer None is one step of the trainer itself."""
    from gpt2_numba.layer_checks import LAYERS

    return [(precision, model, layer) for layer in (*LAYERS, None) for precision in precisions for model in models]


def warm_layer(precision, model, layer):
    """Call a layer's fast functions once, on a few tokens, with the channels and heads of a model."""
    from gpt2_numba.config import parse_descriptor
    from gpt2_numba.gpu.backend import synchronize
    from gpt2_numba.layer_checks import kernel_calls
    from gpt2_numba.layer_checks.all_layers import STORAGE
    from gpt2_numba.layer_checks.running import GuardedArray
    from gpt2_numba.layer_checks.sizes import Sizes

    config = parse_descriptor(model)
    sizes = Sizes(B=1, T=64, C=config.C, NH=config.NH, V=config.V, Vp=config.Vp, OC=4 * config.C)
    for call in kernel_calls(layer, sizes, STORAGE[precision]):
        arrays = {name: GuardedArray(tensor, STORAGE[precision]).array for name, tensor in call.tensors.items()}
        call.launch(SimpleNamespace(**arrays))
    synchronize()


def warm_trainer(precision, model, _):
    """Train one block of a model for one step on a few bytes of the built-in corpus, and validate it."""
    from gpt2_numba.config import parse_descriptor
    from gpt2_numba.train import run

    config = parse_descriptor(model)
    flags = f"-e L=1,NH={config.NH},C={config.C} -b 1 -t 64 -x 1 -v 1 -m 1 -s 0 --device gpu --precision {precision} --matmul-search off"
    with tempfile.TemporaryDirectory() as directory:
        run([*flags.split(), "-o", directory])


def warm_task(task):
    """Run one task in a process of the pool. Returns the uses of kernels (kernel_cache.Use), and the problems as lines of text."""
    from gpt2_numba.gpu import kernel_cache

    seen = len(kernel_cache.uses)
    kernel_cache.problems.clear()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            (warm_layer if task[-1] else warm_trainer)(*task)
    except Exception as error:  # whatever it is, the other kernels can still be compiled
        kernel_cache.problems.append(f"{' '.join(filter(None, task))}: {type(error).__name__}: {error}")
    return kernel_cache.uses[seen:], list(kernel_cache.problems)


def warm(models=WARM_MODELS):
    """Compile the missing kernels and print a table of all. Returns True if there were no problems."""
    from gpt2_numba.gpu import kernel_cache
    from gpt2_numba.gpu.backend import bfloat16_supported, real_gpu

    if not real_gpu():
        print("nothing to warm: kernels are compiled for a GPU, and this run has none")
        return True
    processes = min(MAX_PROCESSES, os.cpu_count() or 1)
    print(f"compiling the kernels of {' and '.join(models)} in {processes} processes ...", flush=True)
    start, uses, problems = time.perf_counter(), [], []
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        tasks = warm_tasks(models, ("bf16", "fp32") if bfloat16_supported() else ("fp32",))
        # The trainer last, when the kernels of all layer calls are on disk: it only compiles what those left out.
        for stage in ([task for task in tasks if task[-1]], [task for task in tasks if not task[-1]]):
            for used, wrong in pool.map(warm_task, stage):
                uses += used
                problems += wrong
    print(format_uses(uses))
    kept = kernel_cache.files()
    print(
        f"{sum(not use.loaded for use in uses)} compiled in {time.perf_counter() - start:.1f} s; {len(kept)} kernels, "
        f"{sum(size for _, size, _ in kept) / 2**20:.1f} MiB, are in {kernel_cache.directory()}"
    )
    for problem in dict.fromkeys(problems):
        print(f"[!!] {problem}")
    return not problems


def format_uses(uses):
    """A table of the kernels: how often each was compiled and how long that took, how often it was loaded and how long that took."""
    rows = {}
    for use in uses:
        row = rows.setdefault(use.kernel, {True: [], False: []})
        row[use.loaded].append(use.seconds)
    lines = [f"{'kernel':<52}{'compiled':>9}{'seconds':>9}{'loaded':>9}{'ms each':>9}"]
    for kernel, row in sorted(rows.items()):
        compiled, loaded = row[False], row[True]
        each = f"{1000 * sum(loaded) / len(loaded):.1f}" if loaded else ""
        lines.append(f"{kernel:<52}{len(compiled):>9}{sum(compiled):>9.1f}{len(loaded):>9}{each:>9}")
    return "\n".join(lines)


def run(argv):
    """Do what the command line asks. Returns the exit code: 0 if everything works, 1 if not. Raises UserError."""
    parser = Parser(prog="python -m gpt2_numba.doctor", doc=__doc__)
    parser.add_argument("--check", action="store_true", help="check the gradients and kernels of every layer and print tables")
    parser.add_argument("--warm", action="store_true", help="compile the trainer's kernels for this GPU and store them on disk")
    parser.add_argument("--verify", metavar="DIR", help="check the files of all checkpoints in a log directory, and nothing else")
    arguments = parser.parse_args(argv)
    if arguments.verify is not None:
        from gpt2_numba.training.verification import verify_all

        return 0 if verify_all(arguments.verify) else 1
    if arguments.check:
        simulate_without_gpu()
    all_ok = examine()
    if arguments.check:
        from gpt2_numba.layer_checks import check_all_layers

        print()
        all_ok = check_all_layers() and all_ok
    if arguments.warm:
        print()
        all_ok = warm() and all_ok
    return 0 if all_ok else 1


def main(argv):
    """The command line. Returns the exit code: that of `run`, or 2 for a user's mistake, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
