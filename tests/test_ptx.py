"""The compiled code of every kernel, without a GPU: no float64, local arrays in registers; fast kernels move memory 16 bytes at a time.

Numba compiles for a GPU only if its simulator is off, so this file runs itself again as a program, in one process per core:
`python tests/test_ptx.py DIRECTORY 0 1` writes one .ptx file per kernel and build. A fast kernel has a build for each model type, for
compute capability 9.0; a plain one, in layers/NAME.py, a build for each of the compute capabilities 7.5 and 9.0. `0 2` and `1 2` write half
of the files each.

Every kernel must be listed in FAST_KERNELS or PLAIN_KERNELS with the types of its arguments; the tests fail if one is missing. Names are
those of gpu/kernel_cache.py.
"""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPUTE_CAPABILITY = (9, 0, "a")  # a: with the instructions that only Hopper has
CORES = os.cpu_count() or 1
# Name of a build -> the model's type, compute capability. uint16: bfloat16 bits.
FAST_BUILDS = {"float32": ("float32", COMPUTE_CAPABILITY), "uint16": ("uint16", COMPUTE_CAPABILITY)}
PLAIN_BUILDS = {"sm_75": ("float32", (7, 5)), "sm_90": ("float32", (9, 0))}

# Arguments: arrays as a letter and the number of axes (m the model's type, b bfloat16 bits, c eight bits, f float32, n int32, l int64, u uint32), scalars
# by type. After the bar: what must be 16 bytes wide. Kernels with nothing after it read only a few elements, or arrays
# that begin anywhere.
FAST_KERNELS = {
    "reductions.accumulate_partials_kernel": "m1 m1 m1 f1 int | load",
    "column_sums.bias_backward_kernel": "f1 m2 int | load store",
    "tensor_statistics.tensor_statistics_kernel": "f2 m1 |",
    "red_zones.fill_kernel": "b1 int |",
    "red_zones.zones_kernel": "n1 b1 l2 |",
    "red_zones.examine_kernel": "n1 u1 int int int |",
    "fast.adamw.adamw_kernel": "m1 m1 f1 f1 f1 bool f1 u1 f1 l2 int int float float float float bool | load store",
    "fast.delta.delta_kernel": "f3 m2 m2 | load",
    "fast.matmuls.split_heads_kernel": "f5 m2 | load store",
    "fast.matmuls.join_heads_kernel": "m2 f5 | load store",
    "fast.matmuls.causal_softmax_forward_kernel": "f4 f3 | load store",
    "fast.matmuls.causal_softmax_backward_kernel": "f4 f4 f3 f3 | load store",
    "fast.mma.attention_forward_kernel": "b2 f3 b2 | store",
    "fast.mma.attention_backward_queries_kernel": "b2 b2 f3 f3 b2 | store",
    "fast.mma.attention_backward_keys_kernel": "b2 b2 f3 f3 b2 | store",
    "fast.tf32.attention_forward_kernel": "f2 f3 f2 | store",
    "fast.tf32.attention_backward_queries_kernel": "f2 f2 f3 f3 f2 | store",
    "fast.tf32.attention_backward_keys_kernel": "f2 f2 f3 f3 f2 | store",
    "fast.one_query.attention_one_query_kernel": "m2 f1 m3 m2 n1 | load store",
    "fast.one_query.combine_blocks_kernel": "m2 f1 n1 int |",
    "fast.wgmma.attention_forward_kernel": "b2 f3 b2 int | store",
    "fast.wgmma.attention_backward_queries_kernel": "b2 f2 f3 b2 b2 f3 b2 int | load store",
    "fast.wgmma.attention_backward_keys_kernel": "b2 f2 b2 f3 f3 b2 int | store",
    "fast.classifier.classifier_forward_kernel": "f1 m2 n1 int | load",
    "fast.classifier.classifier_forward_backward_kernel": "f1 m2 n1 float | store",
    "fast.classifier.classifier_forward_backward_shared_kernel": "f1 m2 n1 float int | store",
    "fast.classifier.classifier_forward_backward_long_kernel": "f1 m2 n1 float int | load store",
    "fast.classifier.accumulate_mean_kernel": "f1 f1 | load",
    "fast.encoder.encoder_forward_kernel": "m2 n2 m2 m2 | load store",
    "fast.encoder.encoder_backward_wpe_kernel": "m2 m2 int | load store",
    "fast.encoder.encoder_backward_wte_kernel": "m2 f1 m2 n1 n2 | load store",
    "fast.encoder.encoder_backward_pieces_kernel": "m2 f1 n2 | load store",
    "fast.one_row.one_row_kernel": "m2 m2 m2 m1 m1 m1 bool bool bool | load",
    "quantize.largest_kernel": "f1 m2 | load",
    "quantize.quantize_kernel": "c2 c2 f1 m2 f1 | load store",
    "fast.gelu.gelu_forward_kernel": "m2 m2 | load store",
    "fast.gelu.gelu_backward_kernel": "m2 m2 m2 | load store",
    "fast.gelu.gelu_backward_dbias_kernel": "m2 f1 f1 m2 m2 int | load store",
    "fast.global_norm.sum_of_squares_kernel": "f1 m1 l2 | load",
    "fast.global_norm.norm_and_scale_kernel": "f1 f1 f1 float |",
    "fast.layernorm.layernorm_forward_kernel": "m2 f1 f1 f1 m2 m1 m1 | load store",
    "fast.layernorm.residual_layernorm_forward_kernel": "m2 m2 f1 f1 f1 m2 m2 m1 m1 | load store",
    "fast.layernorm.layernorm_backward_kernel": "m2 f1 f1 m2 m2 m1 f1 f1 | load store",
    "fast.residual.residual_forward_kernel": "m2 m2 m2 | load store",
}

PLAIN_KERNELS = {
    "adamw.adamw_kernel": "f1 f1 f1 f1 f1 float float float float float float float",
    "attention.attention_forward_kernel": "f4 f3 f5 float",
    "attention.attention_backward_queries_kernel": "f5 f4 f4 f3 f5 float",
    "attention.attention_backward_keys_kernel": "f5 f4 f4 f3 f5 float",
    "one_query.attention_one_query_kernel": "f3 f5 f4 n1 float",
    "classifier.classifier_forward_kernel": "f1 f2 n1 int",
    "classifier.classifier_forward_backward_kernel": "f1 f2 n1 float int",
    "classifier.accumulate_mean_kernel": "f1 f1",
    "encoder.encoder_forward_kernel": "f3 n2 f2 f2",
    "encoder.encoder_backward_wpe_kernel": "f2 f3",
    "encoder.encoder_backward_wte_kernel": "f2 f3 n2",
    "gelu.gelu_forward_kernel": "f2 f2",
    "gelu.gelu_backward_kernel": "f2 f2 f2",
    "global_norm.sum_of_squares_kernel": "f1 f1",
    "global_norm.norm_and_scale_kernel": "f1 f1 f1 float",
    "layernorm.layernorm_forward_kernel": "f2 f1 f1 f2 f1 f1",
    "layernorm.layernorm_backward_inp_kernel": "f2 f2 f2 f1 f1 f1",
    "layernorm.layernorm_backward_params_kernel": "f1 f1 f2 f2 f1 f1",
    "matmul.product_kernel": "f2 f2 f2 f1 int bool bool bool bool",
    "matmul.bias_backward_kernel": "f1 f2",
    "residual.residual_forward_kernel": "f2 f2 f2",
    "residual.residual_backward_kernel": "f2 f2 f2",
}

# Kernels that a function of their module makes for a size: the function's name, and the arguments with which they are compiled here.
MADE = {
    "fast.classifier.classifier_forward_backward_kernel": ("make_training_kernel", ((50257, 50304), (257, 384))),
    "fast.layernorm.layernorm_forward_kernel": ("make_forward_kernels", ((768,), (768, True), (1600,), (1600, True), (5120,))),
    "fast.layernorm.residual_layernorm_forward_kernel": ("make_forward_kernels", ((768,), (768, True), (1600,), (1600, True), (5120,))),
    "fast.layernorm.layernorm_backward_kernel": (
        "make_backward_kernel",
        (
            *((*shape, sums, largest) for shape in ((768, 4, 1), (1600, 4, 2)) for sums in (False, True) for largest in (False, True)),
            *((*shape, True, True) for shape in ((768, 1, 2), (1600, 1, 0), (3072, 4, 1), (5120, 1, 2), (8192, 1, 1))),
        ),
    ),
}

MADE["quantize.quantize_kernel"] = (
    "make_quantize_kernel",
    tuple(
        (form, *options)
        for form in ("e4m3", "e5m2")
        for options in ((True, False, False), (False, True, False), (True, True, False), (True, True, True), (False, True, True))
    ),
)
MADE["quantize.largest_kernel"] = ("make_largest_kernel", ((False,), (True,)))
MADE |= {f"fast.encoder.encoder_{name}_kernel": ("make_kernels", ((768,), (1600,), (5120,))) for name in ("forward", "backward_wte")}
MADE["fast.gelu.gelu_backward_dbias_kernel"] = ("make_dbias_kernel", ((False,), (True,)))
MADE["fast.one_query.attention_one_query_kernel"] = ("make_one_query_kernel", ((8,), (64,), (80,), (128,), (320,)))
MADE["fast.one_row.one_row_kernel"] = (
    "make_one_row_kernel",
    ((768, True), (1600, True), (1600, False), (3072, False), (6400, False), (20480, False)),
)
MADE |= {
    f"fast.{file}.attention_{name}_kernel": (f"make_{name}_kernel", ((64,), (80,), (96,), (128,)))
    for file in ("mma", "tf32")
    for name in ("forward", "backward_queries", "backward_keys")
}

# These also move single elements, a few per row or token. In all other kernels with something after the bar every access is wide.
ALSO_NARROW = {
    "fast.adamw.adamw_kernel": "what changes from step to step; ranges that decay",
    "fast.classifier.accumulate_mean_kernel": "the mean; the last few losses",
    "fast.classifier.classifier_forward_kernel": "a row's target, its logit, its loss",
    "fast.classifier.classifier_forward_backward_kernel": "a row's target, its logit, its loss, its gradient",
    "fast.classifier.classifier_forward_backward_shared_kernel": "a row's target, its logit, its loss",
    "fast.classifier.classifier_forward_backward_long_kernel": "a row's target, its logit, its loss",
    "fast.encoder.encoder_forward_kernel": "tokens",
    "fast.encoder.encoder_backward_wte_kernel": "places and pieces",
    "fast.encoder.encoder_backward_pieces_kernel": "pieces",
    "fast.one_row.one_row_kernel": "the bias, the residual stream",
    "quantize.largest_kernel": "the largest so far",
    "quantize.quantize_kernel": "the largest, the scale",
    "fast.gelu.gelu_backward_dbias_kernel": "the largest so far",
    "fast.global_norm.sum_of_squares_kernel": "a block's partial sum",
    "fast.matmuls.causal_softmax_forward_kernel": "a row's lse",
    "fast.matmuls.causal_softmax_backward_kernel": "a row's lse and delta",
    "fast.mma.attention_forward_kernel": "a row's lse",
    "fast.tf32.attention_forward_kernel": "a row's lse",
    "fast.one_query.attention_one_query_kernel": "the position, the output, results for combine_blocks_kernel",
    "fast.wgmma.attention_forward_kernel": "a row's lse",
    "fast.wgmma.attention_backward_queries_kernel": "a row's lse and delta, a tile's sums",
    "fast.wgmma.attention_backward_keys_kernel": "a tile's sums",
    "fast.layernorm.layernorm_forward_kernel": "a row's mean and rstd",
    "fast.layernorm.residual_layernorm_forward_kernel": "a row's mean and rstd",
    "fast.layernorm.layernorm_backward_kernel": "a row's mean and rstd",
    "reductions.accumulate_partials_kernel": "the results",
}

OPCODES = {"load": "ld", "store": "st"}
# 16 bytes in one instruction, however the compiler divides them: ld.global.v4.b32, ld.global.nc.v2.b64, st.global.v4.f32, ...
WIDE = re.compile(r"\.(?:v4\.[bfus]32|v2\.[bfus]64|v8\.[bfus]16|b128)$")


# --------------------------------------------------------------------------------------- the program: compile everything


def instance_name(kernel, arguments):
    """The name under which a kernel made for these arguments is compiled and tested."""
    return "-".join([kernel, *map(str, arguments)])


INSTANCES = {  # name -> name in FAST_KERNELS or PLAIN_KERNELS
    instance_name(kernel, arguments): kernel
    for kernel in (*FAST_KERNELS, *PLAIN_KERNELS)
    for arguments in MADE.get(kernel, (None, ((),)))[1]
}


def builds_of(instance):
    """Name of a build -> the model's type, compute capability."""
    return FAST_BUILDS if INSTANCES[instance] in FAST_KERNELS else PLAIN_BUILDS


def all_kernels():
    """Every kernel of the layers and of gpu/, by its name in INSTANCES: all `@cuda.jit` functions except device functions.

    Functions named make_..._kernel or make_..._kernels make kernels. One that is not in MADE is listed under its own name.
    """
    from numba.cuda.dispatcher import CUDADispatcher

    import gpt2_numba.gpu
    import gpt2_numba.layers
    from gpt2_numba.gpu.kernel_cache import kernel_name

    kernels = {}

    def add(thing, arguments=()):
        if isinstance(thing, CUDADispatcher) and not thing.targetoptions.get("device"):
            kernels[instance_name(kernel_name(thing.py_func), arguments)] = thing

    for package in (gpt2_numba.gpu, gpt2_numba.layers):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            module = importlib.import_module(info.name)
            for thing in list(vars(module).values()):
                add(thing)
                if re.fullmatch(r"make_\w*kernels?", getattr(thing, "__name__", "")) and thing.__module__ == info.name:
                    maker = kernel_name(thing)
                    known = {
                        arguments
                        for kernel, (makers_name, made_for) in MADE.items()
                        for arguments in made_for
                        if f"{kernel.rpartition('.')[0]}.{makers_name}" == maker
                    }
                    if not known:
                        kernels[maker] = None
                    for arguments in known:
                        made = thing(*arguments)
                        for part in made if isinstance(made, tuple) else (made,):
                            add(part, arguments)
    return kernels


def argument_types(spec, model_type):
    from numba import types

    scalars = {"int": types.int64, "float": types.float32, "bool": types.boolean}
    elements = {
        "m": getattr(types, model_type),
        "f": types.float32,
        "n": types.int32,
        "l": types.int64,
        "u": types.uint32,
        "b": types.uint16,
        "c": types.uint8,
    }
    words = spec.split("|")[0].split()
    return tuple(scalars[w] if w in scalars else types.Array(elements[w[0]], int(w[1:]), "C") for w in words)


def compile_all(directory, share, shares):
    """Write directory/KERNEL-BUILD.ptx for share 0, 1, ... or shares - 1 of all kernels; share 0 also writes all names to kernels.txt."""
    from numba import cuda
    from numba.cuda import dispatcher

    kernels, specs = all_kernels(), FAST_KERNELS | PLAIN_KERNELS
    if share == 0:
        (directory / "kernels.txt").write_text("\n".join(sorted(kernels)))
    for name, kernel in sorted(kernels.items())[share::shares]:
        compiled = {}  # types, compute capability -> PTX: not every kernel has arguments of the model's type
        for build, (model_type, capability) in (builds_of(name) if name in INSTANCES else {}).items():
            types = argument_types(specs[INSTANCES[name]], model_type)
            if (types, capability) not in compiled:
                # The compiler needs the current GPU only for its compute capability.
                dispatcher.get_current_device = lambda capability=capability: SimpleNamespace(compute_capability=capability)
                bounds = kernel.targetoptions.get("launch_bounds")
                compiled[types, capability], _ = cuda.compile_ptx(kernel.py_func, types, cc=capability, launch_bounds=bounds)
            (directory / f"{name}-{build}.ptx").write_text(compiled[types, capability])


# ------------------------------------------------------------------------------------------------------------- the tests


def missing_parts():
    """The error message if something that the compiler needs is missing on this machine, else an empty string."""
    program = "import numba_cuda, cuda.bindings.nvrtc as r, cuda.bindings.nvvm as v; v.version(); assert not r.nvrtcVersion()[0]"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def environment():
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    """The directory with the output of compile_all."""
    missing = missing_parts()
    if missing:
        pytest.skip(f"no CUDA compiler ({missing}): pip install 'numba-cuda[cu13]', which the `test` extra includes on Linux")
    directory = tmp_path_factory.mktemp("ptx")
    programs = [[sys.executable, __file__, str(directory), str(share), str(CORES)] for share in range(CORES)]
    running = [subprocess.Popen(program, env=environment(), stderr=subprocess.PIPE, text=True) for program in programs]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return directory


def find_ptxas():
    """Path of the assembler: from the wheel nvidia-cuda-nvcc, or on the PATH; None if there is none."""
    wheels = Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*/bin/ptxas")
    return next((str(path) for path in sorted(wheels, reverse=True)), None) or shutil.which("ptxas")


every_build = pytest.mark.parametrize(
    "kernel, build", [pytest.param(kernel, build, id=f"{kernel}-{build}") for kernel in INSTANCES for build in builds_of(kernel)]
)
every_fast_build = pytest.mark.parametrize(
    "kernel, build",
    [
        pytest.param(kernel, build, id=f"{kernel}-{build}")
        for kernel, name in INSTANCES.items() if name in FAST_KERNELS for build in FAST_BUILDS
    ],
)  # fmt: skip


def test_every_kernel_is_in_the_table(ptx):
    found = set((ptx / "kernels.txt").read_text().split())
    assert found - set(INSTANCES) == set(), (
        "new kernels: add their argument types to FAST_KERNELS or PLAIN_KERNELS, and kernels that a function makes also to MADE"
    )
    assert set(INSTANCES) - found == set(), "these kernels no longer exist: remove them from the table"
    assert all(name.endswith("_kernel") for name in INSTANCES.values())


def test_plain_and_fast_kernels_do_not_mix():
    assert not [name for name in PLAIN_KERNELS if name.startswith("fast.")]
    assert {name.partition(".")[0] for name in FAST_KERNELS} == {
        "fast",
        "column_sums",
        "quantize",
        "reductions",
        "tensor_statistics",
        "red_zones",
    }


@every_build
def test_no_float64(ptx, kernel, build):
    lines = (ptx / f"{kernel}-{build}.ptx").read_text().splitlines()
    assert [line for line in lines if ".f64" in line] == [], "a bare Python literal or a division of integers gives float64"


@every_build
def test_local_arrays_stay_in_registers(ptx, kernel, build):
    lines = (ptx / f"{kernel}-{build}.ptx").read_text().splitlines()
    assert [line for line in lines if ".local" in line] == [], "an index into a cuda.local.array is not a constant after unrolling"


@every_fast_build
def test_memory_is_moved_16_bytes_at_a_time(ptx, kernel, build):
    directions = FAST_KERNELS[INSTANCES[kernel]].split("|")[1].split()
    text = (ptx / f"{kernel}-{build}.ptx").read_text()
    for direction in directions:
        accesses = re.findall(rf"\b{OPCODES[direction]}\.global[\w.]*", text)
        narrow = [access for access in accesses if not WIDE.search(access)]
        assert len(narrow) < len(accesses), f"no 16-byte {direction} in the PTX"
        assert not narrow or INSTANCES[kernel] in ALSO_NARROW, f"not only 16-byte {direction}s: {narrow}"


def test_no_kernel_spills(ptx, tmp_path):
    """The assembler's own report: values that do not fit into registers go to memory and back, slowly."""
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("no ptxas: pip install nvidia-cuda-nvcc to see whether kernels spill registers")

    def assembled(path):
        arch = re.search(r"^\.target (\w+)", path.read_text(), re.MULTILINE).group(1)
        return subprocess.run(
            [ptxas, "-v", f"-arch={arch}", "-o", str(tmp_path / f"{path.stem}.cubin"), str(path)], capture_output=True, text=True
        )

    spilling, paths = [], sorted(ptx.glob("*.ptx"))
    for path, done in zip(paths, ThreadPoolExecutor(CORES).map(assembled, paths)):
        assert done.returncode == 0, f"{path.stem}: {done.stderr}"
        assert "(C75" not in done.stderr, f"{path.stem}: the assembler serializes the products of tiles: {done.stderr}"
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
        ).groups()
        registers = re.search(r"Used (\d+) registers", done.stderr).group(1)
        print(f"{path.stem:<56}{registers:>4} registers{stack:>6} bytes of stack")
        if any(int(count) for count in (stack, stores, loads)):
            spilling.append(f"{path.stem}: stack {stack}, spill stores {stores}, spill loads {loads} bytes")
    assert spilling == []


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]), *map(int, sys.argv[2:]))
