"""Every program, of the package and of dev/, behaves as the others do: tests/test_console.py tests how. Most of this is read from the source."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_numba.command_line import user_path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for room in ("gpt2_numba", "dev") for path in sorted((ROOT / room).rglob("*.py"))]
STARTED_BY_PROGRAMS = {"dev/drills/one_rank.py"}  # not by people


def name(path):
    return path.relative_to(ROOT).as_posix()


PROGRAMS = [
    path for path in SOURCES if name(path) not in STARTED_BY_PROGRAMS and 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_every_program_is_started_in_the_same_way(path):
    last = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    assert ast.unparse(last).startswith("if __name__ == '__main__':\n    main_program(main")


@pytest.mark.parametrize("path", [path for path in SOURCES if name(path) != "gpt2_numba/command_line.py"], ids=name)
def test_command_lines_are_parsed_by_the_parser_whose_errors_are_one_line(path):
    used = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)}
    allowed = {"argparse.ArgumentParser"} if name(path) == "gpt2_numba/training/flags.py" else set()  # formats the help, no more
    assert used & {"argparse.ArgumentParser", "ArgumentParser"} <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_program_needs_its_docstring(path):
    """`python -OO` leaves None of it."""
    attributes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)]
    assert [ast.unparse(node) for node in attributes if ast.unparse(node.value) == "__doc__"] == []


@pytest.mark.parametrize("module", ["gpt2_numba.doctor", "dev.kernels"])
def test_help_without_docstrings(module):
    command = [sys.executable, "-OO", "-m", module, "--help"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    helped = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert helped.returncode == 0 and helped.stdout.startswith("usage: ") and helped.stderr == ""


@pytest.mark.parametrize("module", ["gpt2_numba.doctor", "gpt2_numba.train"])
def test_a_wrong_flag_is_one_line_even_if_it_has_two(module):
    command = [sys.executable, "-m", module, "--wrong\nflag"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1 and r"--wrong\nflag" in refused.stderr


def test_paths_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_path("~/data") == Path("/home/somebody/data") and user_path("data/~") == Path("data/~")
    assert user_path("~nobody of this name/data") == Path("~nobody of this name/data")
