"""What this machine has, what is missing, and the command that fixes it:  python -m gpt2_numba.doctor

With --check it also checks every layer and prints tables of the largest errors: the NumPy references against finite differences, and both
sets of kernels, plain and fast, against the references, on the GPU or, without one, in Numba's simulator at tiny sizes.

With --warm it compiles the trainer's kernels for this machine's GPU and stores them on disk (gpu/kernel_cache.py), so that a training
starts at once. It uses several processes, since Numba compiles one kernel at a time in a process.

With --verify DIR it checks the files of all checkpoints in a log directory instead, and prints a line for each (training/verification.py).
"""

import contextlib
import importlib.metadata
import io
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.gpu.detect_gpu import count_gpus, simulate_without_gpu

WARM_MODELS = ("d12", "d48")  # some kernels are specialised for the number of channels: those of other models are compiled on first use
MAX_PROCESSES = 16  # each takes half a GiB of GPU memory

# What a run needs: distribution -> (purpose, how to install it). The second table counts only if there is a GPU.
NEEDED = {
    "numpy": ("arrays, and training on a CPU", "pip install ."),
    "numba": ("the kernels", "pip install ."),
    "ml_dtypes": ("bfloat16 on the host", "pip install ."),
    "tiktoken": ("tokenizers", "pip install ."),
    "matplotlib": ("the plot of the loss", "pip install ."),
}
NEEDED_FOR_GPU = {
    "numba-cuda": ("kernels on a GPU", "pip install '.[cuda13]'   (driver 580 or later; '.[cuda12]' for older ones)"),
    "nvmath-python": ("matrix products by cuBLASLt", "pip install '.[cuda13]'"),
}
# Only for several processes.
OPTIONAL = {"mpi4py": ("several processes", "pip install '.[mpi]'")}
OPTIONAL_FOR_GPUS = {"nccl4py": ("several GPUs", "pip install '.[nccl13]'   ('.[nccl12]' with CUDA 12)")}


def version(distribution):
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine():
    """Print one line for each thing that a run needs. Returns True if all are present and work."""
    gpus = count_gpus()
    all_ok = True

    def report(ok, what, found, remedy=""):
        nonlocal all_ok
        all_ok = all_ok and ok
        print(f"[{'ok' if ok else '!!'}] {what:<16}{found}" + ("" if ok else f"\n     to fix it: {remedy}"))

    report((3, 10) <= sys.version_info[:2] <= (3, 13), "Python", platform.python_version(), "install Python 3.10 to 3.13")
    for distribution, (purpose, remedy) in {**NEEDED, **(NEEDED_FOR_GPU if gpus else {})}.items():
        found = version(distribution)
        report(found is not None, distribution, f"{found or 'missing'}   ({purpose})", remedy)
    for distribution, (purpose, remedy) in {**OPTIONAL, **(OPTIONAL_FOR_GPUS if gpus > 1 else {})}.items():
        found = version(distribution)
        print(f"[{'ok' if found else '--'}] {distribution:<16}{found or 'not installed'}   ({purpose}{'' if found else ': ' + remedy})")
    if all_ok:
        examine_cpu_cache()
    if gpus == 0:
        print("[--] GPU             none: training runs on the CPU, kernels run in Numba's simulator (NUMBA_ENABLE_CUDASIM=1)")
    elif all_ok:
        examine_gpu(report)
    if all_ok:
        print(f"[ok] kernels         {which_kernels()}")
    return all_ok


def examine_cpu_cache():
    """Print where functions compiled for the processor are kept between runs."""
    from gpt2_numba.cpu_cache import cache_directory, njit_cached

    directory = cache_directory(njit_cached()(version))  # of any function of the package; it is not compiled
    advice = "none, every run compiles for a second or two: set NUMBA_CACHE_DIR to a writable directory"
    print(f"[{'ok' if directory else '--'}] {'CPU cache':<16}{directory or advice}")


def which_kernels():
    """The set of kernels that training uses on this machine, and why."""
    from gpt2_numba.gpu.backend import real_gpu
    from gpt2_numba.kernel_sets import choose_kernels

    chosen = choose_kernels("auto", "gpu" if real_gpu() else "cpu")
    return f"{chosen.name}: {chosen.reason} (for others use --kernels: docs/kernels.md)"


def examine_gpu(report):
    """Print the GPU's properties, and whether a kernel and a matrix product give correct results on it. report: as in examine."""
    import numpy as np
    from numba import cuda

    from gpt2_numba.gpu.arena import free_gpu_bytes
    from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, copy_to_host, device_name, gpu_available, to_device
    from gpt2_numba.gpu.gemm import gemm
    from gpt2_numba.layers.residual import residual_forward

    if SIMULATING:
        print("[--] GPU             not used: NUMBA_ENABLE_CUDASIM is set, kernels run in the simulator")
        return
    report(gpu_available(), "GPU", "works" if gpu_available() else "Numba cannot use it", "pip install --upgrade '.[cuda13]'")
    if not gpu_available():
        return
    major, minor = cuda.get_current_device().compute_capability
    memory = f"{free_gpu_bytes() / 2**30:.1f} GiB free"
    print(f"[ok] {'':<16}{device_name()}, compute capability {major}.{minor}, {memory}, bf16 {'yes' if bfloat16_supported() else 'no'}")
    examine_kernel_cache(report)
    matrix = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    a, out = to_device(matrix), to_device(np.zeros_like(matrix))
    try:
        residual_forward(out, a, a)
        kernel_is_correct = np.array_equal(copy_to_host(out), matrix + matrix)
        report(kernel_is_correct, "a kernel", "correct" if kernel_is_correct else "wrong", "pip install --upgrade '.[cuda13]'")
        gemm(out, a, a, rows=64, columns=64, inner=64)
        product_is_correct = np.allclose(copy_to_host(out), matrix @ matrix, atol=0.1)  # TF32 may be in use
        report(product_is_correct, "cuBLASLt", "correct" if product_is_correct else "wrong", "pip install --upgrade '.[cuda13]'")
    except Exception as error:  # whatever the libraries raise is reported as a finding
        report(False, "trial run", f"{type(error).__name__}: {error}", "pip install --upgrade '.[cuda13]'")


def examine_kernel_cache(report):
    """Print the number of compiled kernels on disk, and whether more can be written."""
    from gpt2_numba.gpu import kernel_cache

    try:
        kept, where = kernel_cache.files(), kernel_cache.directory()
        kernel_cache.write(where / "trial", b"")
        (where / "trial").unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        report(False, "kernel cache", f"every run compiles again: {error}", "set XDG_CACHE_HOME to a writable directory")
        return
    advice = "" if kept else "   (python -m gpt2_numba.doctor --warm compiles them in advance)"
    report(True, "kernel cache", f"{len(kept)} kernels, {sum(size for _, size, _ in kept) / 2**20:.1f} MiB in {where}{advice}")


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
