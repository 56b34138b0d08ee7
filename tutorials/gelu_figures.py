"""The figures of chapter 05. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure

from tutorials.model_figures import BLUE, GREY, RED, present

ORANGE, GREEN = "#e08a1e", "#3f9b57"


def draw_bends(x, bends, slopes):
    """Curves and their slopes, side by side. x (n,); bends, slopes: {label: (n,)}."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for panel, curves, title in zip(figure.subplots(1, 2), (bends, slopes), ("out", "slope: movement of out, per ε")):
        panel.axhline(0, color=GREY, linewidth=0.8)
        panel.axvline(0, color=GREY, linewidth=0.8)
        for (label, curve), colour, width in zip(curves.items(), (ORANGE, BLUE), (1.6, 2.4)):
            panel.plot(x, curve, color=colour, linewidth=width, label=label)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("x")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=10, loc="upper left")
    present(figure, "Left, GELU beside ReLU: it dips below 0 on the left of 0. Right, their slopes: GELU's goes from 0 to 1 and beyond.")


def draw_right_bits(x, bits):
    """How many leading bits of out are right, for several ways to compute it. x (n,); bits: {label: (n,)}."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panel = figure.subplots()
    for (label, right), colour in zip(bits.items(), (ORANGE, BLUE, RED)):
        panel.plot(x, right, color=colour, linewidth=2, label=label)
    for precision, name in (24, "all bits of float32"), (8, "all bits of bf16"):
        panel.axhline(precision, color=GREY, linestyle=":", linewidth=1)
        panel.text(x[-1], precision + 0.4, name, ha="right", color=GREY, fontsize=9)
    panel.set(xlabel="x", ylabel="right bits of out", ylim=(0, 27), xlim=(x[0], x[-1]))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=10, loc="lower right")
    present(
        figure,
        "With tanh the number of right bits falls on the left of 0, with the coarse tanh sooner; with the logistic form it does not.",
    )


def draw_limits(limits, measured):
    """What a kernel must take at least, by each limit, beside what it took, in ms. limits: {kernel: {limit: ms}}; measured: {kernel: ms}."""
    figure = Figure(figsize=(9, 0.8 + 0.75 * len(limits)), layout="constrained")
    panel = figure.subplots()
    names = list(next(iter(limits.values())))
    for place, (kernel, times) in enumerate(limits.items()):
        for number, (name, colour) in enumerate(zip(names, (BLUE, ORANGE, GREEN))):
            panel.barh(place + (number - 1) * 0.25, times[name], height=0.22, color=colour, label=name if not place else None)
        panel.plot(
            [measured[kernel]] * 2, [place - 0.42, place + 0.42], color="#222", linewidth=2.5, label="measured" if not place else None
        )
        panel.text(measured[kernel] + 0.0015, place, f"{measured[kernel]:.3f} ms", va="center", fontsize=10)
    panel.set_yticks(range(len(limits)), list(limits))
    panel.set_xlim(0, 1.13 * max(measured.values()))
    panel.invert_yaxis()
    panel.set_xlabel("ms")
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=4)
    present(
        figure,
        "Three bars for each kernel, the times that memory, instructions and special functions take, and a mark at the measured time.",
    )


def right_bits(values, exact):
    """How many leading bits of `values` agree with `exact`, between 0 and 24."""
    error = np.abs(np.asarray(values, np.float64) - exact) / np.abs(exact)
    return np.clip(-np.log2(np.clip(error, 2.0**-24, 1)), 0, 24) + 0.0  # + 0.0: no -0
