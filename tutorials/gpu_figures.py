"""The drawings of chapter 00. Every function returns a matplotlib figure; `show` displays it in a notebook, or saves it for a script."""

import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREEN, RED, GREY, PALE = "#3b6fb6", "#e08a1e", "#3f9b57", "#c8433c", "#8a8f98", "#eef0f3"
BLOCK_COLOURS = (BLUE, ORANGE, GREEN)
SECTOR_BYTES = 32  # global memory is read in pieces of this size
SAVED = {"dpi": 110, "bbox_inches": "tight", "pad_inches": 0.15}


def show(figure, name):
    """Display a figure in the notebook or, in a script, save it as NAME.png in the temporary directory and print where."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from IPython.display import Image, display

        picture = io.BytesIO()
        figure.savefig(picture, format="png", **SAVED)
        display(Image(data=picture.getvalue()))
        return
    user = os.getuid() if hasattr(os, "getuid") else ""  # the directory is shared by all users of the machine
    folder = Path(tempfile.gettempdir()) / f"gpt2_numba_figures{user}"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.png", **SAVED)
    print(f"figure: {folder / name}.png")


def _blank(width, height, columns=1, titles=()):
    """A figure with `columns` panels without axes, each of which draws squares as squares."""
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for panel, title in zip(panels, titles or [""] * columns):
        panel.set_axis_off()
        panel.set_aspect("equal")
        panel.set_title(title, fontsize=11)
    return figure, panels


def _box(panel, x, y, text="", colour="white", text_colour="black", size=1.0, **style):
    """A square of side `size` with its lower left corner at (x, y) and a text in its middle."""
    style = {"edgecolor": "#555", "linewidth": 0.8, **style}
    panel.add_patch(Rectangle((x, y), size, size, facecolor=colour, **style))
    panel.text(x + size / 2, y + size / 2, text, ha="center", va="center", color=text_colour, fontsize=10)


def draw_threads_needed(rate_of_one, memory_rate, threads_at_once):
    """Bytes per second against the number of threads that wait for one number at a time each, up to what the memory delivers. Logs."""
    figure = Figure(figsize=(8.2, 3.9), layout="constrained")
    panel = figure.subplots()
    threads = np.array([1, min(threads_at_once, memory_rate / rate_of_one)])
    panel.loglog(threads, threads * rate_of_one, color=BLUE, linewidth=2.5)
    panel.axhline(memory_rate, color=GREY, linestyle=":", linewidth=1)
    panel.text(1.3, memory_rate * 1.2, f"an H200 that copies, measured: {memory_rate / 1e12:.1f} TB/s", color="#444", va="bottom")
    for count, label in (
        (1, "one thread"),
        (32, "32"),
        (1024, "1,024"),
        (threads_at_once, f"{threads_at_once:,}: all that fit"),
    ):
        rate = min(count * rate_of_one, memory_rate)
        panel.plot(count, rate, "o", color=BLUE, clip_on=False)
        panel.annotate(label, (count, rate), xytext=(9, -14), textcoords="offset points", fontsize=10)
    panel.set_xlim(1, 5e6)
    panel.set_ylim(5e6, 3e13)
    panel.set_yticks([1e7, 1e9, 1e11, 1e13], ["10 MB/s", "1 GB/s", "100 GB/s", "10 TB/s"])
    panel.minorticks_off()
    panel.set_xticks([1, 100, 10_000, 1_000_000], ["1", "100", "10,000", "1,000,000"])
    panel.set_xlabel("threads, each waiting for one number at a time")
    panel.set_ylabel("bytes per second")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def draw_machine():
    """Where the memories are: two of the multiprocessors with the blocks that they run, above the global memory that all of them see."""
    figure, (panel,) = _blank(10.5, 4.1)
    for number in range(2):
        left = 11 * number
        panel.add_patch(Rectangle((left, 3.2), 10.2, 5.6, facecolor="white", edgecolor=GREY))
        panel.text(
            left + 0.25, 8.25, f"multiprocessor {number}" + (" of 132" if not number else ""), fontsize=10, color="#444", va="center"
        )
        for index in range(2):
            block, corner = 2 * number + index, left + 0.35 + 4.9 * index
            colour = (*BLOCK_COLOURS, RED)[block]
            panel.add_patch(Rectangle((corner, 3.5), 4.6, 4.3, facecolor="white", edgecolor=colour, linewidth=1.6))
            panel.text(corner + 0.2, 7.35, f"block {block}", color=colour, fontsize=10, va="center")
            for thread in range(4):
                _box(panel, corner + 0.2 + 1.07 * thread, 5.6, f"{thread}", PALE, size=1.0)
            panel.text(corner + 0.2, 6.85, "threads, registers", fontsize=8, va="center", color="#444")
            panel.add_patch(Rectangle((corner + 0.2, 3.75), 4.2, 1.1, facecolor=colour, edgecolor="none", alpha=0.85))
            panel.text(corner + 2.3, 4.3, "shared memory", color="white", ha="center", va="center", fontsize=10)
            panel.annotate("", (corner + 2.3, 4.9), (corner + 2.3, 5.55), arrowprops={"arrowstyle": "<->", "color": colour})
        panel.annotate("", (left + 5.1, 1.75), (left + 5.1, 3.15), arrowprops={"arrowstyle": "<->", "color": "#444"})
    panel.text(5.4, 2.45, "hundreds of cycles", fontsize=9, color="#444", va="center")
    panel.text(22.0, 6.0, "...", fontsize=16, va="center", color="#444")
    panel.add_patch(Rectangle((0, 0.2), 21.2, 1.5, facecolor="#444", edgecolor="none"))
    panel.text(10.6, 0.95, "global memory: inp, out", color="white", ha="center", va="center", fontsize=11)
    panel.set_xlim(-0.2, 23)
    panel.set_ylim(0, 9)
    return figure


def draw_grid(blocks, threads, elements):
    """Blocks of threads above the array elements that they pick by cuda.grid(1). Threads without an element are red."""
    figure, (panel,) = _blank(9.2, 2.9)
    gap = 0.6
    for block in range(blocks):
        left = block * (threads + gap)
        colour = BLOCK_COLOURS[block % len(BLOCK_COLOURS)]
        panel.text(left + threads / 2, 4.1, f"blockIdx.x = {block}", ha="center", color=colour, fontsize=10)
        for thread in range(threads):
            i, x = block * threads + thread, left + thread
            inside = i < elements
            _box(panel, x, 2.8, thread, colour if inside else RED, "white")
            panel.annotate("", (x + 0.5, 1.05), (x + 0.5, 2.75), arrowprops={"arrowstyle": "->", "color": "#555" if inside else RED})
            _box(
                panel, x, 0, i if inside else "?", PALE if inside else "white", "black" if inside else RED, linestyle="-" if inside else ":"
            )
    width = blocks * (threads + gap)
    panel.text(width + 0.1, 3.3, "threadIdx.x", va="center", fontsize=10)
    panel.text(width + 0.1, 1.9, "i = cuda.grid(1)", va="center", fontsize=10)
    panel.text(width + 0.1, 0.5, "out[i]", va="center", fontsize=10)
    panel.set_xlim(-0.3, width + 4.2)
    panel.set_ylim(-0.3, 4.8)
    return figure


def sectors_fetched(cells, itemsize=4):
    """How many pieces of 32 bytes must be fetched for these elements (indices in C order) of an array that starts with a piece."""
    return len({cell * itemsize // SECTOR_BYTES for cell in cells})


def draw_coalescing(shape, patterns):
    """The elements of a (rows, columns) float32 array that a warp reads in one moment (blue), and the pieces fetched for them (orange).

    patterns  {title: {thread: element in C order}}, a panel each
    """
    rows, columns = shape
    titles = [f"{title}:\n{sectors_fetched(cells.values())} pieces for {len(cells)} numbers" for title, cells in patterns.items()]
    figure, panels = _blank(4.6 * len(patterns), 4.8, len(patterns), titles)
    for panel, cells in zip(panels, patterns.values()):
        _draw_fetched(panel, rows, columns, cells)
        for thread in (0, 1, len(cells) - 1):
            row, column = divmod(cells[thread], columns)
            neighbours = cells[1] - cells[0] == 1
            if neighbours and thread != 1:  # there is no room for thread 1
                panel.text(column + 0.5, rows - 1.6 - row, f"thread {thread}", ha="right" if thread else "left", va="top", fontsize=8)
            elif not neighbours:
                panel.text(column + 1.3, rows - 0.53 - row, f"thread {thread}", va="center", fontsize=7)
        panel.text(columns / 2, -0.6, f"inp, {rows} rows of {columns} float32", ha="center", va="top", fontsize=9, color="#444")
        panel.set_xlim(0, columns)
        panel.set_ylim(-2, rows)
    return figure


def _draw_fetched(panel, rows, columns, cells):
    """The pieces of an array, those that are fetched in orange, and in blue the elements that are used."""
    width = SECTOR_BYTES // 4
    fetched = {cell // width for cell in cells.values()}
    for sector in range(rows * columns // width):
        row, column = divmod(sector * width, columns)
        colour = "#f5cf9a" if sector in fetched else PALE
        panel.add_patch(Rectangle((column, rows - 1 - row), width, 1, facecolor=colour, edgecolor="white", linewidth=1.2))
    for cell in cells.values():
        row, column = divmod(cell, columns)
        panel.add_patch(Rectangle((column, rows - 1 - row), 1, 1, facecolor=BLUE, edgecolor="white", linewidth=0.4))


def draw_block_sum(values):
    """The rounds of block_sum for a power of two of values: who adds what to whose. A pale box holds a sum that is no longer needed."""
    threads = len(values)
    rounds = int(np.log2(threads))
    figure, (panel,) = _blank(8.6, 1.1 + 1.35 * (rounds + 1))
    spacing, drop = 1.5, 2.2
    values, half = list(values), threads
    for level in range(rounds + 1):
        y = (rounds - level) * drop
        for i, value in enumerate(values):
            live = i < half
            last = level == rounds and live
            _box(panel, i * spacing, y, f"{value:g}", (GREEN if last else BLUE) if live else PALE, "white" if live else GREY)
        panel.text(-0.5, y + 0.5, "values" if level == 0 else f"half = {half}", ha="right", va="center", fontsize=10)
        if level == rounds:
            break
        half //= 2
        for i in range(half):
            for source in (i, i + half):
                start, end = (source * spacing + 0.5, y - 0.03), (i * spacing + 0.5, y - drop + 1.05)
                style = {"arrowstyle": "->", "color": GREY if source == i else ORANGE, "linewidth": 1.2}
                panel.annotate("", end, start, arrowprops=style)
        for i in range(half):
            values[i] += values[i + half]
    for i in range(threads):
        panel.text(i * spacing + 0.5, rounds * drop + 1.25, f"thread {i}", ha="center", fontsize=9)
    panel.set_xlim(-2.8, threads * spacing)
    panel.set_ylim(-0.3, rounds * drop + 1.8)
    return figure
