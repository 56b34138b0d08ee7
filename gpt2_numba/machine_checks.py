"""What this machine has, as a table of checks (CHECKS), each a function that returns Findings. python -m gpt2_numba.doctor prints them.

A finding is good; missing, wrong or of an unsuitable version, with the command that mends it; or something that can be done without. The
versions that serve are those of pyproject.toml, which an installed package carries as metadata.
"""

import importlib.metadata
import math
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from gpt2_numba.config import count_parameters, parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.detect_gpu import count_gpus, driver_cuda_version

GOOD, BAD, OPTIONAL = "ok", "!!", "--"  # OPTIONAL: not there, or not much of it, and a run can do without

CUDA_13 = 13000  # the driver's CUDA version from which on it serves '.[cuda13]': driver 580
BYTES_PER_PARAMETER = 14  # of a checkpoint in bf16: the parameters, m, v and master weights
LITTLE_MEMORY = 2**30  # bytes

# Distribution -> what it is for, and the extra of pyproject.toml that installs it; {} stands for CUDA's version. Needed by every run ...
NEEDED = {
    "numpy": ("arrays, and training on a CPU", ""),
    "numba": ("the kernels", ""),
    "ml_dtypes": ("bfloat16 on the host", ""),
    "tiktoken": ("tokenizers", ""),
    "matplotlib": ("the plot of the loss", ""),
}
# ... and on a GPU; for several processes; for several GPUs; and for what not every run does.
NEEDED_FOR_GPU = {"numba-cuda": ("kernels on a GPU", "cuda{}"), "nvmath-python": ("matrix products by cuBLASLt", "cuda{}")}
FOR_PROCESSES = {"mpi4py": ("several processes", "mpi")}
FOR_GPUS = {"nccl4py": ("several GPUs", "nccl{}")}
FOR_SOME = {"safetensors": ("Hugging Face's files", "kit"), "pyarrow": ("parquet files", "kit")}


class Finding(NamedTuple):
    """One line of the report."""

    state: str  # GOOD, BAD or OPTIONAL
    what: str
    found: str
    remedy: str = ""  # the command that mends it, or what to do

    def __str__(self):
        return f"[{self.state}] {self.what:<16}{self.found}" + (f"\n     to fix it: {self.remedy}" if self.remedy else "")


# ------------------------------------------------------------------------------------------------------------ packages


def version(distribution):
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions_that_serve(distribution):
    """The versions of a distribution that pyproject.toml asks for, a packaging SpecifierSet; None if it says nothing, or cannot be asked."""
    try:
        from packaging.requirements import Requirement

        requirements = map(Requirement, importlib.metadata.requires("gpt2_numba") or ())
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return None
    return next(
        (requirement.specifier for requirement in requirements if requirement.name.replace("_", "-") == distribution.replace("_", "-")),
        None,
    )


def package(distribution, purpose, extra, missing=BAD):
    """The Finding about one distribution. missing: the state if it is not there."""
    cuda = "13" if driver_cuda_version() >= CUDA_13 or not count_gpus() else "12"
    remedy = f"pip install --upgrade '.[{extra.format(cuda)}]'" if extra else "pip install --upgrade ."
    found, serving = version(distribution), versions_that_serve(distribution)
    if found is None:
        return Finding(missing, distribution, f"missing   ({purpose})", remedy)
    if serving is not None and not serving.contains(found, prereleases=True):
        minimum = next((item.version for item in serving if item.operator == ">="), "")
        is_older = minimum and not next(item for item in serving if item.operator == ">=").contains(found, prereleases=True)
        return Finding(missing, distribution, f"{found}, too {'old' if is_older else 'new'}: {serving} serves   ({purpose})", remedy)
    return Finding(GOOD, distribution, f"{found}   ({purpose})")


def check_python():
    """The version of Python."""
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return [Finding(GOOD if fits else BAD, "Python", platform.python_version(), "" if fits else "install Python 3.10 to 3.13")]


def check_packages():
    """The packages that this machine needs, and those that only some runs need."""
    gpus = count_gpus()
    needed, optional = NEEDED | (NEEDED_FOR_GPU if gpus else {}), FOR_PROCESSES | (FOR_GPUS if gpus > 1 else {}) | FOR_SOME
    findings = [package(name, *entry) for name, entry in needed.items()]
    return findings + [package(name, *entry, missing=OPTIONAL) for name, entry in optional.items()]


# ------------------------------------------------------------------------------------------------------------- the host


def check_mpi():
    """MPI's library, behind mpi4py, and the program that starts processes."""
    if version("mpi4py") is None:
        return []
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # asked for its version only
        from mpi4py import MPI

        library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 ")
    except (ImportError, RuntimeError) as error:
        return [Finding(OPTIONAL, "MPI", f"mpi4py cannot load it: {error}", "pip install '.[mpi]'")]
    # A virtual environment that is not activated has its own mpirun beside its Python.
    mpirun = shutil.which("mpirun") or shutil.which("mpirun", path=Path(sys.executable).parent)
    if mpirun is None:
        return [Finding(OPTIONAL, "MPI", f"{library}, but there is no mpirun on the PATH", "pip install '.[mpi]'")]
    return [Finding(GOOD, "MPI", f"{library}, {mpirun}")]


def check_vocabulary():
    """GPT-2's tokenizer, which is downloaded once."""
    from gpt2_numba.data.tokenizers import PATIENCE_FOR_SAMPLES, gpt2_encoding

    try:
        gpt2_encoding(PATIENCE_FOR_SAMPLES)
    except UserError:
        remedy = "go online once, or set TIKTOKEN_CACHE_DIR to a directory with tiktoken's files; --tokenizer bytes needs none"
        return [Finding(OPTIONAL, "vocabulary", "GPT-2's is not here, and could not be downloaded", remedy)]
    return [Finding(GOOD, "vocabulary", "GPT-2's")]


def check_memory():
    """The machine's free memory."""
    from gpt2_numba.memory_fit import free_host_bytes

    free = free_host_bytes()
    if math.isinf(free):
        return [Finding(OPTIONAL, "memory", "how much is free cannot be found out on this system")]
    little = free < LITTLE_MEMORY
    return [Finding(OPTIONAL if little else GOOD, "memory", f"{free / 2**30:.1f} GiB free" + ", little for a training" * little)]


def check_disk():
    """Room for checkpoints where a run's -o probably is: in this directory."""
    sizes = {model: BYTES_PER_PARAMETER * count_parameters(parse_descriptor(model)) for model in ("d12", "d48")}
    examples = "; a checkpoint of " + ", of ".join(f"{model} takes {size / 1e9:.1f} GB" for model, size in sizes.items())
    if not _is_writable(Path.cwd()):
        return [Finding(OPTIONAL, "disk", f"{Path.cwd()} cannot be written to", "name a writable directory for the log, -o DIR")]
    free = shutil.disk_usage(Path.cwd()).free
    little = free < 2 * sizes["d12"]  # the one that is kept, and the next
    return [Finding(OPTIONAL if little else GOOD, "disk", f"{free / 1e9:.1f} GB free in {Path.cwd()}{examples}")]


def check_caches():
    """Directories that keep compiled code between runs: without them every run compiles again."""
    from gpt2_numba.cpu_cache import cache_directory, njit_cached

    directory = cache_directory(njit_cached()(version))  # of any function of the package; it is not compiled
    if directory:
        findings = [Finding(GOOD, "CPU cache", str(directory))]
    else:
        what = "none, every run compiles for a second or two"
        findings = [Finding(OPTIONAL, "CPU cache", what, "set NUMBA_CACHE_DIR to a writable directory")]
    return findings + (check_kernel_cache() if count_gpus() else [])


def check_kernel_cache():
    """The directory of compiled kernels: how many there are, and whether one can be written."""
    from gpt2_numba.gpu import kernel_cache

    try:
        kept, where = kernel_cache.files(), kernel_cache.directory()
        kernel_cache.write(where / "trial", b"")
        (where / "trial").unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        return [Finding(BAD, "kernel cache", f"every run compiles again: {error}", "set XDG_CACHE_HOME to a writable directory")]
    advice = "" if kept else "   (python -m gpt2_numba.doctor --warm compiles them in advance)"
    size = sum(size for _, size, _ in kept) / 2**20
    return [Finding(GOOD, "kernel cache", f"{len(kept)} kernels, {size:.1f} MiB in {where}{advice}")]


def _is_writable(directory):
    try:
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------------- the GPU


def check_gpu():
    """The GPU, and whether a kernel and a matrix product give correct results on it."""
    gpus = count_gpus()
    if not gpus:
        what = "none: training runs on the CPU, kernels run in Numba's simulator (NUMBA_ENABLE_CUDASIM=1)"
        return [Finding(OPTIONAL, "GPU", what)]
    from numba import cuda

    from gpt2_numba.gpu.arena import free_gpu_bytes
    from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, device_name, gpu_available

    if SIMULATING:
        return [Finding(OPTIONAL, "GPU", "not used: NUMBA_ENABLE_CUDASIM is set, kernels run in the simulator")]
    driver = f"driver for CUDA {driver_cuda_version() // 1000}.{driver_cuda_version() % 1000 // 10}"
    mend = f"pip install --upgrade '.[cuda{13 if driver_cuda_version() >= CUDA_13 else 12}]'"
    if not gpu_available():
        return [Finding(BAD, "GPU", f"Numba cannot use it; {driver}", mend)]
    major, minor = cuda.get_current_device().compute_capability
    bf16 = "yes" if bfloat16_supported() else "no"
    memory = f"{free_gpu_bytes() / 2**30:.1f} GiB free"
    one = Finding(GOOD, "GPU", f"{gpus} × {device_name()}, compute capability {major}.{minor}, {memory}, bf16 {bf16}, {driver}")
    return [one, *trial_run(mend), *check_nccl(gpus), check_cudnn()]


def trial_run(mend):
    """A kernel and a product on the GPU. mend: the command for a wrong result."""
    import numpy as np

    from gpt2_numba.gpu.backend import copy_to_host, to_device
    from gpt2_numba.gpu.gemm import gemm
    from gpt2_numba.layers.residual import residual_forward

    def judge(what, correct, more=""):
        return Finding(GOOD if correct else BAD, what, f"{more}{'correct' if correct else 'wrong'}", "" if correct else mend)

    matrix, findings = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), []
    try:
        a, out = to_device(matrix), to_device(np.zeros_like(matrix))
        residual_forward(out, a, a)
        findings.append(judge("a kernel", np.array_equal(copy_to_host(out), matrix + matrix)))
        gemm(out, a, a, rows=64, columns=64, inner=64)
        from nvmath.bindings import cublasLt

        right = np.allclose(copy_to_host(out), matrix @ matrix, atol=0.1)  # TF32 may be in use
        findings.append(judge("cuBLASLt", right, f"{cublasLt.get_version()}, "))
    except Exception as error:  # whatever the libraries raise is reported as a finding
        findings.append(Finding(BAD, "trial run", f"{type(error).__name__}: {error}", mend))
    return findings


def check_nccl(gpus):
    """NCCL, where there are several GPUs."""
    from gpt2_numba.parallel.nccl_group import load_nccl

    if gpus < 2:
        return []
    try:
        return [Finding(GOOD, "NCCL", str(load_nccl().get_version()))]
    except UserError as error:
        return [Finding(OPTIONAL, "NCCL", str(error))]


def check_cudnn():
    """NVIDIA's attention, which is faster for heads of 80 and 128."""
    from gpt2_numba.layers.fast.attention.cudnn import require_cudnn

    try:
        require_cudnn()
    except UserError as error:
        return Finding(OPTIONAL, "cuDNN", str(error))
    return Finding(GOOD, "cuDNN", "attention of heads of 80 and 128 by it, unless --attention numba")


def check_kernels():
    """The set of kernels that serves each precision on this machine, and why."""
    from gpt2_numba.gpu.backend import real_gpu

    device = "gpu" if real_gpu() else "cpu"
    return [Finding(GOOD, "kernels, fp32", which_kernels(device, "fp32")), kernels_for_bf16(device), kernels_for_fp8(device)]


def which_kernels(device, precision):
    """The KernelSet that a run takes, and why. Raises UserError where none serves."""
    from gpt2_numba.kernel_sets import choose_kernels

    chosen = choose_kernels("auto", device, precision)
    return f"{chosen.name}: {chosen.reason} (for others use --kernels: docs/kernels.md)"


def kernels_for_bf16(device):
    """The Finding about which kernels serve bf16 on "cpu" or "gpu"."""
    try:
        found = "bf16 needs a GPU of compute capability 8.0 or later" if device == "cpu" else which_kernels(device, "bf16")
        return Finding(OPTIONAL if device == "cpu" else GOOD, "kernels, bf16", found)
    except UserError as error:
        return Finding(OPTIONAL, "kernels, bf16", str(error))


def kernels_for_fp8(device):
    """The Finding about products of eight-bit numbers on "cpu" or "gpu"."""
    from gpt2_numba.gpu.backend import float8_supported

    if device == "gpu" and float8_supported():
        return Finding(GOOD, "kernels, fp8", "fast: --precision fp8 (docs/fp8.md)")
    return Finding(OPTIONAL, "kernels, fp8", "fp8 needs a GPU of compute capability 8.9 or later")


# First what importing the rest needs; if any of it is bad, nothing else is tried.
FIRST = (check_python, check_packages)
CHECKS = (check_mpi, check_vocabulary, check_memory, check_disk, check_caches, check_gpu, check_kernels)


def findings():
    """Yield the Findings of all checks."""
    first = [finding for check in FIRST for finding in check()]
    yield from first
    if all(finding.state != BAD for finding in first):
        for check in CHECKS:
            yield from check()
