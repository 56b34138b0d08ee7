"""The README and docs: their links lead somewhere, and what they quote from the code is there, word for word."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ROOT / "gpt2_numba" / "layers"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "dev").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "`code`", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    files = [target.partition("#")[0] for target in targets if not target.startswith(("http", "#"))]
    assert [file for file in files if not (page.parent / file).exists()] == []


def test_the_pair_of_kernels_in_the_readme_is_gelu_s():
    (shown,) = re.findall(r"^```python\n(.*?)^```$", README, flags=re.M | re.S)
    assert shown.strip() in (LAYERS / "gelu.py").read_text(encoding="utf-8")


def plain_kernel_lines(path):
    """Lines of a layer's plain kernels and device functions, decorators included."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    jitted = [node for node in functions if any(ast.unparse(decorator).startswith("cuda.jit") for decorator in node.decorator_list)]
    return sum(node.end_lineno - node.decorator_list[0].lineno + 1 for node in jitted)


def test_the_table_of_layers_counts_the_lines_of_their_plain_kernels():
    rows = re.findall(r"^\| \[[\w.]+\]\(gpt2_numba/layers/([\w/]+?)(?:/__init__)?\.py\)[^|]*\| (\d+) \|", README, flags=re.M)
    files = {path.stem: path for path in LAYERS.glob("[!_]*.py")} | {"attention": LAYERS / "attention" / "__init__.py"}
    assert {name: int(lines) for name, lines in rows} == {name: plain_kernel_lines(path) for name, path in files.items()}
