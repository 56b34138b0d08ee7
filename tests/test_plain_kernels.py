"""What makes a plain kernel plain: it fits on one screen, stands alone, and uses only CUDA's basic vocabulary. Checked in the source.

Their results are checked in test_layer_kernels.py, their compiled code in test_ptx.py.
"""

import ast
from pathlib import Path

import pytest

from gpt2_numba.kernel_sets import FUNCTIONS

LAYERS = Path(__file__).resolve().parents[1] / "gpt2_numba" / "layers"
FILES = sorted([*LAYERS.glob("[!_]*.py"), *LAYERS.glob("[!f]*/__init__.py")])
MOST_FILE_LINES, MOST_KERNEL_LINES = 250, 40
# All of numba.cuda that a plain kernel may use.
VOCABULARY = {
    "cuda.threadIdx", "cuda.blockIdx", "cuda.blockDim", "cuda.gridDim", "cuda.grid", "cuda.gridsize", "cuda.shared", "cuda.syncthreads",
}  # fmt: skip
SHARED_FUNCTIONS = {"block_sum", "block_max"}  # of gpu/block_sum.py
BUILT_IN = {"range", "min", "max", "float32"}


def layer_name(path):
    return path.parent.name if path.stem == "__init__" else path.stem


def is_kernel(node):
    return isinstance(node, ast.FunctionDef) and any(ast.unparse(decorator).startswith("cuda.jit") for decorator in node.decorator_list)


def file_kernels(path):
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if is_kernel(node)]


KERNELS = [pytest.param(path, kernel, id=f"{layer_name(path)}.{kernel.name}") for path in FILES for kernel in file_kernels(path)]


def test_every_layer_function_has_its_file():
    homes = {function.__module__.rpartition(".")[2] for function in FUNCTIONS.values()}
    assert homes == {layer_name(path) for path in FILES}


def test_files_and_kernels_are_short():
    rows = [
        (layer_name(path), len(path.read_text().splitlines()), [(k.name, k.end_lineno - k.lineno + 1) for k in file_kernels(path)])
        for path in FILES
    ]
    for layer, lines, kernels in rows:
        print(f"{layer:<12}{lines:>4} lines   " + ", ".join(f"{name} {length}" for name, length in kernels))
    assert all(lines <= MOST_FILE_LINES for _, lines, _ in rows)
    assert all(length <= MOST_KERNEL_LINES for *_, kernels in rows for _, length in kernels)
    assert all(kernels for *_, kernels in rows)


@pytest.mark.parametrize("path", FILES, ids=layer_name)
def test_no_kernel_is_built_by_a_factory(path):
    nested = [
        node.name
        for outer in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(outer, (ast.FunctionDef, ast.ClassDef))
        for node in ast.walk(outer)
        if node is not outer and is_kernel(node)
    ]
    assert nested == []


@pytest.mark.parametrize("path, kernel", KERNELS)
def test_a_plain_kernel_uses_only_basic_vocabulary(path, kernel):
    own = {node.name for node in file_kernels(path)} | SHARED_FUNCTIONS
    foreign = set()
    for node in ast.walk(ast.Module(kernel.body, [])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cuda":
            foreign |= {ast.unparse(node)} - VOCABULARY
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            known = name in own | BUILT_IN | VOCABULARY or name == "cuda.shared.array" or name.startswith("math.")
            foreign |= set() if known else {name}
    assert foreign == set()


@pytest.mark.parametrize("path, kernel", KERNELS)
def test_every_plain_kernel_has_a_docstring(path, kernel):
    assert ast.get_docstring(kernel)
