"""The figures of chapter 10. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tutorials.model_figures import BLUE, GREY, PALE, RED, present

ORANGE, GREEN = "#e08a1e", "#3f9b57"
SMOOTHED = 20  # steps of the running mean in a curve of losses


def draw_samples(text, B, T):
    """A shard cut into samples, each of which is a batch: the inputs in boxes, the targets below them, one token later."""
    length = B * T
    samples = (len(text) - 1) // length
    figure = Figure(figsize=(10.4, 2.7))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-2.6, len(text) + 0.3), ylim=(-2.2, 2.7))
    axes.axis("off")
    for place, letter in enumerate(text):
        sample, row = place // length, place % length // T
        colour = PALE if sample >= samples else (BLUE, ORANGE)[row % 2]
        axes.add_patch(Rectangle((place + 0.04, 0.5), 0.92, 1, facecolor=colour))
        ink = GREY if sample >= samples else "white"
        axes.text(place + 0.5, 1, letter, ha="center", va="center", color=ink, family="monospace", fontsize=12)
    for sample in range(samples):
        left = sample * length
        axes.plot((left + 0.1, left + length - 0.1), (1.85, 1.85), color="#444", linewidth=1.2)
        axes.text(left + length / 2, 2.1, f"sample {sample}", ha="center", fontsize=10.5)
        axes.plot((left + 1.1, left + length + 0.9), (-0.05, -0.05), color=RED, linewidth=1.2)
        axes.text(left + 1 + length / 2, -0.7, f"targets of sample {sample}", ha="center", color=RED, fontsize=9.5)
    axes.text(samples * length + 0.1, 2.1, "not used as input", fontsize=9.5, color=GREY)
    axes.text(-0.2, 1, "shard", ha="right", va="center", fontsize=10.5)
    for x, colour, label in ((0, BLUE, "first row of the batch"), (6.5, ORANGE, "second row")):
        axes.add_patch(Rectangle((x, -1.95), 0.6, 0.5, facecolor=colour))
        axes.text(x + 0.8, -1.7, label, va="center", fontsize=9.5)
    present(figure, "A shard cut into samples of B times T tokens; the targets of each are the same tokens moved by one.")


def draw_accuracy(row_counts, errors):
    """Distance of a batch's gradient from the mean of many, against the number of its rows; both axes logarithmic."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(row_counts, errors, "o", color=BLUE, markersize=7)
    line = errors[0] / np.sqrt(np.array(row_counts) / row_counts[0])
    axes.loglog(row_counts, line, "--", color=GREY, linewidth=1.2)
    axes.text(row_counts[1] / 1.15, line[1] / 1.25, "falls as the root of\nthe number of rows", color=GREY, ha="right", fontsize=9.5)
    for rows, error in zip(row_counts, errors):
        axes.annotate(f"{error:.0%}", (rows, error), xytext=(7, 6), textcoords="offset points", fontsize=9.5, color=BLUE)
    axes.set_xticks(row_counts, [str(rows) for rows in row_counts])
    axes.set_yticks([0.1, 0.2, 0.5, 1], ["10 %", "20 %", "50 %", "100 %"])
    axes.minorticks_off()
    axes.set_xlim(row_counts[0] / 1.2, row_counts[-1] * 2.4)
    axes.set_ylim(min(errors) / 2, max(errors) * 1.5)
    axes.set_xlabel("rows in the batch")
    axes.set_ylabel("distance from the mean of\nmany, as a share of its length")
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "Points that fall along a line: four times as many rows halve the error.")


def smoothed(losses):
    return np.convolve(losses, np.full(SMOOTHED, 1 / SMOOTHED), "valid")


def draw_places(runs):
    """Losses of runs, smoothed, in one panel. runs: {label: (steps,)}."""
    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (label, losses), colour in zip(runs.items(), (BLUE, ORANGE, RED, GREY)):
        mean = smoothed(losses)
        axes.plot(np.arange(SMOOTHED, len(losses) + 1), mean, color=colour, linewidth=2)
        axes.text(len(losses) * 1.01, mean[-1], label, color=colour, va="center", fontsize=9.5)
    axes.set_xlim(SMOOTHED, len(losses) * 1.3)
    axes.set_xticks(range(SMOOTHED, len(losses) + 1, 20))
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats a byte,\nmean of the last {SMOOTHED} steps")
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "The loss falls fastest where gradients are zeroed once a step.")


def draw_schedules(rates, warmup_steps):
    """Learning rates against the step. rates: {name: (steps,)}, as fractions of the peak."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0, warmup_steps - 1, color=PALE)
    axes.text(warmup_steps, 0.04, "grey: warm-up", color=GREY, fontsize=9.5)
    for (name, values), colour in zip(rates.items(), (BLUE, ORANGE, RED, GREEN)):
        style = "--" if name == "constant" else "-"
        axes.plot(range(len(values)), values, style, color=colour, linewidth=2, label=name)
    axes.set_ylim(0, 1.08)
    axes.set_xlim(0, len(values) - 1)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate, as a share of its peak")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9.5, loc="upper left", bbox_to_anchor=(1, 1))
    present(figure, "Three curves rise in a line and then fall in different ways to a tenth; one is flat.")


def draw_run(losses, validation, rates, knows_pairs):
    """A run: its losses, those on validation text {step: loss}, and one to compare with; below them the learning rates."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot(np.arange(1, len(losses) + 1), losses, color="#cadeed", linewidth=0.8)
    above.plot(np.arange(SMOOTHED, len(losses) + 1), smoothed(losses), color=BLUE, linewidth=2, label=f"training, mean of {SMOOTHED} steps")
    above.plot(*zip(*validation.items()), "o", color=RED, markersize=6, label="validation")
    above.axhline(knows_pairs, color=GREY, linestyle="--", linewidth=1.2, label="knows pairs of bytes")
    above.set_ylabel("loss, nats a byte")
    above.legend(frameon=False, fontsize=9.5)
    below.plot(np.arange(1, len(rates) + 1), rates, color=GREEN, linewidth=2)
    below.set_ylabel("learning rate")
    below.set_ylim(0, None)
    below.set_xlabel("step")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    present(figure, "The training loss falls, and the points of validation lie on it; below, the learning rate rises and falls.")


def draw_memory(groups, totals, memory_sizes):
    """Stacked bars of memory in GiB for each B. groups: {B: {group: bytes}}; totals: {label: [bytes]}; memory_sizes: {name: GiB}."""
    colours = {"weights, gradients, AdamW": GREY, "activations": BLUE, "logits and scratch": ORANGE}
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(groups))
    bottom = np.zeros(len(groups))
    for name, colour in colours.items():
        heights = np.array([parts[name] for parts in groups.values()]) / 2**30
        axes.bar(places, heights, 0.55, bottom=bottom, color=colour, label=name)
        bottom += heights
    for (label, sizes), marker in zip(totals.items(), "v^"):
        axes.plot(places, np.array(sizes) / 2**30, marker, color=RED, markersize=7, markeredgecolor="white", label=label)
    for name, size in memory_sizes.items():
        axes.axhline(size, color="#444", linestyle=":", linewidth=1)
        axes.text(-0.55, size, name, va="bottom", fontsize=9, color="#444")
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xticks(places, [f"B = {B}" for B in groups])
    axes.set_ylabel("GiB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9.5, loc="upper left", bbox_to_anchor=(1, 1))
    present(figure, "A constant part at the bottom, and two parts that double with B; activations are the largest.")


def draw_lifetimes(arrays, moments):
    """When each array is needed: a bar from its first to its last moment. arrays: {name: (first, last, group)}."""
    colours = dict(zip(dict.fromkeys(group for *_, group in arrays.values()), (BLUE, ORANGE, GREEN, RED)))
    figure = Figure(figsize=(9.4, 0.9 + 0.3 * len(arrays)), layout="constrained")
    axes = figure.subplots()
    for line, (first, last, group) in enumerate(arrays.values()):
        axes.add_patch(Rectangle((first - 0.42, line - 0.38), last - first + 0.84, 0.76, facecolor=colours[group]))
    axes.set_ylim(len(arrays) - 0.4, -0.6)
    axes.set_xlim(-0.6, len(moments) - 0.4)
    axes.set_yticks(range(len(arrays)), list(arrays), fontsize=9.5)
    axes.set_xticks(range(len(moments)), moments, fontsize=9.5)
    axes.tick_params(length=0)
    axes.grid(axis="x", color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour) for colour in colours.values()]
    figure.legend(handles, list(colours), frameon=False, fontsize=9.5, loc="outside right upper")
    present(figure, "Bars: what a block keeps is needed from its forward to its backward; the others only for a moment.")


def draw_timelines(timelines):
    """What the host and the GPU do, one pair of lines for each way of working. timelines: {title: {"host": [(start, end, what)], "GPU": ...}}.

    what: "launch", "wait" or "report" for the host; the number of the step for the GPU.
    """
    colours = {"launch": GREY, "wait": "white", "report": GREEN}
    figure = Figure(figsize=(10.4, 1 + 1.35 * len(timelines)))
    right = max(end for spans in timelines.values() for line in spans.values() for _, end, _ in line)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.075 * right, 1.03 * right), ylim=(-1.95, len(timelines) * 2.9 - 0.1))
    axes.axis("off")
    for time in range(0, right + 1, 5):
        axes.plot((time, time), (-0.1, len(timelines) * 2.9 - 0.95), color="#e3e7ea", linewidth=0.8, zorder=0)
        axes.text(time, -0.3, str(time), ha="center", va="top", fontsize=9, color=GREY)
    for number, (title, spans) in enumerate(timelines.items()):
        bottom = (len(timelines) - 1 - number) * 2.9
        axes.text(0, bottom + 2.2, title, fontsize=10.5)
        for line, y in (("host", bottom + 1.05), ("GPU", bottom)):
            axes.text(-0.012 * right, y + 0.45, line, ha="right", va="center", fontsize=9.5)
            axes.plot((0, right), (y, y), color="#d5d9de", linewidth=0.8)
            for start, end, what in spans[line]:
                face = (BLUE, ORANGE)[what % 2] if line == "GPU" else colours[what]
                style = {"hatch": "////", "edgecolor": "#b0b5bc"} if what == "wait" else {"edgecolor": "white"}
                axes.add_patch(Rectangle((start, y + 0.04), end - start, 0.82, facecolor=face, linewidth=0.8, **style))
    legend = ((GREY, "launches"), ("wait", "waits for the GPU"), (GREEN, "reports the loss"), (BLUE, "steps 1, 3"), (ORANGE, "steps 2, 4"))
    for place, (colour, label) in enumerate(legend):
        x = place * right / 5
        style = {"facecolor": "white", "hatch": "////", "edgecolor": "#b0b5bc"} if colour == "wait" else {"facecolor": colour}
        axes.add_patch(Rectangle((x, -1.75), 0.02 * right, 0.6, **style))
        axes.text(x + 0.028 * right, -1.45, label, va="center", fontsize=9.5)
    present(figure, "Lines of boxes: where the host waits for each loss, the GPU has gaps; reading the loss a step later closes them.")
