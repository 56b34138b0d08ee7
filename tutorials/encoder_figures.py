"""The figures of chapter 02. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tutorials.model_figures import GREY, PALE, present

COLOURS = ("#3b6fb6", "#e08a1e", "#3f9b57", "#8a5aa8", "#8a8f98")  # of tokens, by number
WARP = 32


def draw_gather_and_scatter(tokens, words):
    """Which row goes where, forward and backward. tokens: (N,) places; words: the name of each token."""
    figure = Figure(figsize=(10, 4.9))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1.6, 19.2), ylim=(-0.9, 11.8))
    axes.axis("off")
    cases = ("forward: gather", "wte", "out", 0.0), ("backward: scatter", "dwte", "dout", 10.2)
    for title, table, rows, left in cases:
        table_left, rows_left = left, left + 5.6
        axes.text(left + 3.8, 11.2, title, ha="center", fontsize=13)
        axes.text(table_left + 0.9, 8.6, f"{table}:\na row for each token", ha="center", fontsize=11)
        axes.text(rows_left + 1.2, 10.25, f"{rows}: a row for each place", ha="center", fontsize=11)
        for token, word in enumerate(words):
            _row(axes, table_left, 7.5 - 1.5 * token, 1.8, f"{token} {word}", COLOURS[token])
        for place, token in enumerate(tokens):
            _row(axes, rows_left, 9.2 - place, 2.4, f"{place} {words[token]}", COLOURS[token])
            ends = (table_left + 1.85, 7.9 - 1.5 * token), (rows_left - 0.05, 9.6 - place)
            start, end = ends if rows == "out" else ends[::-1]
            axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": COLOURS[token], "linewidth": 1.4})
    axes.text(3.8, -0.7, "many arrows leave a row: reads", ha="center", color=GREY, fontsize=11)
    axes.text(14.0, -0.7, "many arrows end in a row: writes", ha="center", color=GREY, fontsize=11)
    present(
        figure, "Left, each row of out fetches a row of wte; right, the same arrows turned round: several rows of dout end in one of dwte."
    )


def _row(axes, left, bottom, width, text, colour):
    axes.add_patch(Rectangle((left, bottom), width, 0.8, facecolor=colour, edgecolor="white"))
    axes.text(left + width / 2, bottom + 0.38, text, ha="center", va="center", color="white", fontsize=10)


def touched(seen, kernel, memory, width, by_warp=False):
    """Which rows each block of a kernel reads, or each warp: {worker: set of rows}, workers without any left out.

    seen    a watching.Record        kernel   the name of the Python function
    memory  its name of the array    width    elements of a row
    """
    rows = {}
    for touch in seen.touches:
        if touch.is_read and touch.memory == memory and seen.launches[touch.launch].kernel.__name__ == kernel:
            worker = (touch.block[0], touch.thread_id // WARP) if by_warp else touch.block[0]
            rows.setdefault(worker, set()).add(touch.offset // (4 * width))
    return [rows[worker] for worker in sorted(rows)]


def draw_touched(panels, tokens, words):
    """The rows of dout that each block or warp reads, coloured by token, and pale the places of which it reads the token only.

    panels  {title: (rows of dout, places compared)}, each as `touched` returns them; places may be empty
    """
    heights = [max(len(rows), len(places)) for rows, places in panels.values()]
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for panel, (title, (rows, places)) in zip(axes, panels.items()):
        workers = max(len(rows), len(places))
        for worker in range(workers):
            for place in places[worker] if places else ():
                panel.add_patch(Rectangle((place, worker), 1, 1, facecolor="#d5dae1", edgecolor="white", linewidth=1.5))
            for place in rows[worker] if worker < len(rows) else ():
                panel.add_patch(Rectangle((place, worker), 1, 1, facecolor=COLOURS[tokens[place]], edgecolor="white", linewidth=1.5))
        panel.set(xlim=(0, len(tokens)), ylim=(max(heights), 0), aspect="equal")
        panel.set_xticks(np.arange(len(tokens)) + 0.5, [words[token] for token in tokens], fontsize=9, rotation=60)
        panel.set_yticks(np.arange(workers) + 0.5, range(workers), fontsize=9)
        panel.set_title(title, fontsize=11)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    axes[0].set_ylabel("block or warp", fontsize=10)
    figure.supxlabel("rows of dout; coloured: read and added, grey: only its token is read", fontsize=10, color=GREY)
    present(figure, "Left every block reads all tokens; in the middle and on the right each reads only the rows that it adds up.")


def draw_frequencies(counts_by_text, piece):
    """How often each token occurs, the most frequent one first, on logarithmic scales. counts_by_text: {name: (V,)}; piece: rows of one."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    panel = figure.subplots()
    for place, (name, counts) in enumerate(counts_by_text.items()):
        counts = np.sort(counts[counts > 0])[::-1]
        panel.loglog(np.arange(1, len(counts) + 1), counts, marker="o", markersize=3.5, linewidth=1.2, color=COLOURS[place], label=name)
    panel.axhline(piece, color=GREY, linestyle="--", linewidth=1)
    panel.text(panel.get_xlim()[1] * 0.95, piece * 1.15, f"{piece} rows: a piece", ha="right", color=GREY, fontsize=10)
    panel.set_xlabel("rank of the token, the most frequent one first (logarithmic)")
    panel.set_ylabel("its rows of dout (logarithmic)")
    panel.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    panel.set_yticks([1, 10, 100, 1000, 10000], ["1", "10", "100", "1,000", "10,000"])
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    present(figure, "A few tokens occur thousands of times, most a few times.")


def loads_of(seen, memory):
    """What the first read of each thread brings: lists of columns of the row that thread 0 reads, as far as that row goes.

    seen    a watching.Record        memory   the kernel's name of a float32 matrix
    """
    loads = {}
    for touch in seen.touches:
        if touch.is_read and touch.memory == memory and touch.block == seen.touches[0].block and touch.thread_id < WARP:
            first = touch.offset // 4
            loads.setdefault(touch.thread_id, range(first, first + touch.nbytes // 4))
    start = min(elements[0] for elements in loads.values())
    width = seen.sizes[memory][2][1]
    in_row = [[element - start for element in elements] for _, elements in sorted(loads.items())]
    return list(itertools.takewhile(lambda elements: max(elements) < width, in_row))


def draw_loads(loads):
    """Which channels of a row of wte the first loads of the threads bring. loads: {title: [thread's set of channels, ...]}."""
    figure = Figure(figsize=(10, 0.6 + 1.0 * len(loads)), layout="constrained")
    axes = figure.subplots(len(loads), 1)
    for panel, (title, threads) in zip(axes, loads.items()):
        for thread, channels in enumerate(threads):
            for c in channels:
                panel.add_patch(Rectangle((c, 0), 1, 1, facecolor=COLOURS[thread % 2], edgecolor="white", linewidth=0.8))
            middle = sum(channels) / len(channels) + 0.5
            if len(channels) > 1:
                panel.text(middle, 0.45, f"thread {thread}", ha="center", va="center", color="white", fontsize=8)
        panel.set(xlim=(0, 64), ylim=(0, 1), yticks=[])
        panel.set_xticks(range(0, 65, 8))
        panel.set_title(title, fontsize=10, loc="left")
        panel.tick_params(length=2)
        panel.spines[:].set_visible(False)
        panel.set_facecolor(PALE)
    axes[-1].set_xlabel("channel of a row of wte; the threads alternate in colour", fontsize=10)
    present(figure, "Above, the first load of a thread brings one channel; below, its first two loads bring eight neighbouring ones.")
