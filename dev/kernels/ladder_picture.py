"""Draw the ladder: for every rung a bar, as long as its share of the ceiling. One picture for each layer, beside the table.

    python -m dev.kernels.ladder_picture dev/bench/2026-11-28-h200-kernel-sets/ladder.txt

The table is what `python -m dev.kernels` prints on a GPU. Writes ladder_LAYER.png for the layers that it has; needs no GPU.
"""

from pathlib import Path

from matplotlib.figure import Figure

from dev.kernels import LAYERS, ladder
from dev.kernels.ladder_table import read_table
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError

COLOURS = {"fp32": "#2a78b5", "tf32": "#5b9e6f", "bf16": "#e08a1e"}
GREY = "#5b6670"
WIDTH, BAR, PANEL, CAPTION = (
    9.0,
    0.27,
    0.5,
    0.75,
)  # inches: of the figure; heights of a bar, of what surrounds the bars, of the caption and the scale
RIGHT_EDGE = 1.32  # of the axis of shares: room for a text behind the longest bar
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # hides the line of the ceiling
PRODUCTS = ("matmul", "attention")  # the layers whose ceiling is the rate of products
DPI = 76


def draw_rows(rows_by_function, where):
    """A matplotlib Figure with a panel for each function, slowest rung on top, ms and share beside each bar.

    rows_by_function   name of a layer function -> Rows of ladder_table
    where              GPU, date and versions, for the caption
    """
    heights = [PANEL + BAR * len(rows) for rows in rows_by_function.values()]
    figure = Figure(figsize=(WIDTH, sum(heights) + CAPTION), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (function, rows) in zip(panels, rows_by_function.items()):
        _draw_panel(panel, function, rows)
    ceilings = dict.fromkeys(_ceiling(function) for function in rows_by_function)
    figure.supxlabel(f"share of the ceiling, the rate of {' or '.join(ceilings)}; {where}", fontsize=9, color=GREY)
    return figure


def _draw_panel(panel, function, rows):
    for place, row in enumerate(rows):
        panel.barh(place, row.share, height=0.72, color=COLOURS[row.precision])
        panel.text(max(row.share, 0) + 0.01, place, label(row), va="center", fontsize=9, bbox=BEHIND_TEXT, zorder=5)
    panel.axvline(1, color=GREY, linestyle=":", linewidth=1, zorder=0)
    panel.set_yticks(range(len(rows)), [f"{row.rung}, {row.precision}" for row in rows], fontsize=9)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"], fontsize=9)
    panel.set_xlim(0, RIGHT_EDGE)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_title(function, fontsize=11, loc="left", pad=2)
    panel.tick_params(length=0)
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def label(row):
    """Time and share of a row, as text: 0.053 ms, 36.8 %. A share below the table's last digit is given as such."""
    share = f"{100 * row.share:.1f} %" if row.share else "below 0.05 %"
    return f"{row.ms:.3f} ms, {share}"


def _ceiling(function):
    return "a copy" if not function.startswith(PRODUCTS) else "cuBLASLt's products"


def write_pictures(path):
    """Draw the layers of the table at `path` into its directory. Returns the paths of the pictures. Raises UserError if it is no table."""
    table, pictures = read_table(path), []
    functions = {row.function for row in table.rows}
    for layer in LAYERS:
        of_layer = [function for function in ladder(layer) if function in functions]
        if of_layer:
            picture = Path(path).parent / f"ladder_{layer}.png"
            figure = draw_rows({function: table.rows_of(function) for function in of_layer}, table.where)
            try:
                figure.savefig(
                    picture, format="png", dpi=DPI, facecolor="white", metadata={"Software": None}, pil_kwargs={"optimize": True}
                )
            except OSError as error:
                raise UserError(f"{picture} must be writable, got: {error}") from error
            pictures.append(picture)
    return pictures


def run(argv):
    """Draw the pictures and print their paths."""
    parser = Parser(prog="python -m dev.kernels.ladder_picture", doc=__doc__)
    parser.add_argument("table", metavar="TABLE", help="a file with what python -m dev.kernels printed on a GPU")
    print(*write_pictures(parser.parse_args(argv).table), sep="\n")


def main(argv):
    """The command line. Returns the exit code: 0, or 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
