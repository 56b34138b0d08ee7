"""Write the links that open the chapters in a hosted notebook, once the repository has an address.

    python -m tutorials.hosted_links https://github.com/OWNER/REPOSITORY [--branch main]
    python -m tutorials.hosted_links --remove

Two places are written: a table of links (Colab, molab) in tutorials/README.md, between its two comments; and in each notebook a cell behind
its title, which fetches and installs the package there. Commit both. The chapters' sources stay as they are.
"""

import json
import re
from pathlib import Path

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError
from tutorials.make_notebooks import chapter_sources

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- links to hosted notebooks: python -m tutorials.hosted_links ADDRESS -->", "<!-- end of the links -->"
SETUP = "hosted-setup"  # the id of the cell
HOSTS = {"Colab": "https://colab.research.google.com/github", "molab": "https://molab.marimo.io/github"}


def run(argv):
    """Write the links that argv asks for. Raises UserError for an address that is not one of GitHub."""
    parser = Parser(prog="python -m tutorials.hosted_links", doc=__doc__)
    parser.add_argument("address", nargs="?", help="of the repository: https://github.com/OWNER/REPOSITORY")
    parser.add_argument("--branch", default="main", help="the branch to open (default: main)")
    parser.add_argument("--remove", action="store_true", help="take all links out")
    chosen = parser.parse_args(argv)
    if chosen.remove == bool(chosen.address):
        raise UserError("give the repository's address, or --remove, and not both")
    repository = None if chosen.remove else parse_address(chosen.address)
    README.write_text(with_links(README.read_text(encoding="utf-8"), repository, chosen.branch), encoding="utf-8", newline="\n")
    for source in chapter_sources():
        notebook = source.with_suffix(".ipynb")
        notebook.write_text(with_setup(notebook.read_text(encoding="utf-8"), repository, chosen.branch), encoding="utf-8", newline="\n")
    print(f"{README.name} and {len(chapter_sources())} notebooks: {'no links' if chosen.remove else 'links to ' + repository}")


def parse_address(address):
    """OWNER/REPOSITORY of an address on GitHub. Raises UserError for any other."""
    match = re.fullmatch(r"(?:https?://github\.com/|git@github\.com:)?([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if not match:
        raise UserError(
            f"the address must be https://github.com/OWNER/REPOSITORY, got {address!r}: Colab and molab open notebooks from GitHub"
        )
    return match[1]


def with_links(text, repository, branch):
    """The README's text with the table of links between its two comments, or with nothing there if repository is None."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = [BEGIN]
    if repository is not None:
        lines += ["", f"| chapter | {' | '.join(HOSTS)} |", "| --- | " + "--- | " * len(HOSTS)]
        for source in chapter_sources():
            path = f"{repository}/blob/{branch}/tutorials/{source.stem}.ipynb"
            lines.append(f"| {source.stem[:2]} | " + " | ".join(f"[open]({host}/{path})" for host in HOSTS.values()) + " |")
        lines.append("")
    return before + "\n".join([*lines, END]) + after


def with_setup(text, repository, branch):
    """A notebook's text with the cell that installs the package, or without it if repository is None."""
    notebook = json.loads(text)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != SETUP]
    if repository is not None:
        source = setup_source(repository, branch).splitlines(keepends=True)
        cell = {"cell_type": "code", "execution_count": None, "id": SETUP, "metadata": {}, "outputs": [], "source": source}
        notebook["cells"].insert(1, cell)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def setup_source(repository, branch):
    """The Python of the cell: nothing happens where the package is installed, as on a machine of one's own."""
    return f'''import importlib.util

if importlib.util.find_spec("gpt2_numba") is None:  # a hosted notebook: fetch and install the package
    import os
    import subprocess
    import sys

    subprocess.run(["git", "clone", "-q", "--depth", "1", "--branch", "{branch}", "https://github.com/{repository}", "course"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "course[tutorials]"], check=True)
    os.chdir("course/tutorials")
    sys.path.insert(0, os.path.dirname(os.getcwd()))'''


def main(argv):
    """The program; returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
