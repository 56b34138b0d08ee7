"""Two plots of a run: every launch under the roofline of its GPU, and the step by its parts.

Williams, Waterman, Patterson 2009, "Roofline: An Insightful Visual Performance Model for Multicore Architectures".
"""

import numpy as np
from matplotlib.figure import Figure

MEMORY_COLOUR, MATMUL_COLOUR, FLOOR_COLOUR = "#2a78b5", "#d1495b", "#5b6670"
LABEL_GAP, LABELS_FROM, LABELS_TO = 0.035, 0.02, 0.88  # of the height of the axes; the roof is above


def plot_roofline(kernels, ceilings, title, path):
    """Plot launches as points, FLOP per second over FLOP per byte, under a roof: the slope of the copy rate and the matmul rate's flat top.

    kernels   rows of measure_kernels
    ceilings  copy (byte/s) and matmul (FLOP/s)
    """
    points = []
    for row in kernels:
        if row.get("flop"):
            points.append((row["flop"] / row["bytes"], row["flop"] / row["ms"] * 1000, row["name"], row["share"], row["bound"]))
    figure = Figure(figsize=(13, 8), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    ridge = ceilings["matmul"] / ceilings["copy"]
    left = min([1 / 8, *(point[0] / 2 for point in points)])
    right = max([40 * ridge, *(8 * point[0] for point in points)])  # with room for labels
    roof = np.array([left, ridge, right])
    axes.plot(roof, np.minimum(roof * ceilings["copy"], ceilings["matmul"]), color=FLOOR_COLOUR, linewidth=2)
    copy_label, matmul_label = f"copy {ceilings['copy'] / 1e12:.2f} TB/s", f"matmul {ceilings['matmul'] / 1e12:.0f} TFLOP/s"
    axes.text(left * 1.2, left * 3 * ceilings["copy"], copy_label, color=FLOOR_COLOUR)
    axes.text(ridge, ceilings["matmul"] * 1.15, matmul_label, color=FLOOR_COLOUR)
    bottom = min([left * ceilings["copy"] / 8, *(point[1] / 4 for point in points)])
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, ceilings["matmul"] * 2.5)
    for bound, colour in (("memory", MEMORY_COLOUR), ("matmul", MATMUL_COLOUR)):
        chosen = sorted((point for point in points if point[4] == bound), key=lambda point: point[1])
        axes.plot([p[0] for p in chosen], [p[1] for p in chosen], "o", color=colour, markersize=6)
        _label(axes, chosen, colour)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("FLOP per byte that must be moved")
    axes.set_ylabel("FLOP per second")
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _label(axes, points, colour):
    """Label the points in a column to their right, in the same vertical order, each label joined to its point by a line.

    points: (FLOP per byte, FLOP per second, name, share of the ceiling, bound), sorted by FLOP per second.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    positions = [to_axes.transform((x, y)) for x, y, *_ in points]
    column = max([0.0, *(x for x, _ in positions)]) + 0.04
    heights = _apart([y - 0.1 for _, y in positions])
    for (x, y, name, share, _), height in zip(points, heights):
        axes.annotate(
            f"{name}  {share:.0%}", (x, y), (column, height), textcoords="axes fraction", va="center", fontsize=8.5, color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def _apart(heights):
    """Ascending heights, moved so that neighbours are LABEL_GAP apart and all lie within LABELS_FROM ... LABELS_TO."""
    gap = min(LABEL_GAP, (LABELS_TO - LABELS_FROM) / max(len(heights), 1))
    moved, lowest = [], LABELS_FROM
    for height in heights:
        moved.append(max(height, lowest))
        lowest = moved[-1] + gap
    highest = LABELS_TO
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], highest)
        highest = moved[i] - gap
    return moved


def plot_step(timeline, title, path):
    """Plot a bar for each part of the step: its time and, darker, its floor."""
    parts = list(timeline["parts"].items())
    names = [name for name, _ in parts] + ["left over: gaps"]
    times = [part["ms"] for _, part in parts] + [max(timeline["left_over_ms"], 0)]
    floors = [0 if part.get("not_counted") else part["floor_ms"] for _, part in parts] + [0]
    bounds = [part.get("bound", "memory") for _, part in parts] + ["memory"]
    colours = [MATMUL_COLOUR if bound == "matmul" else MEMORY_COLOUR for bound in bounds[:-1]] + [FLOOR_COLOUR]
    rows = np.arange(len(names))
    figure = Figure(figsize=(11, 1.5 + 0.32 * len(names)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(rows, times, color=colours, alpha=0.35)
    axes.barh(rows, floors, color=colours, height=0.45)
    for row, ms, floor in zip(rows, times, floors):
        share = f", {floor / ms:.0%} of its ceiling" if floor and ms else ""
        axes.text(ms, row, f"  {ms:.2f} ms, {ms / timeline['step_ms']:.1%} of the step{share}", va="center", fontsize=8.5)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the longest on top
    axes.set_xlim(0, 1.45 * max(times))
    axes.set_xlabel("ms per step; dark: the floor by bytes (blue, sustained copy rate) or FLOP (red, sustained matmul rate)")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
