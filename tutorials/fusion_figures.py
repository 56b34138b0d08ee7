"""The figures of chapter 07. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tutorials.model_figures import BLUE, GREY, PALE, RED, present

ORANGE = "#e08a1e"
# In draw_times: where a kernel's name stands beside its point, alignment and offset. Those that are not named: right, a little below.
LABELS = {
    "layernorm_backward": ("right", -8, 12),
    "gelu_forward": ("right", -8, 2),
    "classifier_forward": ("right", -8, -8),
    "sum_of_squares": ("right", 14, 12),
    "residual_layernorm_forward": ("left", 12, -20),
    "adamw_update": ("left", 14, -16),
}


def draw_depth(sizes):
    """The size of the gradient on its way down through the layers, on a logarithmic scale. sizes: {label: (layers + 1,)}, from the top."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    panel = figure.subplots()
    for (label, size), colour in zip(sizes.items(), (RED, BLUE)):
        panel.semilogy(range(len(size)), size, color=colour, linewidth=2, marker="o", markersize=4, label=label)
    panel.set_xlabel("layers that the gradient has come down through")
    panel.set_ylabel("size of the gradient\n(each line is a hundredth\nof the one above it)")
    panel.set_yticks([10.0**power for power in range(-14, 3, 2)])
    panel.minorticks_off()
    panel.grid(axis="y", color="#ddd", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="center left", fontsize=10)
    present(figure, "Without the sum the gradient shrinks by the same factor in every layer; with it, it keeps its size.")


def draw_times(points, rate):
    """Measured time against bytes. points: {precision: {function: (megabytes, ms)}}; rate: bytes per second of a copy."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    panel = figure.subplots()
    right = 1.3 * max(size for functions in points.values() for size, _ in functions.values())
    panel.plot([0, right], [0, right * 1e6 / rate * 1e3], color=GREY, linestyle=":", linewidth=1.5)
    panel.text(right * 0.99, right * 1e6 / rate * 1e3, "a copy of\nas many bytes", ha="right", va="bottom", color=GREY, fontsize=9)
    for (precision, functions), colour in zip(points.items(), (BLUE, ORANGE)):
        panel.plot(*zip(*functions.values()), "o", color=colour, markersize=6, label=precision)
    for name, (size, ms) in next(iter(points.values())).items():
        align, across, up = LABELS.get(name, ("left", 8, -9))
        panel.annotate(name, (size, ms), xytext=(across, up), textcoords="offset points", ha=align, va="center", fontsize=8.5, color=BLUE)
    panel.set(xlabel="MB that must be read and written", ylabel="measured, ms", xlim=(0, right), ylim=(0, None))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="upper left")
    present(figure, "A point for each kernel: time grows with the bytes, along the line of a copy or a little above it.")


def draw_sheets(ways):
    """Kernels above global memory: an arrow up for each sheet that one reads, down for each that it writes.

    ways: {title: [(kernel, [sheets read], [sheets written])]}
    """
    figure = Figure(figsize=(10, 2.9))
    widths = [sum(len(reads) + len(writes) + 1 for _, reads, writes in kernels) for kernels in ways.values()]
    gap = 1.6
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.4, sum(widths) + gap * (len(widths) - 1)), ylim=(-0.6, 5.6))
    axes.axis("off")
    left = 0.0
    for (title, kernels), width in zip(ways.items(), widths):
        arrows = sum(len(reads) + len(writes) for _, reads, writes in kernels)
        axes.text(left + (width - 1) / 2, 5.15, f"{title}: {arrows} arrows", ha="center", fontsize=12)
        axes.add_patch(Rectangle((left - 0.3, -0.2), width - 0.4, 1.0, facecolor="#444", edgecolor="none"))
        axes.text(left + (width - 1) / 2, 0.3, "global memory", ha="center", va="center", color="white", fontsize=10)
        x = left
        for kernel, reads, writes in kernels:
            count = len(reads) + len(writes)
            axes.add_patch(Rectangle((x, 3.5), count - 0.3, 1.1, facecolor=PALE, edgecolor=BLUE, linewidth=2))
            axes.text(x + (count - 0.3) / 2, 4.05, kernel, ha="center", va="center", color=BLUE, fontsize=10)
            for place, sheet in enumerate([*reads, *writes]):
                _sheet(axes, x + place + 0.35, sheet, is_read=place < len(reads))
            x += count + 0.5
        left += width + gap
    present(figure, "Left, two kernels with five arrows between them and global memory; right, one kernel with four.")


def _sheet(axes, x, name, is_read):
    colour = BLUE if is_read else ORANGE
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 2.2, "mutation_scale": 15}
    axes.annotate("", (x, 3.45) if is_read else (x, 0.85), (x, 0.85) if is_read else (x, 3.45), arrowprops=style)
    axes.text(x - 0.12, 2.1, name, rotation=90, ha="right", va="center", fontsize=9, color=colour)


def draw_step(parts):
    """Sheets that a block's small layers move, by way of computing. parts: {way: {layer: sheets}}, as stacked bars."""
    figure = Figure(figsize=(9, 0.9 + 0.75 * len(parts)), layout="constrained")
    panel = figure.subplots()
    layers = list(dict.fromkeys(layer for way in parts.values() for layer in way))
    colours = dict(zip(layers, (BLUE, ORANGE, "#3f9b57", "#8a5aa8", RED)))
    for place, way in enumerate(parts.values()):
        left = 0
        for layer in layers:
            sheets = way.get(layer, 0)
            panel.barh(place, sheets, left=left, height=0.6, color=colours[layer], edgecolor="white", label=layer if not place else None)
            if sheets:
                panel.text(left + sheets / 2, place, f"{sheets}", ha="center", va="center", color="white", fontsize=10)
            left += sheets
        panel.text(left + 0.4, place, f"{left}", va="center", fontsize=11)
    panel.set_yticks(range(len(parts)), list(parts))
    panel.set_xlim(0, 1.08 * max(sum(way.values()) for way in parts.values()))
    panel.invert_yaxis()
    panel.set_xlabel("sheets of (N, C) read or written by the small layers of a block, forward and backward")
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=len(layers))
    present(figure, "Two stacked bars: the sheets of the plain order, and of the fused one, by layer.")


def size(gradient):
    """The root of the mean of the squares."""
    return float(np.sqrt(np.square(gradient).mean()))
