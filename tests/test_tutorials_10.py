"""Chapter 10 quotes the training loop piece by piece: what its notebook shows is in train.py, line by line."""

import json

from tutorials.quotes import ROOT

PIECES = 5


def quoted_pieces():
    """The pieces that quote_lines has printed in the notebook, each a list of lines without the loop's indentation."""
    notebook = json.loads((ROOT / "tutorials" / "10_training_loop.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and any(line.startswith("quote_lines(") for line in cell["source"]):
            text = "".join("".join(output.get("text", [])) for output in cell["outputs"])
            for piece in text.split("# gpt2_numba/train.py\n\n")[1:]:
                yield piece.rstrip().split("\n")


def test_the_pieces_of_the_loop_are_those_of_train_py():
    lines = [line.strip() for line in (ROOT / "gpt2_numba" / "train.py").read_text(encoding="utf-8").split("\n")]
    pieces = list(quoted_pieces())
    assert len(pieces) == PIECES
    for piece in pieces:
        wanted = [line.strip() for line in piece]
        found = [start for start in range(len(lines)) if lines[start : start + len(wanted)] == wanted]
        assert found, "make it again: python -m tutorials.make_notebooks 10"
