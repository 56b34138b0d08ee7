"""Every plain kernel compiles with numba-cuda-mlir, the successor of numba-cuda, if only the imports of its file are changed. Needs no GPU.

The package, not part of any extra, is installed beside numba-cuda: `pip install numba-cuda-mlir` (Python 3.11 or later). The layers keep
their imports; here each file is read as if it had the successor's.

Like test_ptx.py, this file runs itself again as a program, outside of Numba's simulator: `python tests/test_mlir.py DIRECTORY sm_90` writes
DIRECTORY/KERNEL-sm_90.ptx for each kernel, or, if it does not compile, KERNEL-sm_90.error with the compiler's message.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_ptx import PLAIN_KERNELS, ROOT, environment, missing_parts

pytest.importorskip(
    "numba_cuda_mlir", reason="numba-cuda-mlir is not installed: pip install numba-cuda-mlir to compile the plain kernels with it"
)

# Name of a build -> compute capability. Two, since the successor has one code generator for GPUs before Blackwell and another for the rest.
BUILDS = {"sm_90": (9, 0), "sm_100": (10, 0)}
LAYERS = ROOT / "gpt2_numba" / "layers"
# block_sum.py, which the layers import, comes first. A package, attention/__init__.py, is sorted before its modules.
FILES = [
    ROOT / "gpt2_numba" / "gpu" / "block_sum.py",
    *sorted(path for path in LAYERS.rglob("*.py") if "fast" not in path.parts and "cuda.jit" in path.read_text(encoding="utf-8")),
]
# Types, too, come from the successor: it rejects those of Numba. One line each, so that the lines in error messages are those of the file.
IMPORTS = {
    "from numba import cuda": "from numba_cuda_mlir import cuda",
    "from numba import cuda, float32": "from numba_cuda_mlir import cuda; from numba_cuda_mlir.types import float32",
}


# --------------------------------------------------------------------------------------- the program: compile everything


def load_with_successor(path):
    """The module in the file `path`, with its imports changed. Modules loaded after it import this one, too."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    source = re.sub(r"^from numba import .*$", lambda line: IMPORTS[line[0]], path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    spec = importlib.util.find_spec(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    exec(compile(source, path, "exec"), vars(module))
    return module


def plain_kernels():
    """Every plain kernel, compiled by the successor when asked to, by its name in PLAIN_KERNELS."""
    from numba_cuda_mlir.descriptor import MLIRDispatcher

    from gpt2_numba.gpu.kernel_cache import kernel_name

    functions = [thing for path in FILES for thing in vars(load_with_successor(path)).values() if isinstance(thing, MLIRDispatcher)]
    return {kernel_name(f.py_func): f for f in functions if not f.targetoptions.get("device")}


def argument_types(spec):
    from numba_cuda_mlir import types

    scalars = {"int": types.int64, "float": types.float32, "bool": types.boolean}
    elements = {"f": types.float32, "n": types.int32}
    return tuple(scalars[w] if w in scalars else types.Array(elements[w[0]], int(w[1:]), "C") for w in spec.split())


def compile_all(directory, build):
    """Write a .ptx or an .error file for every kernel, and the kernels' names to kernels.txt."""
    from numba_cuda_mlir import cuda, tools

    tools._cached_cc = BUILDS[build]  # as if it had asked the GPU, which it does even when it is given a compute capability
    kernels = plain_kernels()
    (directory / "kernels.txt").write_text("\n".join(sorted(kernels)))
    for name in sorted(kernels.keys() & PLAIN_KERNELS.keys()):
        try:
            ptx, _ = cuda.compile_ptx(kernels[name].py_func, argument_types(PLAIN_KERNELS[name]), cc=BUILDS[build])
            (directory / f"{name}-{build}.ptx").write_text(ptx)
        except Exception as error:  # of any kind: the test shows it
            (directory / f"{name}-{build}.error").write_text(f"{type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The directory with the output of compile_all, one process for each build."""
    missing = missing_parts()
    if missing:
        pytest.skip(f"no CUDA compiler ({missing}): pip install 'numba-cuda[cu13]', which the `test` extra includes on Linux")
    directory = tmp_path_factory.mktemp("mlir")
    programs = [[sys.executable, __file__, str(directory), build] for build in BUILDS]
    running = [subprocess.Popen(program, env=environment(), stderr=subprocess.PIPE, text=True) for program in programs]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return directory


def test_no_plain_kernel_is_left_out(compiled):
    assert set((compiled / "kernels.txt").read_text().split()) == set(PLAIN_KERNELS)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kernel", PLAIN_KERNELS)
def test_a_plain_kernel_compiles_and_stays_in_float32(compiled, kernel, build):
    error = compiled / f"{kernel}-{build}.error"
    assert not error.exists(), error.read_text()
    ptx = (compiled / f"{kernel}-{build}.ptx").read_text()
    assert f".target {build}" in ptx and ".visible .entry" in ptx
    assert ".f64" not in ptx


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]), sys.argv[2])
