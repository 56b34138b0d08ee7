"""The figures of chapter 08. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import linecache

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tutorials.model_figures import BLUE, GREY, PALE, RED, present

ORANGE, LIGHT_BLUE = "#e08a1e", "#a9c9e2"
THREAD_COLOURS = ("#2a78b5", "#7fb0d6", "#3f9b57", "#9ccba8")


def draw_gradient(p, gradients, target):
    """A row's probabilities, and beside each the gradient of its logit. p and gradients: (V,)."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for v, (probability, gradient) in enumerate(zip(p, gradients)):
        axes.bar(v - 0.2, probability, 0.36, color=LIGHT_BLUE, label="p" if v == 0 else None)
        axes.bar(v + 0.2, gradient, 0.36, color=RED if v == target else BLUE)
        for x, height in ((v - 0.2, probability), (v + 0.2, gradient)):
            axes.text(x, height + (0.02 if height > 0 else -0.02), f"{height:+g}" if x > v else f"{height:g}", ha="center",
                      va="bottom" if height > 0 else "top", fontsize=9)  # fmt: skip
    axes.bar(0, 0, color=BLUE, label="gradient: a step against it lowers the logit")
    axes.bar(0, 0, color=RED, label="gradient of the target: a step against it raises the logit")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(p)), [f"token {v}" + ("\nthe target" if v == target else "") for v in range(len(p))])
    axes.set_ylim(-0.95, 0.75)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    present(
        figure, "Two bars for each token, its probability and its gradient; the target's gradient is negative, all others are positive."
    )


def draw_gigabytes(arrays):
    """Bars for the sizes of arrays. arrays: {label: bytes}; labels that begin with * are arrays that need not exist."""
    figure = Figure(figsize=(8.6, 0.6 + 0.42 * len(arrays)), layout="constrained")
    axes = figure.subplots()
    for place, (label, size) in enumerate(arrays.items()):
        spared = label.startswith("*")
        axes.barh(
            place, size / 1e9, 0.7, color=PALE if spared else BLUE, edgecolor=GREY if spared else BLUE, linestyle="--" if spared else "-"
        )
        axes.text(size / 1e9 + 0.15, place, f"{size / 1e9:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(arrays)), [label.lstrip("*") for label in arrays])
    axes.invert_yaxis()
    axes.set_xlabel("gigabytes (dashed: need not exist)")
    axes.set_xlim(0, 1.1 * max(arrays.values()) / 1e9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    present(figure, "Bars for arrays: the logits are by far the largest, and two more of their size need not exist.")


def draw_sheet(rows=4, V=13, Vp=16, threads=4, block=1, target=6):
    """The sheet of logits: a block has a row, its threads take turns along it, and the columns from V on are padding."""
    figure = Figure(figsize=(9.4, 3.5))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-2.6, Vp + 1.2), ylim=(-2.3, rows + 1.5), aspect="equal")
    axes.axis("off")
    for row in range(rows):
        for v in range(Vp):
            padding = v >= V
            colour = "white" if padding else THREAD_COLOURS[v % threads] if row == block else PALE
            edge = GREY if padding else "white"
            axes.add_patch(Rectangle((v + 0.04, rows - row - 0.96), 0.92, 0.92, facecolor=colour, edgecolor=edge, linewidth=0.8))
            if row == block and not padding:
                ink = "#333" if v % threads % 2 else "white"
                axes.text(v + 0.5, rows - row - 0.5, v % threads, ha="center", va="center", color=ink, fontsize=10)
    axes.add_patch(Rectangle((target + 0.04, rows - block - 0.96), 0.92, 0.92, fill=False, edgecolor=RED, linewidth=3))
    axes.annotate("the target: thread 0 needs it, too", (target + 0.5, rows - block - 1), (target + 0.5, -1.0), ha="center", va="center", color=RED,
                  arrowprops={"arrowstyle": "-", "color": RED, "linewidth": 1})  # fmt: skip
    axes.text(-0.3, rows - block - 0.5, "a block", ha="right", va="center", color=BLUE, fontsize=11)
    axes.text(-1.9, rows / 2, "N rows", ha="center", va="center", color=GREY, rotation=90)
    axes.text(V / 2, rows + 0.35, "V columns; the number is the thread that has the column", ha="center", color=GREY, fontsize=10)
    axes.text((V + Vp) / 2, rows + 0.35, "padding", ha="center", color=GREY, fontsize=10)
    axes.text(V / 2, -1.9, "a row's sum needs all of its columns; no row needs another row", ha="center", va="center", fontsize=11)
    present(figure, "A sheet of rows; one is a block's, its cells numbered 0 1 2 3 0 1 2 3 by thread; the last columns are padding.")


def passes(seen, memory, copies=()):
    """How often a kernel goes over a row, on average: {"read": ..., "written": ..., "copy read": ..., "copy written": ...}.

    seen: a Record of watch(), of a kernel with the array `memory` in global memory; copies: its names for copies in shared memory. A copy
    from global to shared memory counts as a read and as a write of the copy, once: the simulator watches it where it begins, and again where
    the kernel waits for it.
    """
    _, itemsize, shape = seen.sizes[memory]
    size = itemsize
    for length in shape:
        size *= length
    moved = dict.fromkeys(("read", "written", "copy read", "copy written"), 0)
    for touch in seen.touches:
        if (touch.memory == memory or touch.memory in copies) and "wait_for_copies" not in linecache.getline(touch.file, touch.line):
            way = "read" if touch.is_read else "written"
            moved[way if touch.memory == memory else f"copy {way}"] += touch.nbytes
    return {way: nbytes / size for way, nbytes in moved.items()}


def draw_passes(rungs):
    """How often each kernel goes over a row. rungs: {name: the dict of `passes`}."""
    figure = Figure(figsize=(9.4, 0.9 + 0.55 * len(rungs)), layout="constrained")
    axes = figure.subplots()
    kinds = (
        ("read", BLUE, "white", "read"),
        ("written", ORANGE, "white", "write"),
        ("copy written", LIGHT_BLUE, "#333", "copy: write"),
        ("copy read", LIGHT_BLUE, "#333", "copy: read"),
    )
    for place, counts in enumerate(rungs.values()):
        left = 0
        for kind, colour, ink, label in kinds:
            for _ in range(round(counts[kind])):
                axes.barh(place, 1, left=left, height=0.66, color=colour, edgecolor="white", linewidth=2)
                axes.text(left + 0.5, place, label, ha="center", va="center", color=ink, fontsize=9)
                left += 1
    axes.set_yticks(range(len(rungs)), list(rungs))
    axes.invert_yaxis()
    axes.set_xlabel("times that the row is touched; dark: in global memory, pale: a copy in shared memory")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    present(figure, "A bar for each kernel, made of its passes: three reads and a write, two and a write, one and a write.")


def draw_timeline():
    """What one multiprocessor does while two kernels work on three rows. A sketch: the lengths are not measured."""
    figure = Figure(figsize=(9.4, 3.3))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-4.4, 17.4), ylim=(-0.9, 6.4))
    axes.axis("off")
    read, compute, write = 2.0, 1.5, 2.0
    colours = {"read": BLUE, "compute": GREY, "write": ORANGE}

    def piece(start, length, line, what, row):
        axes.add_patch(Rectangle((start, line), length, 0.8, facecolor=colours[what], edgecolor="white", linewidth=1.5))
        axes.text(start + length / 2, line + 0.4, f"row {row}", ha="center", va="center", color="white", fontsize=9)

    def lines(top, title, names):
        axes.text(-4.2, top + 1.05, title, fontsize=11)
        for place, name in enumerate(names):
            axes.text(-0.2, top - place * 0.9 + 0.4, name, ha="right", va="center", color=GREY, fontsize=9)

    lines(4.6, "row_in_shared_memory: one after the other", ("memory", "arithmetic"))
    now = 0.0
    for row in range(3):
        piece(now, read, 4.6, "read", row)
        piece(now + read, compute, 3.7, "compute", row)
        piece(now + read + compute, write, 4.6, "write", row)
        now += read + compute + write
    lines(1.2, "fast: the next rows are on their way while a row is computed", ("memory", "arithmetic"))
    for start, length, line, what, row in (
        (0, read, 1.2, "read", 0), (2.0, read, 1.2, "read", 1), (2.0, compute, 0.3, "compute", 0), (4.0, write, 1.2, "write", 0),
        (6.0, read, 1.2, "read", 2), (6.0, compute, 0.3, "compute", 1), (8.0, write, 1.2, "write", 1), (10.0, compute, 0.3, "compute", 2),
        (11.5, write, 1.2, "write", 2),
    ):  # fmt: skip
        piece(start, length, line, what, row)
    for x, (what, colour) in zip((0, 2.2, 5.4), colours.items()):
        axes.add_patch(Rectangle((x, -0.6), 0.5, 0.4, facecolor=colour))
        axes.text(x + 0.7, -0.4, what, va="center", fontsize=9)
    axes.annotate("", (17.0, -0.4), (12.6, -0.4), arrowprops={"arrowstyle": "->", "color": GREY})
    axes.text(12.4, -0.4, "time", ha="right", va="center", color=GREY, fontsize=9)
    present(figure, "Two timelines of reads, arithmetic and writes: one after the other above; below, reads of the next row fill the gaps.")
