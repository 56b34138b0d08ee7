"""The kernel cache: kernels are found again if nothing has changed, and not found if anything has.

Numba compiles for a GPU only with its simulator off, so this file runs itself as a program in separate processes, on a small package that
has the real gpu/ and one layer, plain and fast. `python tests/test_kernel_cache.py '[RESULT, NAMES, PATCH]'` compiles or loads the kernels,
without a GPU, and writes a report to the file RESULT.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_ptx import COMPUTE_CAPABILITY, missing_parts

ROOT = Path(__file__).resolve().parents[1]

LAYER = '''
import numpy as np
from numba import cuda, float32, types

from gpt2_numba.gpu.memory_access import WIDTH, load8, store8
from gpt2_numba.gpu.reductions import warp_sum

FACTOR = np.float32(2.0)


@cuda.jit(cache=True)
def scale_kernel(out, inp):
    """16-byte loads by an intrinsic, a conversion in inline PTX."""
    i = cuda.grid(1) * WIDTH
    x = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    for k in range(WIDTH):
        x[k] *= FACTOR
    store8(out, i, x)


@cuda.jit(cache=True, launch_bounds=(64, 2))
def sum_kernel(out, inp):
    """A device function of gpu/, dynamic shared memory."""
    shared = cuda.shared.array(0, float32)
    shared[cuda.threadIdx.x] = warp_sum(inp[cuda.threadIdx.x])
    cuda.syncthreads()
    out[cuda.threadIdx.x] = shared[0]


def make(times, function, bounds):
    @cuda.jit(cache=True, launch_bounds=bounds)
    def made_kernel(out, inp):
        out[0] = function(inp[0]) * times

    return made_kernel


def make_either(up):
    if up:

        @cuda.jit(cache=True)
        def either_kernel(out, inp):
            out[0] = inp[0] + ONE

    else:

        @cuda.jit(cache=True)
        def either_kernel(out, inp):
            out[0] = inp[0] - ONE

    return either_kernel


def make_function(more):
    @cuda.jit(device=True)
    def add(x):
        return x + more

    return add


ONE, TWO = np.float32(1.0), np.float32(2.0)
KERNELS = {
    "scale": scale_kernel,
    "sum": sum_kernel,
    "made 1 1": make(ONE, make_function(ONE), 64),
    "made 2 1": make(TWO, make_function(ONE), 64),
    "made 1 2": make(ONE, make_function(TWO), 64),
    "made 1 1 bounds": make(ONE, make_function(ONE), 128),
    "made warp_sum": make(ONE, warp_sum, 64),
    "either up": make_either(True),
    "either down": make_either(False),
}
'''

FAST_LAYER = """
from numba import cuda

from gpt2_numba.layers.scale import FACTOR


@cuda.jit(cache=True)
def scale_kernel(out, inp):
    out[0] = inp[0] * FACTOR


KERNELS = {"fast scale": scale_kernel}
"""


def pretend_there_is_a_gpu():
    """Provide what the compiler asks the GPU for; nothing runs."""
    from numba.cuda import codegen, dispatcher
    from numba.cuda.cudadrv.driver import Driver

    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=COMPUTE_CAPABILITY)
    codegen.CUDACodeLibrary._ensure_cc = lambda library, cc: COMPUTE_CAPABILITY
    Driver.get_version = lambda driver: (13, 0)
    dispatcher._Kernel.bind = lambda kernel: kernel._codelibrary.get_cubin()  # stops at machine code


def compile_and_report(result, names, patch):
    """After executing `patch`, compile or load the kernels with these names; write name -> [loaded, digest of the code], and problems."""
    import hashlib

    from numba import types

    pretend_there_is_a_gpu()
    from gpt2_numba.gpu import kernel_cache
    from gpt2_numba.layers import scale
    from gpt2_numba.layers.fast import scale as fast_scale

    kernels = scale.KERNELS | fast_scale.KERNELS
    exec(patch)
    report = {}
    for name in names:
        for kind in (types.float32, types.uint16) if name == "scale" else (types.float32,):
            signature = (types.Array(kind, 1, "C"), types.Array(kind, 1, "C"))
            kernel = kernels[name].compile(signature)
            cubin = kernel._codelibrary.get_cubin()
            cubin = cubin.code if hasattr(cubin, "code") else cubin
            assert kernel.argument_types == signature and kernel.entry_name
            report[f"{name} {kind}"] = kernel_cache.uses[-1].loaded, hashlib.sha256(cubin).hexdigest()
    Path(result).write_text(json.dumps({"kernels": report, "problems": kernel_cache.problems}))


@pytest.fixture(scope="module")
def compiler():
    missing = missing_parts()
    if missing:
        pytest.skip(f"no CUDA compiler ({missing}): pip install 'numba-cuda[cu13]', which is part of the `test` extra on Linux")


@pytest.fixture
def package(tmp_path, compiler):
    """A small package, and a directory for its kernels."""
    sources = tmp_path / "source" / "gpt2_numba"
    shutil.copytree(ROOT / "gpt2_numba" / "gpu", sources / "gpu", ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("errors.py", "integers.py"):
        shutil.copy(ROOT / "gpt2_numba" / module, sources)
    (sources / "layers" / "fast").mkdir(parents=True)
    for directory in (sources, sources / "layers", sources / "layers" / "fast"):  # without it Python would import the installed package
        (directory / "__init__.py").touch()
    (sources / "layers" / "scale.py").write_text(LAYER)
    (sources / "layers" / "fast" / "scale.py").write_text(FAST_LAYER)
    for directory in (sources / "layers", sources / "layers" / "fast"):
        (directory / "other.py").write_text("")
    return SimpleNamespace(sources=sources, cache=tmp_path / "cache", directory=tmp_path)


def start(package, *names, patch=""):
    """Start a process that compiles or loads the kernels with these names. `patch` is code that it executes first."""
    result = package.directory / f"result{len(list(package.directory.glob('result*')))}.json"
    result.touch()
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    path = os.pathsep.join(filter(None, [str(package.sources.parent), os.environ.get("PYTHONPATH")]))
    environment |= {"PYTHONPATH": path, "XDG_CACHE_HOME": str(package.cache), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, __file__, json.dumps([str(result), names, patch])]
    return result, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(started):
    """The report of the process: kernel -> (loaded?, digest of the machine code), and the cache's problems."""
    result, process = started
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    report = json.loads(result.read_text())
    return {name: tuple(kernel) for name, kernel in report["kernels"].items()}, report["problems"]


def run(package, *names, patch=""):
    return finish(start(package, *names, patch=patch))


def loaded(kernels):
    return {name for name, (was_loaded, _) in kernels.items() if was_loaded}


def stored(package):
    return sorted((package.cache / "gpt2_numba" / "kernels").glob("*"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --------------------------------------------------------------------------------------------------------------- hits and misses


def test_a_kernel_is_compiled_once(package):
    """However many processes use it; for each of its types, with intrinsics, launch bounds and shared memory."""
    first, problems = run(package, "scale", "sum")
    assert problems == [] and loaded(first) == set() and len(stored(package)) == 3
    again, problems = run(package, "scale", "sum")
    assert problems == [] and loaded(again) == set(first)
    assert {name: digest for name, (_, digest) in again.items()} == {name: digest for name, (_, digest) in first.items()}


def test_kernels_of_a_factory_are_distinguished(package):
    """By the values and device functions in their closures, by their launch bounds, and by their lines."""
    names = ("made 1 1", "made 2 1", "made 1 2", "made 1 1 bounds", "made warp_sum", "either up", "either down")
    first, problems = run(package, *names)
    assert problems == [] and loaded(first) == set() and len(stored(package)) == len(names)
    again, _ = run(package, *reversed(names))
    assert loaded(again) == set(first)
    assert {name: digest for name, (_, digest) in again.items()} == {name: digest for name, (_, digest) in first.items()}


def test_a_change_in_the_sources_recompiles(package):
    """In a device function that the kernel calls, in integers.py or in the layer itself; not in another layer."""
    before, _ = run(package, "sum")
    edit(package.sources / "layers" / "other.py", "", "CHANGED = True\n")
    assert loaded(run(package, "sum")[0]) == {"sum float32"}

    reductions = package.sources / "gpu" / "reductions.py"
    edit(reductions, "value += cuda.shfl_xor_sync", "value -= cuda.shfl_xor_sync")
    changed, _ = run(package, "sum")
    assert loaded(changed) == set() and changed["sum float32"][1] != before["sum float32"][1]
    edit(reductions, "value -= cuda.shfl_xor_sync", "value += cuda.shfl_xor_sync")
    assert run(package, "sum")[0]["sum float32"] == (True, before["sum float32"][1])  # the original again

    edit(package.sources / "integers.py", "def round_up", "CHANGED = True\n\n\ndef round_up")
    assert loaded(run(package, "sum")[0]) == set()

    edit(package.sources / "layers" / "scale.py", "shared[cuda.threadIdx.x]", "shared[31 - cuda.threadIdx.x]")
    changed, _ = run(package, "sum")
    assert loaded(changed) == set() and changed["sum float32"][1] != before["sum float32"][1]


def test_a_layer_of_several_files_depends_on_all_of_them(package):
    (package.sources / "layers" / "scale").mkdir()
    (package.sources / "layers" / "scale.py").rename(package.sources / "layers" / "scale" / "__init__.py")
    part = package.sources / "layers" / "scale" / "part.py"
    part.write_text("FACTOR = 2\n")
    run(package, "sum")
    assert loaded(run(package, "sum")[0]) == {"sum float32"}
    part.write_text("FACTOR = 3\n")
    assert loaded(run(package, "sum")[0]) == set()


def test_a_fast_kernel_depends_on_its_layers_plain_file(package):
    """A constant imported from there must not be stale. A plain kernel does not depend on the fast file."""
    before, _ = run(package, "fast scale", "sum")
    assert sorted(path.name.partition("-")[0] for path in stored(package)) == ["fast.scale.scale_kernel", "scale.sum_kernel"]
    edit(package.sources / "layers" / "fast" / "other.py", "", "CHANGED = True\n")
    assert loaded(run(package, "fast scale", "sum")[0]) == set(before)

    edit(package.sources / "layers" / "fast" / "scale.py", "inp[0] * FACTOR", "inp[0] * FACTOR * FACTOR")
    changed, _ = run(package, "fast scale", "sum")
    assert loaded(changed) == {"sum float32"} and changed["fast scale float32"][1] != before["fast scale float32"][1]

    edit(package.sources / "layers" / "scale.py", "FACTOR = np.float32(2.0)", "FACTOR = np.float32(3.0)")
    again, _ = run(package, "fast scale", "sum")
    assert loaded(again) == set() and again["fast scale float32"][1] != changed["fast scale float32"][1]


def test_another_compiler_or_gpu_has_its_own_kernels(package):
    compiler = "kernel_cache.versions = lambda: 'another compiler'"
    gpu = "from numba.cuda import dispatcher; dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(8, 0))"
    run(package, "sum")
    for patch in (compiler, gpu):
        assert loaded(run(package, "sum", patch=patch)[0]) == set()
    assert loaded(run(package, "sum", patch=gpu)[0]) == {"sum float32"}
    assert len(stored(package)) == 3


def test_sources_that_change_while_a_process_runs(package):
    """The process runs the old sources: its kernels must not be stored as those of the new."""
    path = str(package.sources / "gpu" / "reductions.py")
    patch = f"p = Path({path!r}); p.write_text(p.read_text().replace('value += cuda.shfl', 'value -= cuda.shfl'))"
    before, problems = run(package, "sum", patch=patch)
    assert stored(package) == [] and "has changed since this process started" in problems[0]
    after, _ = run(package, "sum")
    assert loaded(after) == set() and after["sum float32"][1] != before["sum float32"][1]


# ------------------------------------------------------------------------------------------------------- nothing can break a run


def test_a_damaged_file_is_replaced(package):
    names = ("sum", "made 1 1", "made 2 1", "scale")
    first, _ = run(package, *names)
    empty, cut_off, other_bit, *whole = stored(package)
    empty.write_bytes(b"")
    cut_off.write_bytes(cut_off.read_bytes()[:-1])
    contents = other_bit.read_bytes()
    other_bit.write_bytes(contents[:2000] + bytes([contents[2000] ^ 1]) + contents[2001:])
    again, problems = run(package, *names)
    assert len(problems) == 3 and all(problem.endswith("ValueError: damaged") for problem in problems)
    assert len(loaded(again)) == len(whole) == 2
    assert stored(package) == [empty, cut_off, other_bit, *whole]
    last, problems = run(package, *names)
    assert problems == [] and loaded(last) == set(first)


def test_kernels_are_compiled_if_nothing_can_be_written(package):
    package.cache.write_text("a file instead of a directory")
    kernels, problems = run(package, "sum", "sum")
    assert loaded(kernels) == set() and len(kernels) == 1 and "NotADirectoryError" in problems[0]


def test_kernels_are_compiled_without_a_home_directory(package):
    patch = "kernel_cache.directory = lambda: Path('~no-such-user').expanduser()"
    kernels, problems = run(package, "sum", patch=patch)
    assert len(kernels) == 1 and "RuntimeError" in problems[0]


def test_several_processes_at_once(package):
    """They need the same kernels for different types in different orders. Each is compiled once; a later process finds all of them."""
    names = ("sum", "made 1 1", "made 2 1", "scale")
    started = [start(package, *names[i:], *names[:i]) for i in range(4)]
    code, compiled = {}, []
    for kernels, problems in map(finish, started):
        assert problems == [] and len(kernels) == 5
        compiled += set(kernels) - loaded(kernels)
        for name, (_, digest) in kernels.items():
            code.setdefault(name, set()).add(digest)
    assert sorted(compiled) == sorted(code), "a process waits for a kernel that another one is compiling"
    after, problems = run(package, *names)
    assert problems == [] and loaded(after) == set(code)
    assert all(digest in code[name] for name, (_, digest) in after.items())
    assert len(stored(package)) == 5  # no unfinished files are left, no claims


def test_the_least_recently_used_kernels_are_deleted(package):
    run(package, "scale", "sum")
    for path in stored(package):
        used = 1 if "sum" in path.name else 2  # in 1970
        os.utime(path, (used, used))
    for suffix in ("unfinished", "claim", "list"):
        (package.cache / "gpt2_numba" / "kernels" / f"old.{suffix}").touch()
        os.utime(package.cache / "gpt2_numba" / "kernels" / f"old.{suffix}", (1, 1))
    run(package, "sum")  # makes it the most recently used
    _, problems = run(package, "made 1 1", patch="kernel_cache.KEPT_BYTES = 70_000")  # room for two
    assert problems == [] and sorted(path.name.partition("-")[0] for path in stored(package)) == ["scale.made_kernel", "scale.sum_kernel"]


# ----------------------------------------------------------------------------------------------------------------- which kernels


def test_kernels_outside_the_package_keep_numbas_cache(package):
    patch = (
        "from numba import cuda; from numba.cuda.dispatcher import CUDACache\n"
        "from tokenize import open as function\n"  # any function of a file that is not the package's
        "dispatcher = cuda.jit(cache=True)(function)\n"
        "assert isinstance(dispatcher._cache, CUDACache), dispatcher._cache"
    )
    run(package, "sum", patch=patch)


def test_every_kernel_of_the_package_can_be_stored(package):
    """No closure holds a value that cannot be described."""
    shutil.rmtree(package.sources)
    shutil.copytree(ROOT / "gpt2_numba", package.sources, ignore=shutil.ignore_patterns("__pycache__"))
    (package.sources / "layers" / "scale.py").write_text(LAYER)
    (package.sources / "layers" / "fast" / "scale.py").write_text(FAST_LAYER)
    patch = (
        "sys.path.insert(0, str(Path(__file__).parent)); from test_ptx import all_kernels\n"
        "kernels = all_kernels()\n"
        "assert len(kernels) > 20\n"
        "for kernel in filter(None, kernels.values()):\n"
        "    kernel_cache.KernelCache(kernel).path(())"
    )
    run(package, "sum", patch=patch)


def test_the_simulator_stores_nothing(package):
    program = "import numpy as np; from gpt2_numba.layers.scale import sum_kernel, scale_kernel as k; o = np.zeros(8, np.float32)\n"
    program += "k[1, 1](o, o + 1); assert (o == 2).all()"
    environment = os.environ | {"PYTHONPATH": str(package.sources.parent), "XDG_CACHE_HOME": str(package.cache)}
    edit(package.sources / "layers" / "scale.py", ", launch_bounds=(64, 2)", "")  # not every version of the simulator accepts it
    edit(package.sources / "layers" / "scale.py", ", launch_bounds=bounds", "")
    environment["NUMBA_ENABLE_CUDASIM"] = "1"
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=package.directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not package.cache.exists()


if __name__ == "__main__":
    compile_and_report(*json.loads(sys.argv[1]))
