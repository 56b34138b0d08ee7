"""What the package shows of itself: its public names, its list of commands, and how much there is to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2_numba
from gpt2_numba.__main__ import COMMANDS, main
from tests.test_import_rule import source_files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gpt2_numba"

# What a newcomer reads to understand a whole training step: the loop, the model, every layer's reference and plain kernels, the data.
READING_PATH = (
    "train.py", "model.py", "options.py", "memory_plan.py", "layer_order.py", "gpu/block_sum.py", "layers/residual.py", "layers/gelu.py",
    "layers/layernorm.py", "layers/encoder.py", "layers/matmul.py", "layers/attention/__init__.py", "layers/classifier.py",
    "layers/global_norm.py", "layers/adamw.py", "data/loader.py",
)  # fmt: skip
MOST_LINES = 2500


@pytest.mark.parametrize("name", gpt2_numba.__all__)
def test_public_names_are_there(name):
    assert getattr(gpt2_numba, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'GPT3'"):
        _ = gpt2_numba.GPT3


def test_importing_the_package_does_not_import_numba():
    code = "import sys, gpt2_numba; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_program_is_in_the_list_of_commands():
    programs = {path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    programs |= {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert programs - {"__main__"} == set(COMMANDS)


def test_the_list_of_commands_is_printed_a_line_each():
    printed = subprocess.run([sys.executable, "-m", "gpt2_numba"], capture_output=True, text=True, check=True).stdout
    assert all(sum(f"gpt2_numba.{name} " in line for line in printed.splitlines()) == 1 for name in COMMANDS)


def test_the_reading_path_is_short():
    lines = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in READING_PATH}
    assert sum(lines.values()) <= MOST_LINES, lines
    layers = {path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "layers").glob("*.py")} - {"layers/__init__.py"}
    assert layers <= set(READING_PATH)


def test_the_readme_names_the_reading_path():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{MOST_LINES:,} lines" in readme
    assert [file for file in READING_PATH if Path(file).name.replace("__init__.py", "attention/") not in readme] == []


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} has no docstring"


@pytest.mark.parametrize(("arguments", "words"), [
    (["train", "-x", "5"], "got 'train'; its commands are modules: python -m gpt2_numba.train"), (["tain"], "which lists them"),
])  # fmt: skip
def test_an_argument_is_not_ignored(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
