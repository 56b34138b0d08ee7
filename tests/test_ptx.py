"""What the compiler makes of every kernel, seen without a GPU: no float64, everything in registers, memory moved 16 bytes at a time.

Numba compiles for a GPU only where its simulator is off, so this file runs itself a second time, as a program in a process of
its own: `python tests/test_ptx.py DIRECTORY` writes one .ptx file for each kernel and model type, for compute capability 9.0.

Every kernel must be named in KERNELS with the types of its arguments; one that is missing there fails the test.
"""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPUTE_CAPABILITY = (9, 0)
MODEL_TYPES = ("float32", "uint16")  # uint16: bfloat16 bits

# Arguments: a letter for arrays, with the number of axes: m the model's type, f float32, n int32; scalars by name.
# After the bar: what must be 16 bytes wide. Kernels without that are bound by arithmetic (tiled_gemm, which only stands in for
# cuBLASLt) or read a few numbers only.
KERNELS = {
    "reductions.accumulate_partials_kernel": "m1 f1 int int | load store",
    "tiled_gemm.tiled_gemm_kernel": "m3 m3 m3 int int int bool bool float bool m1 bool |",
    "adamw.adamw_kernel": "m1 m1 f1 f1 f1 bool float float float float float float float float bool int uint64 | load store",
    "attention.split_heads_kernel": "m5 m2 | load store",
    "attention.join_heads_kernel": "m2 m5 | load store",
    "attention.causal_softmax_forward_kernel": "m4 | load store",
    "attention.causal_softmax_backward_kernel": "m4 m4 | load store",
    "classifier.classifier_forward_kernel": "f1 m2 n1 int | load",
    "classifier.classifier_forward_backward_kernel": "f1 m2 n1 float int | load store",
    "classifier.accumulate_mean_kernel": "f1 f1 |",
    "encoder.encoder_forward_kernel": "m2 n2 m2 m2 | load store",
    "encoder.encoder_backward_wpe_kernel": "m2 m2 int | load store",
    "encoder.encoder_backward_wte_kernel": "m2 m2 n1 n1 | load store",
    "gelu.gelu_forward_kernel": "m2 m2 | load store",
    "gelu.gelu_backward_kernel": "m2 m2 m2 | load store",
    "global_norm.sum_of_squares_kernel": "f1 m1 | load",
    "global_norm.sum_of_partials_kernel": "f1 f1 |",
    "layernorm.layernorm_forward_kernel": "m2 f1 f1 m2 m1 m1 | load store",
    "layernorm.layernorm_backward_inp_kernel": "m2 m2 m2 m1 f1 f1 | load store",
    "layernorm.layernorm_backward_params_kernel": "f1 m2 m2 f1 f1 int | load store",
    "matmul.bias_backward_kernel": "f1 m2 int | load store",
    "residual.residual_forward_kernel": "m2 m2 m2 | load store",
    "residual.residual_backward_kernel": "m2 m2 m2 | load store",
}

# These move single numbers besides, few for each row or token. In all other kernels with something after the bar every access is wide.
ALSO_NARROW = {
    "classifier.classifier_forward_kernel": "a row's target, its logit, its loss",
    "classifier.classifier_forward_backward_kernel": "a row's target, its logit, its loss",
    "encoder.encoder_forward_kernel": "tokens",
    "encoder.encoder_backward_wte_kernel": "places and starts",
    "global_norm.sum_of_squares_kernel": "a block's partial sum",
    "layernorm.layernorm_forward_kernel": "a row's mean and rstd",
    "layernorm.layernorm_backward_inp_kernel": "a row's mean and rstd",
    "layernorm.layernorm_backward_params_kernel": "a row's mean and rstd",
}

OPCODES = {"load": "ld", "store": "st"}
# 16 bytes in one instruction, however the compiler cuts them: ld.global.v4.b32, ld.global.nc.v2.b64, st.global.v4.f32, ...
WIDE = re.compile(r"\.(?:v4\.[bfus]32|v2\.[bfus]64|v8\.[bfus]16|b128)$")


# --------------------------------------------------------------------------------------- the program: compile everything


def all_kernels():
    """Every kernel of the layers and of gpu/, by "module.function": all `@cuda.jit` functions that are not for the device only."""
    from numba.cuda.dispatcher import CUDADispatcher

    import gpt2_numba.gpu
    import gpt2_numba.layers

    kernels = {}
    for package in (gpt2_numba.gpu, gpt2_numba.layers):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            for thing in vars(importlib.import_module(info.name)).values():
                if isinstance(thing, CUDADispatcher) and not thing.targetoptions.get("device"):
                    function = thing.py_func
                    kernels[f"{function.__module__.rpartition('.')[2]}.{function.__name__}"] = function
    return kernels


def argument_types(spec, model_type):
    from numba import types

    scalars = {"int": types.int64, "float": types.float32, "bool": types.boolean, "uint64": types.uint64}
    elements = {"m": getattr(types, model_type), "f": types.float32, "n": types.int32}
    words = spec.split("|")[0].split()
    return tuple(scalars[w] if w in scalars else types.Array(elements[w[0]], int(w[1:]), "C") for w in words)


def compile_all(directory):
    """Write directory/KERNEL-TYPE.ptx for all kernels, and directory/kernels.txt with their names."""
    from numba import cuda
    from numba.cuda import dispatcher

    # The compiler asks for the GPU in use only to learn its compute capability.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=COMPUTE_CAPABILITY)
    kernels = all_kernels()
    (directory / "kernels.txt").write_text("\n".join(sorted(kernels)))
    for name, function in kernels.items():
        for model_type in MODEL_TYPES if name in KERNELS else ():
            types = argument_types(KERNELS[name], model_type)
            ptx, _ = cuda.compile_ptx(function, types, cc=COMPUTE_CAPABILITY)
            (directory / f"{name}-{model_type}.ptx").write_text(ptx)


# ------------------------------------------------------------------------------------------------------------- the tests


def missing_parts():
    """What the compiler needs and this machine lacks; an empty string if all is there."""
    program = "import numba_cuda, cuda.bindings.nvrtc as r, cuda.bindings.nvvm as v; v.version(); assert not r.nvrtcVersion()[0]"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def environment():
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    """The directory that compile_all has filled."""
    missing = missing_parts()
    if missing:
        pytest.skip(f"no CUDA compiler ({missing}): pip install 'numba-cuda[cu13]', which the `test` extra has on Linux")
    directory = tmp_path_factory.mktemp("ptx")
    done = subprocess.run([sys.executable, __file__, str(directory)], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


def find_ptxas():
    """Path of the assembler: from the wheel nvidia-cuda-nvcc, or on the PATH; None where there is none."""
    wheels = Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*/bin/ptxas")
    return next((str(path) for path in sorted(wheels, reverse=True)), None) or shutil.which("ptxas")


every_kernel = pytest.mark.parametrize("kernel", KERNELS)
both_types = pytest.mark.parametrize("model_type", MODEL_TYPES)


def test_every_kernel_is_in_the_table(ptx):
    found = set((ptx / "kernels.txt").read_text().split())
    assert found - set(KERNELS) == set(), "new kernels: write their argument types into KERNELS"
    assert set(KERNELS) - found == set(), "these kernels are gone: take them out of KERNELS"
    assert all(name.endswith("_kernel") for name in found)


@both_types
@every_kernel
def test_no_float64(ptx, kernel, model_type):
    lines = (ptx / f"{kernel}-{model_type}.ptx").read_text().splitlines()
    assert [line for line in lines if ".f64" in line] == [], "a bare Python literal or an int division makes float64"


@both_types
@every_kernel
def test_arrays_of_eight_stay_in_registers(ptx, kernel, model_type):
    lines = (ptx / f"{kernel}-{model_type}.ptx").read_text().splitlines()
    assert [line for line in lines if ".local" in line] == [], "an index into a cuda.local.array is not a constant after unrolling"


@both_types
@every_kernel
def test_memory_is_moved_16_bytes_at_a_time(ptx, kernel, model_type):
    directions = KERNELS[kernel].split("|")[1].split()
    text = (ptx / f"{kernel}-{model_type}.ptx").read_text()
    for direction in directions:
        accesses = re.findall(rf"\b{OPCODES[direction]}\.global[\w.]*", text)
        narrow = [access for access in accesses if not WIDE.search(access)]
        assert len(narrow) < len(accesses), f"no 16-byte {direction} in the PTX"
        assert not narrow or kernel in ALSO_NARROW, f"not only 16-byte {direction}s: {narrow}"


def test_no_kernel_spills(ptx, tmp_path):
    """The assembler's own report: registers that did not suffice go to memory and back, slowly."""
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("no ptxas: pip install nvidia-cuda-nvcc to see whether kernels spill registers")
    arch = "sm_{}{}".format(*COMPUTE_CAPABILITY)
    spilling = []
    for path in sorted(ptx.glob("*.ptx")):
        command = [ptxas, "-v", f"-arch={arch}", "-o", str(tmp_path / "out.cubin"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{path.stem}: {done.stderr}"
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
        ).groups()
        registers = re.search(r"Used (\d+) registers", done.stderr).group(1)
        print(f"{path.stem:<56}{registers:>4} registers{stack:>6} bytes of stack")
        if any(int(count) for count in (stack, stores, loads)):
            spilling.append(f"{path.stem}: stack {stack}, spill stores {stores}, spill loads {loads} bytes")
    assert spilling == []


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]))
