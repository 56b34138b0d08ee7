"""The chapters: they run as scripts, their notebooks match them, nothing they show has drifted; and make_notebooks, which makes the notebooks."""

import ast
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_numba.errors import UserError
from tutorials import make_notebooks
from tutorials.hosted_links import SETUP
from tutorials.make_notebooks import chapter_sources
from tutorials.quotes import ROOT, quotation

TUTORIALS = ROOT / "tutorials"
PROCESSOR_SECONDS = 240  # two minutes on two cores
MOST_PROSE = 18  # lines of 140 columns without anything to run, look at or do
PNG = b"\x89PNG\r\n"

chapters = pytest.mark.parametrize("source", chapter_sources(), ids=lambda source: source.stem)


def notebook_cells(source):
    """The cells of the chapter's notebook, as JSON: type, source as one text, outputs; without the one for hosted notebooks."""
    notebook = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"] if cell["id"] != SETUP]


def script_cells(source):
    jupytext = pytest.importorskip("jupytext")
    return [(cell.cell_type, cell.source) for cell in jupytext.read(source, fmt="py:percent").cells]


def output_texts(cell):
    """What the outputs of a cell say, each as one text."""
    outputs = cell.get("outputs", [])
    return ["".join(output.get("text", output.get("data", {}).get("text/plain", []))) for output in outputs]


def names_called(code):
    return {getattr(node.func, "id", "") for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)}


# --- The script and its notebook ---


@chapters
def test_it_runs_as_a_script_without_a_gpu(source, tmp_path):
    resource = pytest.importorskip("resource")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path)}
    before, room = resource.getrusage(resource.RUSAGE_CHILDREN), sorted(TUTORIALS.iterdir())
    ran = subprocess.run([sys.executable, str(source)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr[-2000:]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < PROCESSOR_SECONDS
    assert sorted(TUTORIALS.iterdir()) == room


@chapters
def test_its_notebook_has_the_same_sources(source):
    cells = [(cell["cell_type"], cell["source"]) for cell in notebook_cells(source)]
    assert cells == script_cells(source), f"make it again: python -m tutorials.make_notebooks {source.stem[:2]}"


@chapters
def test_its_notebook_has_run_and_has_no_traces_of_a_machine(source):
    for number, cell in enumerate(notebook_cells(source)):
        assert (cell["id"], cell["metadata"]) == (f"cell-{number}", {})
        assert cell.get("execution_count") is None
        assert {output["output_type"] for output in cell.get("outputs", [])} <= {"stream", "display_data", "execute_result"}
        assert "stderr" not in [output.get("name") for output in cell.get("outputs", [])]
        assert not re.search(r"/home/|/Users/|/tmp/|/root/|" + re.escape(str(ROOT)), "".join(output_texts(cell)))
        if re.search(r"^print\(", cell["source"], re.M) and cell["cell_type"] == "code":
            assert cell["outputs"], f"cell {number} prints, but has no output"


@chapters
def test_its_figures_are_there(source):
    for number, cell in enumerate(notebook_cells(source)):
        if cell["cell_type"] == "code" and any(name.startswith("draw_") for name in names_called(cell["source"])):
            pictures = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
            assert pictures, f"cell {number} draws, but has no picture"
            assert all(base64.b64decode("".join(picture)).startswith(PNG) for picture in pictures)


# --- The text ---


@chapters
def test_its_links_and_images_lead_somewhere(source):
    prose = "\n".join(text for kind, text in script_cells(source) if kind == "markdown")
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`code`", prose))
    files = [target.partition("#")[0] for target in targets if not target.startswith(("http", "#"))]
    assert [file for file in files if not (TUTORIALS / file).exists()] == []


@chapters
def test_it_quotes_the_package_word_for_word(source):
    """What `quote` has printed is in the file it names; text cells have no Python of their own, which no test would run."""
    for cell in notebook_cells(source):
        if cell["cell_type"] == "markdown":
            assert "```py" not in cell["source"], "code that nothing runs: quote it, or make it a cell"
        elif "quote" in names_called(cell["source"]):
            pieces = re.split(r"^# ((?:gpt2_numba|dev)/\S+\.py)\n\n", "".join(output_texts(cell)), flags=re.M)
            assert len(pieces) > 1
            for file, quoted in zip(pieces[1::2], pieces[2::2]):
                assert quoted.strip() in (ROOT / file).read_text(encoding="utf-8"), f"make it again: {source.stem} quotes an older {file}"


@chapters
def test_its_prose_comes_in_small_pieces(source):
    """Tables, formulas and headings apart."""
    for kind, text in script_cells(source):
        prose = [line for line in text.split("\n") if line.strip() and not line.startswith(("    ", "|", "#"))]
        assert kind == "code" or len(prose) <= MOST_PROSE, text


def test_the_chapters_import_the_function_that_chapter_01_shows():
    function = (TUTORIALS / "gradients.py").read_text(encoding="utf-8").partition("\n\n\n")[2]
    assert function.startswith("def check_gradient(") and function in (TUTORIALS / "01_gpt2_on_one_page.py").read_text(encoding="utf-8")


def test_a_quotation_names_its_file():
    from gpt2_numba.layers.gelu import gelu_forward_kernel, gelu_forward_ref

    file, _, code = quotation(gelu_forward_ref).partition("\n\n")
    assert file == "# gpt2_numba/layers/gelu.py"
    assert code.startswith("def gelu_forward_ref(")
    assert "def gelu_forward_kernel(" in quotation(gelu_forward_kernel)  # a kernel is not a function, but has one


# --- make_notebooks ---


@pytest.mark.parametrize("name", ["01", "01_gpt2_on_one_page", "tutorials/01_gpt2_on_one_page.py"])
def test_a_chapter_has_three_names(name):
    assert [source.stem for source in make_notebooks.find_chapters([name])] == ["01_gpt2_on_one_page"]


def test_without_a_name_all_chapters_are_made():
    assert make_notebooks.find_chapters([]) == chapter_sources() != []


def test_an_unknown_chapter_is_an_error_in_one_line(capsys):
    assert make_notebooks.main(["99"]) == 2
    error = capsys.readouterr().err
    assert "a chapter must be one of 0" in error and "got '99'" in error and error.count("\n") == 1


def made(directory, text):
    """The notebook of a chapter with this text, as JSON text. Raises UserError."""
    for package in "jupytext", "nbclient", "ipykernel":
        pytest.importorskip(package)
    source = directory / "05_a_chapter.py"
    source.write_text(text, encoding="utf-8")
    return make_notebooks.execute(source)


def test_the_same_chapter_gives_the_same_notebook(tmp_path):
    text = '# %% [markdown]\n# # Title\n\n# %%\nimport os\n\nprint("a")\nprint(os.environ["NUMBA_ENABLE_CUDASIM"], flush=True)\n\n# %%\n{3, 1} | {2}\n'
    first = made(tmp_path, text)
    cells = json.loads(first)["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells][0] == ("markdown", "# Title")
    assert [output_texts(cell) for cell in cells] == [[], ["a\n1\n"], ["{1, 2, 3}"]]
    assert made(tmp_path, text) == first


@pytest.mark.parametrize(
    "line, message",
    [
        ("1 / 0", "must run to its end, got 'ZeroDivisionError: division by zero'"),
        ("import sys; print('careful', file=sys.stderr)", "must not warn, got 'careful' from cell 0"),
        (f"print({str(Path.home())!r} + '/file')", "must not have a machine's paths"),
    ],
    ids=["fails", "warns", "says where it ran"],
)
def test_a_chapter_that_is_not_fit_to_be_shown_is_not_written(tmp_path, line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        made(tmp_path, f"# %%\n{line}\n")
    assert not (tmp_path / "05_a_chapter.ipynb").exists()
