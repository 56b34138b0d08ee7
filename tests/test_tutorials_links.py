"""The links that open the chapters in hosted notebooks, and the cell that installs the package there."""

import json

import pytest

from tutorials import hosted_links
from tutorials.hosted_links import README, SETUP, parse_address, with_links, with_setup
from tutorials.make_notebooks import chapter_sources

NOTEBOOK = chapter_sources()[0].with_suffix(".ipynb")


@pytest.mark.parametrize(
    "address", ["https://github.com/a-b/c.d", "https://github.com/a-b/c.d.git", "git@github.com:a-b/c.d.git", "a-b/c.d/"]
)
def test_an_address_names_owner_and_repository(address):
    assert parse_address(address) == "a-b/c.d"


@pytest.mark.parametrize("argv, message", [
    (["https://example.com/a/b"], "must be https://github.com/OWNER/REPOSITORY"),
    (["a"], "must be https://github.com/OWNER/REPOSITORY"),
    ([], "give the repository's address, or --remove"),
    (["a/b", "--remove"], "and not both"),
])  # fmt: skip
def test_a_mistake_is_an_error_in_one_line_and_changes_nothing(argv, message, capsys):
    before = README.read_text(encoding="utf-8")
    assert hosted_links.main(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert README.read_text(encoding="utf-8") == before


def test_every_chapter_has_a_link_to_each_host():
    text = README.read_text(encoding="utf-8")
    linked = with_links(text, "a/b", "dev")
    for source in chapter_sources():
        for host in ("https://colab.research.google.com/github/", "https://molab.marimo.io/github/"):
            assert linked.count(f"({host}a/b/blob/dev/tutorials/{source.stem}.ipynb)") == 1
    assert with_links(linked, "a/b", "dev") == linked
    assert with_links(linked, None, "") == with_links(text, None, "")


def test_a_notebook_gets_one_cell_behind_its_title_and_loses_it_again():
    text = NOTEBOOK.read_text(encoding="utf-8")
    added = with_setup(text, "a/b", "dev")
    cells = json.loads(added)["cells"]
    assert [cell["id"] for cell in cells][:3] == ["cell-0", SETUP, "cell-1"]
    assert with_setup(added, "a/b", "dev") == added
    assert with_setup(added, None, "") == text


def test_where_the_package_is_installed_the_cell_does_nothing():
    source = "".join(json.loads(with_setup(NOTEBOOK.read_text(encoding="utf-8"), "a/b", "dev"))["cells"][1]["source"])
    assert '"--branch", "dev", "https://github.com/a/b"' in source
    exec(compile(source, "cell", "exec"), {})  # it would fetch https://github.com/a/b, which has no such branch
