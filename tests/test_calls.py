"""Calls that explain themselves: of the arguments passed by position, at most four do not carry the name of their parameter.

Read from the source. Kernel launches and device functions are left out, since Numba passes arguments by position.
"""

import ast
import itertools
from pathlib import Path

import pytest

from tests.test_import_rule import source_files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gpt2_numba"
MOST_POSITIONAL, MOST_PARAMETERS = 4, 8
TABLES = {"setting"}  # each call is a row of a table, whose columns are named once, in the definition


def is_jitted(function):
    return any(
        word in ast.unparse(decorator) for decorator in function.decorator_list for word in ("jit", "inlined", "intrinsic", "overload")
    )


def parameters_of(function):
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def host_functions(tree):
    """Name -> lists of parameters, of the functions and classes of a file; inside of kernels nothing is looked at."""
    found = {}

    class Visitor(ast.NodeVisitor):
        def visit_ClassDef(self, node):
            for child in node.body:
                if isinstance(child, ast.FunctionDef) and child.name == "__init__":
                    found.setdefault(node.name, []).append(parameters_of(child))
            self.generic_visit(node)

        def visit_FunctionDef(self, node):
            if not is_jitted(node):
                found.setdefault(node.name, []).append(parameters_of(node))
                self.generic_visit(node)

    Visitor().visit(tree)
    return found


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in source_files()}
PARAMETERS = {}
for tree in TREES.values():
    for function, lists in host_functions(tree).items():
        PARAMETERS.setdefault(function, []).extend(lists)


def carries_name(argument, parameter):
    """Does the argument say what it is: inp, a.inp, self.inp, inputs[0], dinp_scratch for `scratch`?"""
    while isinstance(argument, ast.Subscript):
        argument = argument.value
    name = argument.attr if isinstance(argument, ast.Attribute) else getattr(argument, "id", "")
    name, parameter = name.lower(), parameter.lower()
    return name == parameter or parameter in name.split("_") or name.endswith(f"_{parameter}")


def unexplained_calls(tree):
    """'line 3: name(...)' for each call on the host that passes more than four arguments whose meaning it does not show."""
    found = []

    class Visitor(ast.NodeVisitor):
        def visit_FunctionDef(self, node):
            if not is_jitted(node):
                self.generic_visit(node)

        def visit_Call(self, node):
            self.generic_visit(node)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if name not in PARAMETERS or name in TABLES:
                return
            arguments = list(itertools.takewhile(lambda argument: not isinstance(argument, ast.Starred), node.args))
            fewest = min(
                sum(not carries_name(argument, parameter) for argument, parameter in zip(arguments, parameters))
                for parameters in PARAMETERS[name]
            )
            if fewest > MOST_POSITIONAL:
                found.append(f"line {node.lineno}: {ast.unparse(node)[:120]}")

    Visitor().visit(tree)
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_long_calls_name_their_arguments(path):
    assert unexplained_calls(TREES[path]) == []


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_many_parameters_have_a_reason_beside_them(path):
    """A function of more than eight parameters says why, in a comment right above it or in its docstring ("parameters")."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef) and not is_jitted(node) and len(parameters_of(node)) > MOST_PARAMETERS:
            above = lines[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 2]
            assert "parameters" in above or "parameters" in (ast.get_docstring(node) or ""), f"{node.name} has {len(parameters_of(node))}"


def test_the_rule_sees_what_is_wrong():
    PARAMETERS["five"] = [["a", "b", "c", "d", "e"]]
    assert len(unexplained_calls(ast.parse("five(1, 2, 3, 4, 5)"))) == 1
    assert unexplained_calls(ast.parse("five(1, 2, 3, 4, self.e)")) == []
    assert unexplained_calls(ast.parse("five(a, b, c, d, e)")) == []
    assert unexplained_calls(ast.parse("five(1, 2, 3, 4, e=5)")) == []
