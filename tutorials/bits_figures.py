"""The figures of chapter 11. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from tutorials.model_figures import BLUE, GREY, PALE, RED, present

ORANGE, GREEN, PINK = "#e08a1e", "#3f9b57", "#f0bcc2"


def draw_drift(drifts):
    """|difference of the loss| to the right run against the step, on a logarithmic scale. drifts: {name: (steps,)}; zeros are not drawn."""
    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, drift), colour in zip(drifts.items(), (RED, BLUE)):
        steps = np.flatnonzero(drift)
        axes.semilogy(steps + 1, drift[steps], ".", color=colour, markersize=5, label=name)
    axes.set_xlim(0, len(drift) + 1)
    axes.set_xlabel("step")
    axes.set_ylabel("difference of the losses\n(each line: ten times as much)")
    axes.grid(axis="y", color="#e3e7ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9.5, loc="upper left")
    present(
        figure, "Two clouds of dots rise with the step: the lost gradient to about a hundredth, the other order to a hundred-thousandth."
    )


def draw_orders():
    """The same eight numbers added one by one and in pairs: through how many additions does each go?"""
    figure = Figure(figsize=(9.6, 3.6))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.6, 19.4), ylim=(-1.4, 8.3))
    axes.axis("off")
    line = {"color": GREY, "linewidth": 1.4}
    for i in range(8):
        axes.text(i, -0.55, f"x{i}", ha="center", fontsize=10)
    sum_at = (0.0, 0.0)
    for i in range(1, 8):
        top = (i - 0.5, i * 0.9)
        for start in (sum_at, (i, 0.0)):
            axes.plot((start[0], top[0]), (start[1], top[1]), **line)
        axes.plot(*top, "o", color=RED, markersize=7)
        sum_at = top
    axes.text(3.5, 7.6, "one by one: x0 goes through 7 additions", ha="center", fontsize=11, color=RED)
    left = 10.8
    positions = [left + i for i in range(8)]
    heights = [0.0] * 8
    for i, x in enumerate(positions):
        axes.text(x, -0.55, f"x{i}", ha="center", fontsize=10)
    while len(positions) > 1:
        tops = []
        for a, b, height in zip(positions[::2], positions[1::2], heights[::2]):
            top = ((a + b) / 2, height + 1.9)
            for x in (a, b):
                axes.plot((x, top[0]), (height, top[1]), **line)
            axes.plot(*top, "o", color=BLUE, markersize=7)
            tops.append(top)
        positions, heights = [x for x, _ in tops], [y for _, y in tops]
    axes.text(left + 3.5, 7.6, "in pairs: each goes through 3", ha="center", fontsize=11, color=BLUE)
    present(figure, "Two trees of additions over eight numbers: a slanted chain of seven, and a balanced one of three levels.")


def draw_errors(lengths, one_by_one, in_pairs, all_equal, worst, expected):
    """Measured errors of sums and two bounds, against their length; both axes logarithmic. All are (len(lengths),)."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.loglog(lengths, worst, "--", color=GREY, linewidth=1.5)
    axes.loglog(lengths, expected, "-", color=GREEN, linewidth=1.8)
    axes.loglog(lengths, one_by_one, "o", color=RED, markersize=6)
    axes.loglog(lengths, in_pairs, "s", color=BLUE, markersize=5)
    axes.loglog(lengths, all_equal, "^", color=ORANGE, markersize=6)
    for values, text, colour in (
        (worst, "worst case:\nN - 1 roundings", GREY),
        (all_equal, "one by one,\nall equal", ORANGE),
        (expected, "6 times the root\nof N: the bound", GREEN),
        (one_by_one, "one by one,\nrandom numbers", RED),
        (in_pairs, "in pairs,\nrandom numbers", BLUE),
    ):
        axes.text(lengths[-1] * 1.35, values[-1], text, color=colour, va="center", fontsize=9.5)
    axes.set_xlim(lengths[0] / 1.3, lengths[-1] * 14)
    axes.set_xticks([16, 256, 4096, 65536], ["16", "256", "4,096", "65,536"])
    axes.minorticks_off()
    axes.set_xlabel("N, how many numbers are added")
    axes.set_ylabel("error divided by u S")
    axes.spines[["top", "right"]].set_visible(False)
    present(
        figure, "Errors against length: the worst case is far above; the bound with the root of N is above random numbers, not equal ones."
    )


def draw_kills(outcomes):
    """What a resumed run finds. outcomes: {way of writing: [what was found if the process is killed at moment 0, 1, ...]}."""
    colours = {"step 3": BLUE, "step 6": GREEN, "mixed": RED, "damaged": ORANGE}
    figure = Figure(figsize=(10.4, 0.9 + 0.7 * len(outcomes)))
    most = max(map(len, outcomes.values()))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1.5, most + 0.1), ylim=(-0.2, len(outcomes) + 0.5))
    axes.axis("off")
    for line, (way, found) in enumerate(outcomes.items()):
        bottom = len(outcomes) - 1 - line
        axes.text(-0.1, bottom + 0.42, way, ha="right", va="center", fontsize=10)
        for moment, what in enumerate(found):
            axes.add_patch(Rectangle((moment + 0.02, bottom + 0.08), 0.96, 0.7, facecolor=colours[what]))
            axes.text(moment + 0.5, bottom + 0.43, what, ha="center", va="center", color="white", fontsize=8.5)
    axes.text(0.02, len(outcomes) + 0.15, "killed at the first moment, the second, ..., not at all", color=GREY, fontsize=9.5)
    present(figure, "A row of boxes for each way of writing: what is found after a kill at each moment.")


def draw_zoom(levels):
    """Zooms, one below the other. levels: {title: {name: whether it differs}}, of which each leads to the next at the first that differs."""
    figure = Figure(figsize=(10.4, 4.0))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.2, 16.2), ylim=(-0.95, len(levels) * 1.75 - 0.2))
    axes.axis("off")
    for line, (title, boxes) in enumerate(levels.items()):
        bottom, width = (len(levels) - 1 - line) * 1.75, 16 / len(boxes)
        first = list(boxes.values()).index(True)
        axes.text(0, bottom + 0.93, title, fontsize=10.5)
        for place, (name, differs) in enumerate(boxes.items()):
            colour = RED if place == first else PINK if differs else PALE
            axes.add_patch(Rectangle((place * width + 0.04, bottom), width - 0.08, 0.75, facecolor=colour))
            ink = "white" if place == first else "#333"
            axes.text((place + 0.5) * width, bottom + 0.37, name, ha="center", va="center", color=ink, fontsize=8.5)
        if line + 1 < len(levels):
            x = (first + 0.5) * width
            axes.add_patch(FancyArrowPatch((x, bottom - 0.03), (x, bottom - 0.6), arrowstyle="-|>", mutation_scale=13, color=RED))
    for x, colour, text in ((0, PALE, "equal"), (2.2, RED, "the first that differs"), (6.4, PINK, "differs, too")):
        axes.add_patch(Rectangle((x, -0.7), 0.5, 0.3, facecolor=colour))
        axes.text(x + 0.65, -0.55, text, va="center", color=GREY, fontsize=9)
    present(figure, "Three rows of boxes: steps, arrays of the step, elements of the array; in each the first that differs is red.")
