"""The README and docs: their links lead somewhere, and what they quote from the code is there, word for word."""

import re
from pathlib import Path

import pytest

from tests.test_plain_kernels import FILES, file_kernels, layer_name

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ROOT / "gpt2_numba" / "layers"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "dev").rglob("*.md"), *(ROOT / "tutorials").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "`code`", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    files = [target.partition("#")[0] for target in targets if not target.startswith(("http", "#"))]
    assert [file for file in files if not (page.parent / file).exists()] == []


def test_the_pair_of_kernels_in_the_readme_is_gelu_s():
    (shown,) = re.findall(r"^```python\n(.*?)^```$", README, flags=re.M | re.S)
    assert shown.strip() in (LAYERS / "gelu.py").read_text(encoding="utf-8")


def test_the_table_of_layers_counts_the_lines_of_their_plain_kernels():
    """Device functions and decorators included."""
    rows = re.findall(r"^\| \[[\w.]+\]\(gpt2_numba/layers/([\w/]+?)(?:/__init__)?\.py\)[^|]*\| (\d+) \|", README, flags=re.M)
    expected = {layer_name(path): sum(k.end_lineno - k.decorator_list[0].lineno + 1 for k in file_kernels(path)) for path in FILES}
    assert {name: int(lines) for name, lines in rows} == expected
