"""Make the notebooks: run each chapter in a clean kernel without a GPU, and write it, with what it printed and drew, beside its source.

    python -m tutorials.make_notebooks [CHAPTER ...]        CHAPTER: 01, or 01_gpt2_on_one_page; all, if none is named

A chapter is a Python file in jupytext's percent format, which runs as a script as well; its notebook has the same name. The same source,
Python and processor give the same notebook, byte for byte: it has no execution times, no numbers of executions, no random ids and no
machine's paths. A chapter that fails or warns is not written.

Needs the `tutorials` extra: pip install -e '.[tutorials]'.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError

HERE = Path(__file__).resolve().parent
MOST_SECONDS = 600  # for one cell: a chapter is meant to take less than two minutes
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def run(argv):
    """Make the notebooks that argv names. Raises UserError if a chapter is unknown, fails or warns, or if a package is missing."""
    parser = Parser(prog="python -m tutorials.make_notebooks", doc=__doc__)
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="such as 01 or 01_gpt2_on_one_page (default: all)")
    for source in find_chapters(parser.parse_args(argv).chapters):
        notebook = source.with_suffix(".ipynb")
        notebook.write_text(execute(source), encoding="utf-8", newline="\n")
        print(f"{notebook.name}: {notebook.stat().st_size / 1024:.0f} KiB", flush=True)


def chapter_sources():
    """The paths of all chapters, in order: files whose name begins with two digits."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def find_chapters(names):
    """The chapters that `names` (numbers, names, or files) name, or all. Raises UserError for an unknown one."""
    known = {source.stem: source for source in chapter_sources()}
    found = []
    for name in names or known:
        stem = Path(name).name.partition(".")[0]
        matches = [source for known_stem, source in known.items() if stem in (known_stem, known_stem[:2])]
        if not matches:
            raise UserError(f"a chapter must be one of {', '.join(known) or 'none (there are no chapters)'}, got {name!r}")
        found += matches
    return found


def execute(source):
    """Run the chapter, a path, in a kernel of its own; the notebook as JSON text. Raises UserError if a cell fails or warns."""
    try:
        import jupytext
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    except ImportError as error:
        raise UserError(f"notebooks need {error.name}, which is not installed: pip install -e '.[tutorials]'") from error
    notebook = jupytext.read(source, fmt="py:percent")
    with tempfile.TemporaryDirectory() as empty:
        client = NotebookClient(
            notebook, timeout=MOST_SECONDS, kernel_name=KERNEL["name"], resources={"metadata": {"path": str(source.parent)}},
            record_timing=False, coalesce_streams=True,
        )  # fmt: skip
        try:
            # What a cell writes to stderr comes as an output. The rest is the kernel's own: a warning that its sockets are not encrypted.
            client.execute(env=clean_environment(empty), stderr=subprocess.DEVNULL)
        except (CellExecutionError, CellTimeoutError, DeadKernelError, RuntimeError) as error:  # RuntimeError: the kernel does not start
            raise UserError(
                f"{source.name}: a chapter must run to its end, got {_last_line(error)}: run it as a script to see more"
            ) from error
    tidy(notebook)
    check_outputs(source.name, notebook)
    return nbformat.writes(notebook) + "\n"


def clean_environment(empty):
    """The environment of a kernel without a GPU and without its user's settings. empty: a directory for what it writes."""
    matplotlib_settings = Path(empty) / "matplotlibrc"
    matplotlib_settings.touch()
    settings = {
        "NUMBA_ENABLE_CUDASIM": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "IPYTHONDIR": empty,
        "MATPLOTLIBRC": str(matplotlib_settings),
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",  # sums in an order that does not depend on the number of cores
    }
    left_out = {"MPLBACKEND", "PYTHONSTARTUP", "PYTHONWARNINGS"}
    return {name: value for name, value in os.environ.items() if name not in left_out} | settings


def tidy(notebook):
    """Take out all that differs between two runs, in place."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None


def check_outputs(name, notebook):
    """Raise UserError if a cell of the notebook wrote to stderr, or if anything in its text is the path of this machine."""
    private = {str(HERE.parent), str(Path.home()), tempfile.gettempdir(), sys.prefix} - {"/"}
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            text = output.get("text", "") + "".join(value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))
            if output.get("name") == "stderr":
                raise UserError(f"{name}: a chapter must not warn, got {_last_line(text)} from cell {place}")
            found = [path for path in sorted(private) if path in text]
            if found:
                raise UserError(f"{name}: an output must not have a machine's paths, got {found[0]} from cell {place}: print less")


def _last_line(text):
    lines = [line for line in re.sub(r"\x1b\[[\d;]*m", "", str(text)).splitlines() if line.strip()]  # without the colours of a traceback
    return repr(lines[-1]) if lines else "an empty message"


def main(argv):
    """The program; returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
