"""Chapter 13: its occupancy against NVIDIA's, its counts against the package's; the compiler that its sections 7 to 9 call."""

import ast
import random
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dev.bench.costs import launch_cost
from tutorials import machine_code
from tutorials.check.compiling import missing_compiler
from tutorials.check.exercises.chapter_13 import occupancy
from tutorials.check.exercises.chapter_13.bytes_and_flops import counted
from tutorials.quotes import ROOT

CHAPTER = ROOT / "tutorials" / "13_how_fast_could_it_be.py"
needs_compiler = pytest.mark.skipif(bool(missing_compiler()), reason="no CUDA compiler: pip install -e '.[tutorials]'")

# The limits of compute capability 9.0. Reads threads, registers and shared bytes of a launch in each line, and prints the number of blocks.
OCCUPANCY_PROGRAM = """
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "cuda_occupancy.h"
int main() {
    int threads, registers; long shared_bytes;
    cudaOccDeviceProp gpu; memset(&gpu, 0, sizeof gpu);
    gpu.computeMajor = 9; gpu.maxThreadsPerBlock = 1024; gpu.maxThreadsPerMultiprocessor = 2048; gpu.warpSize = 32; gpu.numSms = 132;
    gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536; gpu.sharedMemPerBlock = 48 << 10; gpu.sharedMemPerMultiprocessor = 228 << 10;
    gpu.sharedMemPerBlockOptin = 227 << 10; gpu.reservedSharedMemPerBlock = 1 << 10;
    cudaOccDeviceState state; memset(&state, 0, sizeof state); state.carveoutConfig = 100;
    while (scanf("%d %d %ld", &threads, &registers, &shared_bytes) == 3) {
        cudaOccFuncAttributes kernel; memset(&kernel, 0, sizeof kernel);
        kernel.maxThreadsPerBlock = 1024; kernel.numRegs = registers; kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = 227 << 10; kernel.numBlockBarriers = 1; kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
        cudaOccResult result;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state, threads, shared_bytes)) return 1;
        printf("%d\\n", result.activeBlocksPerMultiprocessor);
    }
}
"""


def function_of_the_chapter(name):
    """A function that the chapter defines and that needs nothing else of it."""
    tree = ast.parse(CHAPTER.read_text(encoding="utf-8"))
    names = {}
    definition = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    exec(compile(ast.Module([definition], []), str(CHAPTER), "exec"), names)
    return names[name]


def random_blocks(count):
    """(threads, registers, shared bytes) of blocks."""
    lots = random.Random(13)
    shared_bytes = (lambda: 0, lambda: lots.randint(0, 30_000), lambda: lots.randint(0, 227 << 10))
    return [(lots.randint(1, 1024), lots.randint(1, 255), lots.choice(shared_bytes)()) for _ in range(count)]


def test_the_occupancy_is_nvidias(tmp_path):
    compiler = shutil.which("cc")
    headers = sorted(Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*/include/cuda_occupancy.h"))
    if not compiler or not headers:
        pytest.skip("needs a C compiler and cuda_occupancy.h, which is part of the wheel nvidia-cuda-runtime")
    source, program = tmp_path / "occupancy.c", tmp_path / "occupancy"
    source.write_text(OCCUPANCY_PROGRAM, encoding="utf-8")
    subprocess.run([compiler, "-w", "-I", str(headers[-1].parent), "-o", str(program), str(source)], check=True)
    blocks_at_once, blocks = function_of_the_chapter("blocks_at_once"), random_blocks(1000)
    asked = "\n".join(" ".join(map(str, block)) for block in blocks)
    expected = subprocess.run([program], input=asked, capture_output=True, text=True, check=True).stdout.split()
    found = [blocks_at_once(*block) for block in blocks]
    assert [(block, n) for block, n, e in zip(blocks, found, expected, strict=True) if n != int(e)] == []


def test_the_exercise_agrees_with_the_chapter():
    blocks_at_once = function_of_the_chapter("blocks_at_once")
    for threads, _, shared_bytes in random_blocks(12):
        width = -(-threads // 32)
        for warps in (1, 16, 33, 64):
            fitting = [count for count in range(1, 256) if blocks_at_once(threads, count, shared_bytes) * width >= warps]
            assert occupancy.most(threads, shared_bytes, warps) == max(fitting, default=0)


@pytest.mark.parametrize("B, T, C, OC, NH", [(2, 5, 12, 7, 3), (64, 1024, 768, 3072, 12)])
def test_bytes_and_flops_are_counted_as_the_package_counts(B, T, C, OC, NH):
    def array(*shape, dtype=np.uint16):
        return np.broadcast_to(np.zeros(1, dtype), shape)  # only its shape and type are asked for

    N = B * T
    qkv, out, lse = array(N, 3 * C), array(N, C), array(B, NH, T, dtype=np.float32)
    weight, bias = array(OC, C), array(OC)
    calls = {
        "residual_forward": {"out": out, "inp": out, "branch": out},
        "matmul_backward": {"dinp": out, "dweight": weight, "dbias": bias, "dout": array(N, OC), "inp": out, "weight": weight},
        "attention_forward": {"out": out, "lse": lse, "qkv": qkv},
    }
    for name, (nbytes, flop) in counted(B, T, C, OC, NH, 2).items():
        cost = launch_cost(SimpleNamespace(name=name, arguments=calls[name]))
        assert (cost.bytes, cost.flop if cost.is_product else 0) == (nbytes, flop), name


def tenth_kernel(out, inp):
    out[0] = 0.1 * inp[0]


def not_a_kernel(out, inp):
    out[0] = inp.no_such_thing()


@needs_compiler
def test_a_kernel_is_compiled_without_a_gpu():
    name = "gpt2_numba.layers.residual.residual_forward_kernel"
    sheet = "float32[:, ::1]"
    codes = machine_code.compile_kernels({tenth_kernel: "float32[::1], float32[::1]", name: f"{sheet}, {sheet}, {sheet}"})
    assert list(codes) == ["tenth_kernel", name]
    assert [line.split()[0] for line in codes["tenth_kernel"].with_words(".f64")] == ["cvt.f64.f32", "mul.f64", "cvt.rn.f32.f64"]
    assert not codes[name].with_words(".f64") and 8 <= codes[name].registers <= 255
    assert (codes[name].local_bytes, codes[name].shared_bytes) == (0, 0)


@needs_compiler
def test_a_kernel_that_does_not_compile_is_a_sentence(capsys):
    assert machine_code.compile_kernels({not_a_kernel: "float32[::1], float32[::1]"}) == {}
    assert capsys.readouterr().out.startswith("the compiler does not run: ")


def test_without_a_compiler_a_sentence_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "__init__.py").write_text("")  # a package of this name that has no compiler hides the real one
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert machine_code.compile_kernels({tenth_kernel: "float32[::1], float32[::1]"}) == {}
    assert capsys.readouterr().out == machine_code.MISSING + "\n"
