"""What this machine has, what is missing, and the command that mends it:  python -m gpt2_numba.doctor

With --check it also checks every layer, and prints a table of the largest errors: the NumPy references against finite differences,
and the kernels against the references, on the GPU or, where there is none, in Numba's simulator at tiny sizes.
"""

import argparse
import importlib.metadata
import platform
import sys

from gpt2_numba.gpu.driver import count_gpus, simulate_without_gpu

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
    if gpus == 0:
        print("[--] GPU             none: training runs on the CPU, kernels in Numba's simulator (NUMBA_ENABLE_CUDASIM=1)")
    elif well:
        examine_gpu(line)
    return well


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


def main(argv):
    """The command line. Returns the exit code: 0 if all is well, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m gpt2_numba.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="check every layer's gradients and kernels, print a table")
    arguments = parser.parse_args(argv)
    if arguments.check:
        simulate_without_gpu()
    well = examine()
    if arguments.check:
        from gpt2_numba.layer_checks import check_all_layers

        print()
        well = check_all_layers() and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
