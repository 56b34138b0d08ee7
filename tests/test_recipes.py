"""Every recipe runs from its first step to its last one: rehearsed, with a tiny model on the CPU, and started again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in (ROOT / "dev" / "recipes").glob("*.sh") if path.name != "recipe.sh")


def cook(recipe, directory, *arguments):
    """Run a recipe in `directory`. Returns the finished process, its output as text."""
    environment = os.environ | {"PYTHON": sys.executable, "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    return subprocess.run(
        ["bash", recipe, *arguments], cwd=directory, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_rehearsal_goes_through_all_steps(recipe, tmp_path):
    done = cook(recipe, tmp_path, "--rehearse", "here")
    assert done.returncode == 0, done.stdout
    name, here = recipe.stem, tmp_path / "here"
    log = here / f"log_{name}"
    assert (log / "DONE_00000006").exists()
    lines = (log / "main.log").read_text().splitlines()
    assert sum("trl:" in line for line in lines) == 6
    with_questions = "QUESTIONS=" in recipe.read_text()
    assert any("eval:" in line for line in lines) == with_questions
    assert "bits per byte" in done.stdout and ("by token" in done.stdout) == with_questions
    assert "--- 2 of 2" in done.stdout  # samples
    assert (log / "run.html").read_text().rstrip().endswith("</html>")
    assert json.loads((here / f"hf_{name}" / "config.json").read_text())["n_layer"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_recipe_that_is_started_again_repeats_nothing(tmp_path):
    recipe = ROOT / "dev" / "recipes" / "gpt2_124M.sh"
    assert cook(recipe, tmp_path, "--rehearse", "here").returncode == 0
    log = tmp_path / "here" / "log_gpt2_124M"
    model, state = (sorted(log.glob(f"{kind}_*"))[-1] for kind in ("model", "state"))
    before = model.read_bytes(), state.read_bytes()
    for path in log.glob("*_00000006*"):  # as if it had been killed before its last checkpoint
        path.unlink()
    again = cook(recipe, tmp_path, "--rehearse", "here")
    assert again.returncode == 0, again.stdout
    assert "gpt2_numba.data" not in again.stdout and "gpt2_numba.export" not in again.stdout
    assert "step    5/6" in again.stdout and "step    4/6" not in again.stdout
    assert (model.read_bytes(), state.read_bytes()) == before


def test_a_recipe_takes_no_other_arguments(tmp_path):
    done = cook(RECIPES[0], tmp_path, "--rehearsal")
    assert done.returncode == 2 and done.stdout.startswith("usage: ")
    assert not list(tmp_path.iterdir())


def test_all_recipes_are_in_the_table():
    table = (ROOT / "dev" / "recipes" / "README.md").read_text()
    assert [recipe.name for recipe in RECIPES if f"({recipe.name})" not in table] == []
