"""dev/vislog.ipynb is what dev/make_vislog.py makes of dev/vislog.py, and what it prints is right."""

import re
from pathlib import Path

import pytest

from gpt2_numba.training.log import read_main_log

DEV = Path(__file__).resolve().parents[1] / "dev"


@pytest.fixture(scope="module")
def notebook():
    jupytext = pytest.importorskip("jupytext", reason="pip install -e '.[test]'")
    return jupytext.read(DEV / "vislog.ipynb")


def test_the_notebook_has_the_cells_of_its_source(notebook):
    import jupytext

    source = jupytext.read(DEV / "vislog.py", fmt="py:percent")
    assert [(cell.cell_type, cell.source.strip()) for cell in notebook.cells] == [
        (cell.cell_type, cell.source.strip()) for cell in source.cells
    ]


def test_it_shows_a_picture_and_the_last_loss_of_its_log(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    (log,) = re.findall(r'^log = "([^"]*)"', (DEV / "vislog.py").read_text(encoding="utf-8"), flags=re.M)
    last = read_main_log(DEV / log)["val_loss"][1][-1]
    assert f"validation loss: last {last:.4f}" in "".join(output.get("text", "") for output in outputs)


def test_the_notebook_is_small():
    assert (DEV / "vislog.ipynb").stat().st_size < 120_000
