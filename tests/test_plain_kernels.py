"""What makes a plain kernel plain: one screen long, on its own, made of nothing but CUDA's basic words. Read from the source.

What they compute is checked in test_layer_kernels.py, what the compiler makes of them in test_ptx.py.
"""

import ast
from pathlib import Path

import pytest

from gpt2_numba.kernel_sets import FUNCTIONS

LAYERS = Path(__file__).resolve().parents[1] / "gpt2_numba" / "layers"
FILES = sorted([*LAYERS.glob("[!_]*.py"), *LAYERS.glob("[!f]*/__init__.py")])
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_KERNEL = 250, 40
# All that a plain kernel may call or look at of numba.cuda.
WORDS = {
    "cuda.threadIdx", "cuda.blockIdx", "cuda.blockDim", "cuda.gridDim", "cuda.grid", "cuda.gridsize", "cuda.shared", "cuda.syncthreads",
}  # fmt: skip
SHARED_FUNCTIONS = {"block_sum", "block_max"}  # of gpu/block_sum.py
BUILT_IN = {"range", "min", "max", "float32"}


def layer_of(path):
    return path.parent.name if path.stem == "__init__" else path.stem


def is_kernel(node):
    return isinstance(node, ast.FunctionDef) and any(ast.unparse(decorator).startswith("cuda.jit") for decorator in node.decorator_list)


def kernels_of(path):
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if is_kernel(node)]


KERNELS = [pytest.param(path, kernel, id=f"{layer_of(path)}.{kernel.name}") for path in FILES for kernel in kernels_of(path)]


def test_every_layer_function_has_its_file():
    homes = {function.__module__.rpartition(".")[2] for function in FUNCTIONS.values()}
    assert homes == {layer_of(path) for path in FILES}


def test_table_of_lengths():
    rows = [
        (layer_of(path), len(path.read_text().splitlines()), [(k.name, k.end_lineno - k.lineno + 1) for k in kernels_of(path)])
        for path in FILES
    ]
    for layer, lines, kernels in rows:
        print(f"{layer:<12}{lines:>4} lines   " + ", ".join(f"{name} {length}" for name, length in kernels))
    assert all(lines <= MOST_LINES_OF_A_FILE for _, lines, _ in rows)
    assert all(length <= MOST_LINES_OF_A_KERNEL for *_, kernels in rows for _, length in kernels)
    assert all(kernels for *_, kernels in rows)


@pytest.mark.parametrize("path", FILES, ids=layer_of)
def test_no_kernel_is_made_by_a_factory(path):
    nested = [
        node.name
        for outer in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(outer, (ast.FunctionDef, ast.ClassDef))
        for node in ast.walk(outer)
        if node is not outer and is_kernel(node)
    ]
    assert nested == []


@pytest.mark.parametrize("path, kernel", KERNELS)
def test_a_plain_kernel_uses_basic_words_only(path, kernel):
    own = {node.name for node in kernels_of(path)} | SHARED_FUNCTIONS
    foreign = set()
    for node in ast.walk(ast.Module(kernel.body, [])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cuda":
            foreign |= {ast.unparse(node)} - WORDS
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            known = name in own | BUILT_IN | WORDS or name == "cuda.shared.array" or name.startswith("math.")
            foreign |= set() if known else {name}
    assert foreign == set()


@pytest.mark.parametrize("path, kernel", KERNELS)
def test_a_plain_kernel_says_what_a_block_or_thread_does(path, kernel):
    assert ast.get_docstring(kernel)
