"""The figures of chapter 03. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tutorials.model_figures import GREY, PALE, present

BLUE, ORANGE, GREEN = "#3b6fb6", "#e08a1e", "#3f9b57"
LINES = (BLUE, ORANGE, GREEN, "#8a5aa8")
DASHES = ("-", (0, (5, 3)), (0, (2, 2)), "-.")  # lines that lie on one another remain visible


def draw_normalised(rows, after):
    """Rows of channels before and after. rows, after: {label: (C,)}."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, values, title in zip(panels, (rows, after), ("inp", "xhat")):
        for place, (label, row) in enumerate(values.items()):
            width = 1.7 * (len(values) - place)  # the widest first, so that the narrower ones show on top of it
            panel.plot(range(len(row)), row, marker="o", color=LINES[place], linestyle=DASHES[place], linewidth=width, label=label)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("channel")
        panel.set_xticks(range(len(row)))
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].axhline(0, color=GREY, linewidth=0.8)
    panels[0].legend(frameon=False, fontsize=9)
    alt = "Left, rows of different size and height; right, the same rows normalised: those that differ by offset and scale coincide."
    present(figure, alt)


def draw_movements(parts, raised):
    """What each number of a row does when one is raised. parts: {reason: (C,)}, per ε; raised: the index of that one."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panel = figure.subplots()
    channels, width = np.arange(len(next(iter(parts.values())))), 0.2
    for place, (reason, moved) in enumerate(parts.items()):
        panel.bar(channels + (place - 1.5) * width, moved, width * 0.92, color=LINES[place], label=reason)
    total = sum(parts.values())
    panel.bar(channels + 1.5 * width, total, width * 0.92, color="#333", label="sum")
    for channel, moved in zip(channels, total):
        above = moved >= 0
        panel.text(
            channel + 1.5 * width,
            moved + (0.02 if above else -0.02),
            f"{moved:+.2f}",
            ha="center",
            va="bottom" if above else "top",
            fontsize=8,
        )
    panel.axhline(0, color=GREY, linewidth=0.8)
    panel.set_xticks(channels, [f"xhat[{j}]" + (f"\ninp[{j}] is raised" if j == raised else "") for j in channels])
    panel.set_ylabel("movement, per ε")
    panel.margins(y=0.12)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.legend(frameon=False, loc="upper left", fontsize=9)
    present(figure, "Three bars for each number of the row, one for each reason, and their sum.")


def draw_cuts():
    """The sheet of rows and channels, cut by rows and cut by columns."""
    figure = Figure(figsize=(9, 3.3))
    rows, columns, gap = 6, 10, 5.0
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-2.6, 2 * columns + gap + 1.0), ylim=(-2.4, rows + 2.0), aspect="equal")
    axes.axis("off")
    cuts = (
        ("a row at a time", "out, mean, rstd; dinp", [(0, row, columns, 1) for row in range(rows)]),
        ("a column at a time", "dweight, dbias", [(column, 0, 1, rows) for column in range(columns)]),
    )
    for place, (title, results, pieces) in enumerate(cuts):
        left = place * (columns + gap)
        for number, (x, y, width, height) in enumerate(pieces):
            colour = BLUE if number == 1 else PALE
            axes.add_patch(Rectangle((left + x, rows - y - height), width, height, facecolor=colour, edgecolor="white", linewidth=2))
        axes.text(left + columns / 2, rows + 0.9, title, ha="center", fontsize=12)
        axes.text(left + columns / 2, -0.9, results, ha="center", va="top", fontsize=12, color=BLUE)
        axes.text(left - 0.4, rows / 2, "N rows", ha="right", va="center", color=GREY, rotation=90)
        axes.text(left + columns / 2, rows + 0.25, "C channels", ha="center", color=GREY, fontsize=9)
    present(figure, "Left, a sheet of six rows, of which one is coloured; right, the same sheet of ten columns, of which one is coloured.")


def passes(seen):
    """{(array, "read" or "written"): how many times its elements are read or written, on average} in global memory.

    A number that one line mentions twice counts once: the compiler reads it once.
    """
    touches = {(touch.memory, touch.is_read, touch.nbytes, touch.address, touch.thread_id, touch.block, touch.line) for touch in seen.touches
               if not touch.is_shared}  # fmt: skip
    moved = {}
    for memory, is_read, nbytes, *_ in touches:
        way = memory, "read" if is_read else "written"
        moved[way] = moved.get(way, 0) + nbytes
    return {(memory, way): nbytes / seen.sizes[memory][0] for (memory, way), nbytes in moved.items()}


def draw_passes(rungs, N):
    """How often each kernel goes over the sheet. rungs: {name: the Record of watch()}, of LayerNorm's forward over N rows."""
    figure = Figure(figsize=(9, 0.7 + 0.62 * len(rungs)), layout="constrained")
    panel = figure.subplots()
    for place, seen in enumerate(rungs.values()):
        counts, left = passes(seen), 0
        read, weight, bias = (round(counts[memory, "read"] / share) for memory, share in (("inp", 1), ("weight", N), ("bias", N)))
        for count, colour, label in ((read, BLUE, "inp"), (1, ORANGE, "out"), (weight, PALE, "weight"), (bias, PALE, "bias")):
            for _ in range(count):
                panel.barh(place, 1, left=left, height=0.66, color=colour, edgecolor="white", linewidth=2)
                panel.text(left + 0.5, place, label, ha="center", va="center", color=GREY if colour == PALE else "white", fontsize=9)
                left += 1
    panel.set_yticks(range(len(rungs)), list(rungs))
    panel.invert_yaxis()
    panel.set_xlabel("times N · C numbers are read or written")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    present(figure, "A bar for each kernel, made of its passes over inp and out: three reads of inp, or one.")


def instructions(seen, memory, widest):
    """Which of its load instructions brings each element of the first row to its thread: (C,), from 0. widest: bytes of an instruction."""
    _, itemsize, shape = seen.sizes[memory]
    number, loads = np.full(shape[-1], -1), {}
    for touch in seen.touches:
        first = touch.offset // itemsize
        if touch.memory != memory or not touch.is_read or first >= shape[-1] or number[first] >= 0:
            continue
        for start in range(0, touch.nbytes, widest):
            count = min(widest, touch.nbytes) // itemsize
            number[first + start // itemsize :][:count] = loads.get(touch.thread_id, 0)
            loads[touch.thread_id] = loads.get(touch.thread_id, 0) + 1
    return number


def draw_loads(rungs):
    """Which instruction loads which channel. rungs: {title: numbers of `instructions`}."""
    figure = Figure(figsize=(9, 1.15 * len(rungs) + 0.3), layout="constrained")
    for place, (title, numbers) in enumerate(rungs.items()):
        panel = figure.add_subplot(len(rungs), 1, place + 1)
        for c, number in enumerate(numbers):
            panel.add_patch(Rectangle((c, 0), 1, 1, facecolor=LINES[number % 4], alpha=1 if number < 4 else 0.5, linewidth=0))
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
        for start, stop in zip(edges, edges[1:]):
            panel.axvline(stop, color="white", linewidth=0.7)
            if stop - start >= 16:
                panel.text((start + stop) / 2, 0.5, numbers[start] + 1, ha="center", va="center", color="white" if start < 128 else "#333")
        panel.set_title(f"{title}: {numbers.max() + 1} load instructions for {len(numbers)} channels", fontsize=10, loc="left")
        panel.set(xlim=(0, len(numbers)), ylim=(0, 1), yticks=[])
        panel.set_xticks(range(0, len(numbers) + 1, 32))
        panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_xlabel("channel")
    present(figure, "A row of channels, coloured by the instruction that loads them: stretches of 32 channels each, or alternating fours.")
