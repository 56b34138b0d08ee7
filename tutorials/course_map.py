"""Draw the map of the course, tutorials/map.png: python -m tutorials.course_map"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).resolve().parent
BLUE, RED, GREEN, GREY, PALE = "#2a78b5", "#d1495b", "#3f9b57", "#5b6670", "#f4f6f8"
WIDTH, HEIGHT = 3.7, 1.15  # of a box

# Number -> what it is, hours with the exercises, and where: the column and row of its box.
CHAPTERS = {
    "00": ("A GPU in Numba", 2.5, (0, 0)),
    "01": ("All of GPT-2\non one page", 4, (0, 1)),
    "02": ("Encoder", 2, (1, 0)),
    "03": ("LayerNorm", 2.5, (1, 1)),
    "04": ("Matmul", 2, (1, 2)),
    "05": ("GELU", 2, (1, 3)),
    "06": ("Attention", 2.5, (2, 0)),
    "07": ("Residual, fusion", 1.5, (2, 1)),
    "08": ("Classifier and loss", 2, (2, 2)),
    "09": ("AdamW, bf16", 2, (2, 3)),
    "10": ("The training loop", 2.5, (3, 0)),
    "11": ("Bits, and resuming", 2.5, (3, 1)),
    "12": ("Many GPUs", 3, (3, 2)),
    "13": ("How fast could it be?", 3, (3, 3)),
    "14": ("The real thing", 2, (3, 4.34)),  # beside the end of the course
}
COLUMNS = (
    ("begin here", BLUE),
    ("the layers: you write the kernels of your own GPT-2", RED),
    ("", RED),
    ("around the layers", GREY),
)


def draw_map():
    """A matplotlib Figure: the chapters in columns, from left to right, and the end of the course below."""
    figure = Figure(figsize=(12.4, 5.25))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.3, 18.1), ylim=(-7.8, 1.9))
    axes.axis("off")
    for column, (title, colour) in enumerate(COLUMNS):
        axes.text(_left(column), 1.35, title, color=colour, fontsize=11.5, va="center")
    for number, (title, hours, place) in CHAPTERS.items():
        colour = GREEN if place[1] > 4 else COLUMNS[place[0]][1]
        _box(axes, place, f"{number}  {title}".replace("\n", "\n      "), f"{hours:g} h", colour)
    for column in (0, 2):
        start, end = _left(column) + WIDTH + 0.12, _left(column + 1) - 0.12
        axes.add_patch(FancyArrowPatch((start, -0.5), (end, -0.5), arrowstyle="-|>", mutation_scale=16, color=GREY, linewidth=1.6))
    middle = (_left(1) + _left(2) + WIDTH) / 2
    axes.add_patch(FancyArrowPatch((middle, -5.65), (middle, -6.3), arrowstyle="-|>", mutation_scale=16, color=GREEN, linewidth=1.8))
    end = _left(2) + WIDTH + 0.12, _left(3) - 0.12
    axes.add_patch(FancyArrowPatch((end[0], -6.92), (end[1], -6.92), arrowstyle="-|>", mutation_scale=16, color=GREEN, linewidth=1.8))
    width = _left(2) + WIDTH - _left(1)
    style = "round,pad=0.05,rounding_size=0.15"
    axes.add_patch(FancyBboxPatch((_left(1), -7.5), width, HEIGHT, boxstyle=style, facecolor=PALE, edgecolor=GREEN, linewidth=2))
    axes.text(
        middle, -6.94, "python -m tutorials.my_gpt2: trained by your kernels, 9 of 9", color=GREEN, fontsize=12, ha="center", va="center"
    )
    return figure


def _left(column):
    return 4.65 * column


def _box(axes, place, title, hours, colour):
    column, row = place
    left, bottom = _left(column), -HEIGHT - 1.6 * row + 0.6
    style = "round,pad=0.05,rounding_size=0.15"
    axes.add_patch(FancyBboxPatch((left, bottom), WIDTH, HEIGHT, boxstyle=style, facecolor=PALE, edgecolor=colour, linewidth=1.8))
    axes.text(left + 0.15, bottom + HEIGHT / 2, title, fontsize=11, va="center", color="black")
    axes.text(left + WIDTH - 0.1, bottom + 0.22, hours, fontsize=9, va="center", ha="right", color=GREY)


if __name__ == "__main__":
    draw_map().savefig(HERE / "map.png", dpi=100, facecolor="white", metadata={"Software": None})
