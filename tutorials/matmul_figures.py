"""The figures of chapter 04, matrix products. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tutorials.model_figures import BLUE, GREY, PALE, RED, present

ORANGE = "#e9a23b"
EDGE = "#a9b1b9"


def draw_three_products(N, C, OC):
    """The three products of the layer, each with one result, and the row and column that are multiplied and added up for it."""
    figure, panels = _panels(3, width=11, height=3.9)
    products = (
        ("out = inp weightᵀ\nsum over c", ("inp", N, C), ("weightᵀ", C, OC), "out"),
        ("dinp = dout weight\nsum over o", ("dout", N, OC), ("weight", OC, C), "dinp"),
        ("dweight += doutᵀ inp\nsum over n", ("doutᵀ", OC, N), ("inp", N, C), "dweight"),
    )
    for panel, (title, left, top, result) in zip(panels, products):
        _draw_product(panel, left, top, result, rows=(1, 2), columns=(1, 2), across=max(N, C, OC), down=max(N, C, OC))
        panel.set_title(title, fontsize=11)
    present(figure, "Three products. In each, one number of the result is a row of the left factor times a column of the upper one.")


def draw_tile(size, inner, tile):
    """What must be read for one number of the product, and what for a tile of numbers."""
    figure, panels = _panels(2, width=10.5, height=4.9)
    for panel, count in zip(panels, (1, tile)):
        first = tile  # the second tile down and across
        chosen = first, first + count
        _draw_product(panel, ("inp", size, inner), ("weightᵀ", inner, size), "out", chosen, chosen, across=size, down=size)
        read, made = 2 * count * inner, count * count
        what = "one thread, one number" if count == 1 else f"a block, a tile of {tile} × {tile}"
        panel.set_title(f"{what}:\nreads {read} for {made} result{'s' * (made > 1)}, {read / made:g} each", fontsize=11)
    present(figure, "One number of the result needs a whole row and a whole column; a tile of numbers needs few rows and few columns.")


def _draw_product(panel, left, top, result, rows, columns, across, down):  # parameters: those of the docstring
    """A result with its left factor to the left of it, and its right factor above it.

    left, top       (name, rows, columns) of the factors
    rows, columns   (first, stop) of the results that are marked, for which these rows of left and columns of top are read
    across, down    room for the left and the upper factor
    """
    (left_name, height, inner), (top_name, _, width) = left, top
    x, y = across + 1.2, -(down + 1.2)  # upper left corner of the result; y grows upwards
    _sheet(panel, x, y, height, width, result, rows, columns, BLUE, below=True)
    _sheet(panel, x - 1.2 - inner, y, height, inner, left_name, rows, (0, inner), ORANGE, below=True)
    _sheet(panel, x, y + 1.2 + inner, inner, width, top_name, (0, inner), columns, ORANGE, below=False)
    panel.set_xlim(-0.5, x + across + 0.5)
    panel.set_ylim(y - down - 1.6, 1.4)


def _sheet(panel, x, y, rows, columns, name, marked_rows, marked_columns, colour, below):  # parameters: a matrix, and what is marked in it
    """A matrix of cells whose upper left corner is (x, y), some of them marked."""
    for row in range(rows):
        for column in range(columns):
            is_marked = marked_rows[0] <= row < marked_rows[1] and marked_columns[0] <= column < marked_columns[1]
            _cell(panel, x + column, y - row - 1, colour if is_marked else PALE)
    panel.text(x + columns / 2, y - rows - 0.25 if below else y + 0.2, name, ha="center", va="top" if below else "bottom", color=GREY)


def draw_intensity(kernels, ceilings, memory_rate):
    """The speed that memory allows, against the operations done with each byte read.

    kernels      name -> FLOP per byte             ceilings  name -> FLOP/s
    memory_rate  bytes per second
    """
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="floating-point operations for each byte read (FLOP per byte)", ylabel="TFLOP/s at most: the lower line counts"
    )
    intensities = np.array([0.1, 1000])
    axes.loglog(intensities, intensities * memory_rate / 1e12, color=BLUE, linewidth=2.5)
    axes.text(3, 3, f"what memory allows, at {memory_rate / 1e12:.1f} TB/s", color=BLUE, va="bottom")
    for name, rate in ceilings.items():
        axes.axhline(rate / 1e12, color=RED, linewidth=1, linestyle="--")
        axes.text(0.115, rate / 1e12 * 1.05, f"{name}: {rate / 1e12:.0f} TFLOP/s", color=RED, va="bottom", fontsize=9)
    for name, intensity in kernels.items():
        rate = intensity * memory_rate / 1e12
        axes.plot(intensity, rate, "o", color=BLUE)
        axes.annotate(name, (intensity, rate), xytext=(9, -5), textcoords="offset points", va="top", fontsize=9)
    axes.set_xlim(0.1, 3000)
    axes.set_ylim(0.3, 3000)
    axes.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
    axes.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "A rising line, the speed that memory allows, and horizontal ones, the speeds of the arithmetic.")


def draw_banks(tile, widths, columns):
    """A tile in shared memory, with the banks of its numbers. widths: numbers in a stored row, a panel each; columns: which the warp stores."""
    figure, panels = _panels(len(widths), width=5.6 * len(widths), height=5.6)
    for panel, width in zip(panels, widths):
        banks = [(row * width + column) % 32 for column in columns for row in range(tile)]
        turns = np.bincount(banks).max()
        for row in range(tile):
            for column in range(width):
                bank, is_stored = (row * width + column) % 32, column in columns
                colour = RED if is_stored and banks.count(bank) > 1 else BLUE if is_stored else PALE
                text = bank if row < 2 or column < 4 else ""
                _cell(panel, column, -row - 1, colour, text, "white" if is_stored else GREY)
        panel.set_xlim(-0.5, max(widths) + 0.5)
        panel.set_ylim(-tile - 0.5, 0.3)
        panel.set_title(f"rows of {width}: {len(set(banks))} banks, {turns} turns", fontsize=11)
    present(figure, "A tile whose two first columns are marked; with rows of 16 they lie in 4 banks, with rows of 17 in 31.")


def draw_register_tile(across, each, x, y):
    """The results of thread (x, y) of a block of across × across threads, each × each of them, and what it reads in one step over k."""
    size = across * each
    figure, (panel,) = _panels(1, width=6.4, height=6.2)
    for row in range(size):
        for column in range(size):
            _cell(panel, column, -row - 1, BLUE if row % across == y and column % across == x else PALE)
    for i in range(size):
        _cell(panel, -3, -i - 1, ORANGE if i % across == y else PALE)
        _cell(panel, i, 2, ORANGE if i % across == x else PALE)
    panel.text(size / 2, 4.2, "b_tile[k, :], from which it reads 8 numbers", ha="center", color=GREY)
    panel.text(-4, -size / 2, "a_tile[k, :], from which it reads 8 numbers", va="center", ha="center", rotation=90, color=GREY)
    panel.text(size / 2, -size - 1, f"the block's {size} × {size} results; one thread's are blue", ha="center", va="top", color=GREY)
    panel.set_xlim(-5.2, size + 0.5)
    panel.set_ylim(-size - 3.5, 5.8)
    present(figure, "A square of results, of which one thread has every fourth row and column; it reads 8 numbers on the left, 8 above.")


def draw_formats():
    """The bits of float32, TF32 and bfloat16: sign, exponent, mantissa."""
    figure, (panel,) = _panels(1, width=11, height=2.7)
    for level, (name, mantissa, unused) in enumerate((("float32", 23, 0), ("TF32", 10, 13), ("bfloat16", 7, 0))):
        y = -1.6 * level
        colours = [GREY] + 8 * [ORANGE] + mantissa * [BLUE] + unused * ["white"]
        for place, colour in enumerate(colours):
            _cell(panel, place, y, colour)
        panel.text(-0.6, y + 0.5, name, ha="right", va="center")
        box = {"facecolor": BLUE, "edgecolor": "none", "pad": 2}
        panel.text(9 + mantissa / 2, y + 0.5, f"{mantissa} bits", ha="center", va="center", color="white", fontsize=9, bbox=box)
    for x, name, colour in (0.5, "sign", GREY), (5, "exponent, 8 bits", ORANGE), (20.5, "mantissa", BLUE):
        panel.text(x, 1.3, name, ha="center", color=colour)
    panel.set_xlim(-4.5, 32.5)
    panel.set_ylim(-3.5, 2.2)
    present(figure, "float32 has 23 bits of mantissa, TF32 keeps 10 of them, bfloat16 has 7; all have 8 bits of exponent.")


def draw_fragments(lanes, marked):
    """Which lane of the warp holds which element of a tensor core's matrices.

    lanes    title -> (rows, columns) array of lane numbers
    marked   the lane whose elements are marked
    """
    figure, panels = _panels(len(lanes), width=10.5, height=4.9)
    for panel, (title, numbers) in zip(panels, lanes.items()):
        rows, columns = numbers.shape
        for (row, column), lane in np.ndenumerate(numbers):
            is_marked = lane == marked
            _cell(panel, column, -row - 1, BLUE if is_marked else PALE, lane, "white" if is_marked else GREY)
        panel.set_xlim(-1, 9)
        panel.set_ylim(-16.5, 0.3)
        panel.set_title(f"{title} ({rows}, {columns})", fontsize=11)
    present(figure, "Three small matrices whose elements are numbered with the lanes that hold them.")


def draw_two_readings(numbers, rows, columns):
    """The same cells of memory, read row by row as (rows, columns), and column by column as (columns, rows)."""
    figure, (panel,) = _panels(1, width=8.5, height=2.9)
    for place, number in enumerate(numbers):
        _cell(panel, 6 + place, -1.5, PALE, number)
    panel.text(6 + len(numbers) / 2, -0.2, "in memory", ha="center", color=GREY)
    for place, number in enumerate(numbers):
        row, column = divmod(place, columns)
        _cell(panel, column, -row - 1, "#cfe0ee", number)
        column, row = divmod(place, columns)
        _cell(panel, 15 + column, -row - 0.5, "#f6dfb8", number)
    panel.text(columns / 2, 0.3, f"by rows: ({rows}, {columns})", ha="center", color=BLUE)
    panel.text(15 + rows / 2, 0.8, f"by columns: ({columns}, {rows})", ha="center", color="#a86d0c")
    for start, end in ((5.7, 3.4), (12.3, 14.6)):
        panel.annotate("", (end, -1), (start, -1), arrowprops={"arrowstyle": "->", "color": GREY})
    panel.set_xlim(-1.5, 19)
    panel.set_ylim(-3, 1.6)
    present(figure, "Six cells of memory; read by rows they are a matrix, read by columns its transpose.")


def _panels(count, width, height):
    """A figure with panels without axes, in which squares are squares."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.set_axis_off()
        panel.set_aspect("equal")
    return figure, panels


def _cell(panel, x, y, colour, text="", text_colour="black"):
    """A cell of side 1 whose lower left corner is (x, y)."""
    panel.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=EDGE, linewidth=0.6))
    if text != "":
        panel.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=text_colour, fontsize=8.5)
