"""What this machine has, what is missing, and the command that mends it:  python -m gpt2_numba.doctor

With --check it also checks every layer, and prints tables of the largest errors: the NumPy references against finite differences, and both
sets of kernels, the plain and the fast ones, against the references, on the GPU or, where there is none, in Numba's simulator at tiny sizes.

With --warm it compiles the trainer's kernels for the GPU at hand, in several processes at a time, and keeps them on disk
(gpu/kernel_cache.py): a training then begins at once. Numba compiles one kernel at a time in a process, so processes it must be.
"""

import argparse
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

from gpt2_numba.gpu.detect_gpu import count_gpus, simulate_without_gpu

WARM_MODELS = ("d12", "d48")  # some kernels are made for the number of channels: these are ready, those of others compile as they come
MOST_PROCESSES = 16  # each holds half a GiB of GPU memory

# What a run needs: distribution -> (what for, how to get it). The GPU's parts are asked for only where there is a GPU.
NEEDED = {
    "numpy": ("arrays, and training on a CPU", "pip install ."),
    "numba": ("the kernels", "pip install ."),
    "ml_dtypes": ("bfloat16 on the host", "pip install ."),
    "tiktoken": ("tokenizers", "pip install ."),
    "matplotlib": ("the picture of the loss", "pip install ."),
}
NEEDED_FOR_GPU = {
    "numba-cuda": ("kernels on a GPU", "pip install '.[cuda13]'   (driver 580 or later; '.[cuda12]' for older ones)"),
    "nvmath-python": ("matrix products by cuBLASLt", "pip install '.[cuda13]'"),
}
# Only for several processes.
OPTIONAL = {"mpi4py": ("several processes", "pip install '.[mpi]'")}
OPTIONAL_FOR_GPUS = {"nccl4py": ("several GPUs", "pip install '.[nccl13]'   ('.[nccl12]' with CUDA 12)")}


def version(distribution):
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine():
    """Print what there is, a line each. Returns True if everything that a run on this machine needs is there."""
    gpus = count_gpus()
    well = True

    def line(ok, what, found, remedy=""):
        nonlocal well
        well = well and ok
        print(f"[{'ok' if ok else '!!'}] {what:<16}{found}" + ("" if ok else f"\n     mend it with: {remedy}"))

    line((3, 10) <= sys.version_info[:2] <= (3, 13), "Python", platform.python_version(), "install Python 3.10 to 3.13")
    for distribution, (purpose, remedy) in {**NEEDED, **(NEEDED_FOR_GPU if gpus else {})}.items():
        found = version(distribution)
        line(found is not None, distribution, f"{found or 'missing'}   ({purpose})", remedy)
    for distribution, (purpose, remedy) in {**OPTIONAL, **(OPTIONAL_FOR_GPUS if gpus > 1 else {})}.items():
        found = version(distribution)
        print(f"[{'ok' if found else '--'}] {distribution:<16}{found or 'not installed'}   ({purpose}{'' if found else ': ' + remedy})")
    if gpus == 0:
        print("[--] GPU             none: training runs on the CPU, kernels in Numba's simulator (NUMBA_ENABLE_CUDASIM=1)")
    elif well:
        examine_gpu(line)
    if well:
        print(f"[ok] kernels         {which_kernels()}")
    return well


def which_kernels():
    """Which set of kernels a training takes on this machine, and why."""
    from gpt2_numba.gpu.backend import real_gpu
    from gpt2_numba.kernel_sets import choose_kernels

    chosen = choose_kernels("auto", "gpu" if real_gpu() else "cpu")
    return f"{chosen.name}: {chosen.reason} (--kernels chooses others: docs/kernels.md)"


def examine_gpu(line):
    """Print what the GPU is, and whether a kernel and a matrix product give the right answer on it."""
    import numpy as np
    from numba import cuda

    from gpt2_numba.gpu.arena import free_gpu_bytes
    from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, copy_to_host, device_name, gpu_available, to_device
    from gpt2_numba.gpu.gemm import gemm
    from gpt2_numba.layers.residual import residual_forward

    if SIMULATING:
        print("[--] GPU             not used: NUMBA_ENABLE_CUDASIM is set, kernels run in the simulator")
        return
    line(gpu_available(), "GPU", "works" if gpu_available() else "Numba cannot use it", "pip install --upgrade '.[cuda13]'")
    if not gpu_available():
        return
    major, minor = cuda.get_current_device().compute_capability
    memory = f"{free_gpu_bytes() / 2**30:.1f} GiB free"
    print(f"[ok] {'':<16}{device_name()}, compute capability {major}.{minor}, {memory}, bf16 {'yes' if bfloat16_supported() else 'no'}")
    examine_kernel_cache(line)
    numbers = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    a, out = to_device(numbers), to_device(np.zeros_like(numbers))
    try:
        residual_forward(out, a, a)
        kernel_is_right = np.array_equal(copy_to_host(out), numbers + numbers)
        line(kernel_is_right, "a kernel", "right" if kernel_is_right else "wrong", "pip install --upgrade '.[cuda13]'")
        gemm(out, a, a, 64, 64, 64)
        product_is_right = np.allclose(copy_to_host(out), numbers @ numbers, atol=0.1)  # TF32 may be in use
        line(product_is_right, "cuBLASLt", "right" if product_is_right else "wrong", "pip install --upgrade '.[cuda13]'")
    except Exception as error:  # whatever the libraries raise, the user should see it as a finding
        line(False, "trial run", f"{type(error).__name__}: {error}", "pip install --upgrade '.[cuda13]'")


def examine_kernel_cache(line):
    """Print how many compiled kernels are on disk, and whether more can be put there."""
    from gpt2_numba.gpu import kernel_cache

    try:
        kept, where = kernel_cache.files(), kernel_cache.directory()
        kernel_cache.write(where / "trial", b"")
        (where / "trial").unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        line(False, "kernel cache", f"every run compiles anew: {error}", "set XDG_CACHE_HOME to a directory that can be written")
        return
    advice = "" if kept else "   (python -m gpt2_numba.doctor --warm compiles them ahead)"
    line(True, "kernel cache", f"{len(kept)} kernels, {sum(size for _, size, _ in kept) / 2**20:.1f} MiB in {where}{advice}")


# ------------------------------------------------------------------------------------------- kernels, compiled ahead


def warm_tasks(models, precisions):
    """What is to be run to have every kernel: (precision, model, layer), layers first; layer None is the trainer itself, for one step."""
    from gpt2_numba.layer_checks import LAYERS

    return [(precision, model, layer) for layer in (*LAYERS, None) for precision in precisions for model in models]


def warm_layer(precision, model, layer):
    """Call a layer's fast functions once, on a few tokens with the channels and heads of a model."""
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
    """Train one block of a model for a step, on a few bytes of the built-in corpus, and validate it."""
    from gpt2_numba.config import parse_descriptor
    from gpt2_numba.train import run

    config = parse_descriptor(model)
    flags = f"-e L=1,NH={config.NH},C={config.C} -b 1 -t 64 -x 1 -v 1 -m 1 -s 0 --device gpu --precision {precision} --matmul-search off"
    with tempfile.TemporaryDirectory() as directory:
        run([*flags.split(), "-o", directory])


def warm_task(task):
    """Run one task in a process of the pool. Returns what the kernels cost, and what went wrong, "" for nothing."""
    from gpt2_numba.gpu import kernel_cache

    seen = len(kernel_cache.uses)
    kernel_cache.problems.clear()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            (warm_layer if task[-1] else warm_trainer)(*task)
    except Exception as error:  # whatever it is, the other kernels can be compiled
        kernel_cache.problems.append(f"{' '.join(filter(None, task))}: {type(error).__name__}: {error}")
    return kernel_cache.uses[seen:], list(kernel_cache.problems)


def warm(models=WARM_MODELS):
    """Compile what is missing, print a table of it. Returns True if all kernels are there now."""
    from gpt2_numba.gpu import kernel_cache
    from gpt2_numba.gpu.backend import bfloat16_supported, real_gpu

    if not real_gpu():
        print("nothing to warm: kernels are compiled for a GPU, and this run has none")
        return True
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    print(f"compiling the kernels of {' and '.join(models)} in {processes} processes ...", flush=True)
    start, uses, problems = time.perf_counter(), [], []
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        tasks = warm_tasks(models, ("bf16", "fp32") if bfloat16_supported() else ("fp32",))
        # The trainer last, when all that the layers' calls compile is on disk: what it still has to compile they have left out.
        for part in ([task for task in tasks if task[-1]], [task for task in tasks if not task[-1]]):
            for used, wrong in pool.map(warm_task, part):
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
    """A table of the kernels: how many were compiled and how long that took, how many were there and how long loading took."""
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


def main(argv):
    """The command line. Returns the exit code: 0 if all is well, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m gpt2_numba.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="check every layer's gradients and kernels, print tables")
    parser.add_argument("--warm", action="store_true", help="compile the trainer's kernels for this GPU, keep them on disk")
    arguments = parser.parse_args(argv)
    if arguments.check:
        simulate_without_gpu()
    well = examine()
    if arguments.check:
        from gpt2_numba.layer_checks import check_all_layers

        print()
        well = check_all_layers() and well
    if arguments.warm:
        print()
        well = warm() and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
