"""The figures of chapter 13. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure

from tutorials.model_figures import BLUE, GREY, RED, present

ORANGE, GREEN, DARK = "#e08a1e", "#3f9b57", "#5b6670"
COLOURS = {"matrix products": RED, "attention": ORANGE, "all others": BLUE}
# Launches that the roofline names: where the label stands, in points from the dot.
LABELLED = {
    "adamw_update": (9, -11),
    "residual_layernorm_forward": (-10, 8),
    "layernorm_backward": (10, -12),
    "encoder_forward": (9, -20),
    "encoder_backward": (9, -4),
    "classifier_forward_backward": (12, -5),
    "attention_forward": (20, -2),
    "attention_backward": (9, -13),
    "matmul_gelu_forward fc": (84, -8),
    "matmul_backward classifier": (9, -8),
}
LEADERS = ("matmul_gelu_forward fc",)  # joined to their dots by a line


def group_of(name):
    """What a launch belongs to: "matrix products", "attention" or "all others"."""
    return {"matmul": "matrix products", "attention": "attention"}.get(name.partition("_")[0], "all others")


def draw_roof(launches, ceilings):
    """The roofline of a GPU, and launches under it: rows with name, bytes, flop, ms. ceilings: copy (byte/s), matmul (FLOP/s). Logs."""
    figure = Figure(figsize=(10.5, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    ridge = ceilings["matmul"] / ceilings["copy"]
    roof = np.array([0.03, ridge, 30_000])
    axes.plot(roof, np.minimum(roof * ceilings["copy"], ceilings["matmul"]), color=DARK, linewidth=2.5)
    axes.plot([ridge, ridge], [1e10, ceilings["matmul"]], color=GREY, linewidth=1, linestyle=":")
    axes.text(ridge * 1.06, 1.4e10, f"ridge: {ridge:.0f} FLOP per byte", color=DARK, fontsize=10, va="bottom")
    axes.text(3.2, 2.1e13, f"memory: {ceilings['copy'] / 1e12:.2f} TB/s", color=DARK, rotation=37, ha="center", va="center")
    axes.text(ridge * 1.05, ceilings["matmul"] * 1.15, f"tensor cores: {ceilings['matmul'] / 1e12:.0f} TFLOP/s", color=DARK)
    for group, colour in COLOURS.items():
        rows = [row for row in launches if group_of(row["name"]) == group]
        intensity = [row["flop"] / row["bytes"] for row in rows]
        axes.plot(intensity, [1000 * row["flop"] / row["ms"] for row in rows], "o", color=colour, markersize=6.5, label=group)
    for row in launches:
        if row["name"] in LABELLED:
            shift = LABELLED[row["name"]]
            place = row["flop"] / row["bytes"], 1000 * row["flop"] / row["ms"]
            text = f"{row['name']}, {row['share']:.0%}"
            style = {"fontsize": 9, "va": "center", "ha": "left" if shift[0] > 0 else "right", "color": COLOURS[group_of(row["name"])]}
            if row["name"] in LEADERS:
                style["arrowprops"] = {"arrowstyle": "-", "color": style["color"], "linewidth": 0.7}
            axes.annotate(text, place, xytext=shift, textcoords="offset points", **style)
    axes.set(xlim=(0.03, 30_000), ylim=(1e10, 3e15), xlabel="FLOP for each byte that must be moved (logarithmic)")
    axes.set_ylabel("FLOP per second (logarithmic)")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "A roof of a slope and a flat top; most launches are dots right below the slope, matrix products below the top.")


def draw_step(groups, step_ms):
    """The step as a bar of its groups of launches, and below it their floors. groups: {name: (ms, floor ms)}; the rest of the step, hatched, are gaps."""
    figure = Figure(figsize=(10.5, 2.5), layout="constrained")
    axes = figure.add_subplot(xlabel="ms")
    colours = {**COLOURS, "LayerNorm": GREEN, "classifier": BLUE, "others": DARK}
    for y, which, alpha in ((1, 0, 1.0), (0, 1, 0.55)):
        left = 0.0
        for name, times in groups.items():
            axes.barh(y, times[which], 0.6, left=left, color=colours[name], alpha=alpha, edgecolor="white")
            if times[which] > 45:
                axes.text(
                    left + times[which] / 2,
                    y,
                    f"{name}\n{times[which]:.0f} ms" if times[which] > 60 else f"{times[which]:.0f}",
                    ha="center",
                    va="center",
                    color="black" if which else "white",
                    fontsize=9,
                )
            left += times[which]
        axes.text(left, y + 0.42, f"{left:.0f}", ha="right", va="center", color=DARK, fontsize=9)
        if y:
            axes.barh(y, step_ms - left, 0.6, left=left, color="white", edgecolor=GREY, hatch="////", linewidth=0.7)
            gaps = step_ms - left
    axes.axvline(step_ms, color=DARK, linewidth=1, linestyle=":")
    axes.text(step_ms + 4, 1.42, f"step {step_ms:.0f}", color=DARK, fontsize=9, va="center")
    small = [(name, colours[name]) for name, times in groups.items() if times[0] <= 60]
    for index, (name, colour) in enumerate(small):
        axes.text(
            890,
            1.1 - 0.35 * index,
            f"■ {name}, {groups[name][0]:.0f} ms, floor {groups[name][1]:.0f}",
            color=colour,
            fontsize=9,
            va="center",
        )
    axes.text(890, 1.1 - 0.35 * len(small), f"▨ gaps, {gaps:.0f} ms", color=DARK, fontsize=9, va="center")
    axes.set_yticks([0, 1], ["floors", "measured"])
    axes.set(xlim=(0, 1120), ylim=(-0.5, 1.6))
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "Two bars: the step's time by kind of launch, and the least times of the same launches.")


def draw_ceilings(rates):
    """One bar for each rate in TFLOP/s, the highest first. rates: {what: TFLOP/s}."""
    figure = Figure(figsize=(9.5, 0.9 + 0.42 * len(rates)), layout="constrained")
    axes = figure.add_subplot(xlabel="TFLOP per second")
    highest = max(rates.values())
    for y, rate in enumerate(rates.values()):
        axes.barh(y, rate, 0.62, color=RED if y == len(rates) - 1 else "#d9a1a8")
        axes.text(rate + 8, y, f"{rate:.0f}, {rate / highest:.0%}", va="center", fontsize=10)
    axes.set_yticks(range(len(rates)), rates)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * highest)
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "Bars that become shorter: from the data sheet's rate to that of a training step.")


def draw_in_flight(copy_rate, latency, multiprocessors):
    """Bytes per second by Little's law against the warps in flight on each multiprocessor, for several bytes on their way for each thread.

    latency  seconds
    """
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axes = figure.add_subplot(xlabel="warps in flight on each multiprocessor", ylabel="TB per second")
    warps = np.linspace(0, 64, 500)
    for nbytes, colour in ((4, BLUE), (16, ORANGE), (64, GREEN)):
        rate = warps * 32 * nbytes * multiprocessors / latency
        axes.plot(
            warps, np.minimum(rate, copy_rate) / 1e12, color=colour, linewidth=2.5, label=f"{nbytes} bytes on their way for each thread"
        )
    axes.axhline(copy_rate / 1e12, color=GREY, linewidth=1, linestyle=":")
    axes.text(1, copy_rate / 1e12 + 0.08, "what the memory delivers", color=DARK, fontsize=9)
    axes.set(xlim=(0, 64), ylim=(0, 5), xticks=range(0, 65, 8))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "Three rising lines that end at the memory's rate: the more bytes a thread waits for, the fewer warps it takes.")


def draw_occupancy(blocks_at_once, kernels):
    """Warps in flight against registers of a thread, for blocks of 256 threads, and real kernels as dots.

    blocks_at_once  function of (threads, registers, shared bytes)
    kernels         {name: (threads, registers, shared bytes)}
    """
    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    axes = figure.add_subplot(xlabel="registers of a thread", ylabel="warps in flight on a multiprocessor")
    registers = np.arange(1, 256)
    axes.step(registers, [8 * blocks_at_once(256, int(count), 0) for count in registers], where="mid", color=GREY, linewidth=2,
              label="blocks of 256 threads, without shared memory")  # fmt: skip
    for (name, (threads, count, shared)), colour in zip(kernels.items(), (BLUE, GREEN, ORANGE, RED, "#8e6bb0")):
        warps = -(-threads // 32) * blocks_at_once(threads, count, shared)
        axes.plot(count, warps, "o", color=colour, markersize=8, zorder=3)
        lower = name.startswith(("product", "classifier"))  # where two dots nearly coincide
        axes.annotate(name, (count, warps), xytext=(14, -9) if lower else (8, 8), textcoords="offset points", color=colour, fontsize=10)
    axes.set(xlim=(0, 256), ylim=(0, 70), xticks=range(0, 257, 32), yticks=range(0, 65, 8))
    axes.legend(loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "A staircase that falls: the more registers a thread has, the fewer warps fit; real kernels on it or below it.")


def draw_drift(times):
    """Two versions of a kernel, timed one after the other and in turns, while the clock falls. times: {title: {version: (moments, ms)}}."""
    figure = Figure(figsize=(10, 3.1), layout="constrained")
    panels = figure.subplots(1, len(times), sharey=True)
    for axes, (title, versions) in zip(panels, times.items()):
        for (version, (moments, ms)), colour in zip(versions.items(), (BLUE, RED)):
            axes.plot(moments, ms, "o", color=colour, markersize=3.5, label=version)
            axes.plot([moments[0], moments[-1]], [np.median(ms)] * 2, color=colour, linewidth=1.5, linestyle="--")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("launches, in the order in which they were timed")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms")
    panels[0].legend(loc="upper left", frameon=False)
    present(figure, "Left: the second version's points lie higher, as the clock has fallen. Right, in turns: they lie lower.")
