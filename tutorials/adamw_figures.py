"""The figures of chapter 09. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from tutorials.model_figures import BLUE, GREY, RED, present

ORANGE, GREEN = "#e08a1e", "#3f9b57"
COLOURS = (ORANGE, BLUE, RED, GREEN)


def draw_valley(curvature, paths):
    """Paths through a valley, seen from above. curvature (2,): the loss is ½ Σ curvature x²; paths: {label: (steps, 2)}."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panel = figure.subplots()
    x, y = np.meshgrid(np.linspace(-1.25, 1.25, 200), np.linspace(-0.3, 1.15, 200))
    loss = (curvature[0] * x**2 + curvature[1] * y**2) / 2
    panel.contour(x, y, loss, levels=[0.05, 0.5, 2, 6, 15, 30, 60], colors=[GREY], linewidths=0.7, alpha=0.6)
    for (label, path), colour in zip(paths.items(), COLOURS):
        panel.plot(*path.T, color=colour, marker="o", markersize=3.5, linewidth=1.3, label=label)
    panel.plot(0, 0, marker="x", color="#222", markersize=9, markeredgewidth=2)
    panel.text(0.05, -0.17, "the lowest point", fontsize=10)
    panel.set(xlabel="a, the steep number", ylabel="b, the flat one", xlim=(-1.25, 1.25), ylim=(-0.3, 1.15))
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=10, loc="outside upper center", ncols=len(paths))
    present(
        figure,
        "Lines of equal loss, and paths: one jumps from wall to wall, the other goes down along the diagonal, past the lowest point and back.",
    )


def draw_first_steps(lengths):
    """How far a parameter moves in each step, in learning rates. lengths: {label: (steps,)}."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    panel = figure.subplots()
    for (label, length), colour in zip(lengths.items(), (GREEN, BLUE, RED)):
        panel.plot(np.arange(1, len(length) + 1), length, color=colour, linewidth=2, label=label)
    panel.set_xscale("log")
    panel.set(xlabel="step t (logarithmic)", ylabel="length, in learning rates", xlim=(1, len(length)), ylim=(0, None))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=10)
    present(
        figure,
        "With the correction each step is one learning rate long; without it they are too short at first, or more than six times too long.",
    )


def draw_touched(rungs, thread, cells=64):
    """The numbers that one thread of the first block reads, before it computes. rungs: {title: the Record of watch()}."""
    figure = Figure(figsize=(8.6, 1.6 * len(rungs)), layout="constrained")
    for place, (title, seen) in enumerate(rungs.items()):
        panel = figure.add_subplot(len(rungs), 1, place + 1)
        for row, memory in enumerate(("params", "grads", "m", "v")):
            mine = set()
            for touch in seen.touches:
                if (touch.memory, touch.is_read, touch.thread_id, touch.block) == (memory, True, thread, (0, 0, 0)):
                    mine.update(range(touch.offset // 4, (touch.offset + touch.nbytes) // 4))
            for cell in range(cells):
                panel.add_patch(Rectangle((cell, -row), 0.92, 0.8, facecolor=BLUE if cell in mine else "#d9e0e6", linewidth=0))
            panel.text(-0.6, 0.4 - row, memory, ha="right", va="center", fontsize=10)
        panel.set(xlim=(-5, cells), ylim=(-3.2, 0.9))
        panel.set_xticks(range(0, cells + 1, 8))
        panel.set_yticks([])
        panel.set_title(title, fontsize=11, loc="left")
        panel.spines[["top", "right", "left", "bottom"]].set_visible(False)
    panel.set_xlabel("number in the array")
    present(figure, f"Four arrays: thread {thread} has one number of each, or eight neighbouring ones of each.")


def draw_moved(formats):
    """The bytes that one parameter's step moves. formats: {title: [(array, bytes read, bytes written), ...]}."""
    figure = Figure(figsize=(9, 0.7 + 0.6 * len(formats)), layout="constrained")
    panel = figure.subplots()
    for place, arrays in enumerate(formats.values()):
        left = 0
        for array, read, written in arrays:
            for nbytes, colour in (read, BLUE), (written, ORANGE):
                if nbytes:
                    panel.barh(place, nbytes, left=left, height=0.66, color=colour, edgecolor="white", linewidth=2)
                    panel.text(
                        left + nbytes / 2,
                        place,
                        f"{array}\n{nbytes}",
                        ha="center",
                        va="center",
                        color="white",
                        fontsize=9 if nbytes > 2 else 7.5,
                    )
                    left += nbytes
        panel.text(left + 0.3, place, f"{left} bytes", va="center", fontsize=11)
    panel.set_yticks(range(len(formats)), list(formats))
    panel.invert_yaxis()
    panel.set(xlabel="bytes that move for one parameter: blue is read, orange is written", xlim=(0, 32))
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    present(
        figure,
        "Stacked bars of the bytes read and written: "
        + ", ".join(f"{title}: {sum(read + written for _, read, written in arrays)}" for title, arrays in formats.items()),
    )


def draw_pace(paces, bad_step):
    """How far a parameter moves in each step, in learning rates. paces: {label: (steps,)}."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panel = figure.subplots()
    for (label, pace), colour in zip(paces.items(), (RED, BLUE)):
        panel.plot(np.arange(1, len(pace) + 1), pace, color=colour, linewidth=2, label=label)
    panel.axvline(bad_step, color=GREY, linestyle=":", linewidth=1)
    panel.text(bad_step + 4, 0.85, "the bad batch", color=GREY, fontsize=10)
    panel.set(xlabel="step", ylabel="length, in learning rates", ylim=(0, 1.1), xlim=(1, len(pace)))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=10, loc="center right")
    present(figure, "After the bad batch the steps shrink to a fortieth and take 250 steps to recover; clipped, nothing is seen.")


def draw_bits(values):
    """The bits of float32 numbers, and which of them a bfloat16 keeps. values: {label: float32}."""
    figure = Figure(figsize=(9.4, 0.8 + 0.52 * len(values)))
    panel = figure.add_axes((0, 0, 1, 1), xlim=(-6.5, 32.8), ylim=(-1.35 * len(values) - 0.2, 2.3))
    panel.axis("off")
    for level, (label, value) in enumerate(values.items()):
        bits, y = f"{int(np.float32(value).view(np.uint32)):032b}", -1.35 * (level + 1)
        for place, bit in enumerate(bits):
            colour = GREY if place == 0 else ORANGE if place < 9 else BLUE
            panel.add_patch(Rectangle((place, y), 0.94, 1, facecolor=colour, alpha=1 if place < 16 else 0.28, linewidth=0))
            panel.text(place + 0.47, y + 0.5, bit, ha="center", va="center", color="white" if place < 16 else "#333", fontsize=9)
        panel.text(-0.5, y + 0.5, label, ha="right", va="center", fontsize=11)
    for x, name, colour in (
        (0.5, "sign", GREY),
        (5, "exponent, 8", ORANGE),
        (12.5, "fraction, 7", BLUE),
        (24, "the rest of a float32's fraction, 16", GREY),
    ):
        panel.text(x, 0.3, name, ha="center", color=colour, fontsize=10)
    panel.plot([0, 15.94], [1.3, 1.3], color="#222", linewidth=1.5)
    panel.text(8, 1.5, "bfloat16", ha="center", fontsize=11)
    present(figure, "Rows of 32 bits: a sign, eight of exponent, seven of fraction, which bfloat16 keeps, and sixteen that it does not.")


def draw_lots(lower, upper, value):
    """A value between its two neighbours, and how often it goes to each."""
    share = (value - lower) / (upper - lower)
    figure = Figure(figsize=(9, 2.2))
    panel = figure.add_axes((0, 0, 1, 1), xlim=(-0.25, 1.25), ylim=(-0.9, 1.4))
    panel.axis("off")
    panel.plot([-0.12, 1.12], [0, 0], color=GREY, linewidth=1.5)
    for place, name in (0, f"{lower:.9g}"), (1, f"{upper:.9g}"):
        panel.plot([place] * 2, [-0.13, 0.13], color="#222", linewidth=2)
        panel.text(place, -0.5, name, ha="center", fontsize=11)
    panel.plot(share, 0, "o", color=BLUE, markersize=9)
    panel.text(share, -0.5, f"{value:.10g}", ha="center", color=BLUE, fontsize=11)
    for target, chance, bend, height in (0, 1 - share, 0.45, 0.72), (1, share, -0.28, 1.05):
        style = dict(arrowstyle="-|>", mutation_scale=14, color=ORANGE, linewidth=1 + 4 * chance, shrinkA=2, shrinkB=2)
        panel.add_patch(FancyArrowPatch((share, 0.12), (target, 0.2), connectionstyle=f"arc3,rad={bend}", **style))
        panel.text((share + target) / 2, height, f"{chance:.0%}", ha="center", color=ORANGE, fontsize=12)
    present(figure, f"{value:g} lies a quarter of the way from {lower:g} to {upper:g}: in a quarter of the cases it goes up, else down.")


def draw_walks(exact, nearest, several):
    """The ways of weights, step by step. exact, nearest: (steps,); several: {label: (steps, weights)}."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    panel = figure.subplots()
    for (label, walks), colour in zip(several.items(), (BLUE, ORANGE)):
        for number, walk in enumerate(walks.T):
            panel.plot(walk, color=colour, linewidth=1.3, label=None if number else label)
    panel.plot(exact, color="#222", linewidth=2.2, label="float32")
    panel.plot(nearest, color=RED, linewidth=2.2, linestyle=(0, (4, 4)), label="bf16, to nearest")
    panel.set(xlabel="step", ylabel="the weight", xlim=(0, len(exact) - 1), ylim=(0.95, 1.8))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(0.16, 1.02))
    present(figure, "In float32 the weight rises along a straight line; to nearest it stays where it is; by lot it wavers about the line.")
