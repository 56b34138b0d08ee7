"""The figures of the chapters about the model. Each function draws one and shows it below the cell of a notebook; a script skips it.

They are drawn without pyplot: no window opens, and no display is needed.
"""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Blue and red remain distinct for the colour-blind.
BLUE, RED, GREY, PALE = "#2a78b5", "#d1495b", "#5b6670", "#eef2f5"
DPI = 110
SMOOTHED = 25  # steps of the running mean in a curve of losses


def present(figure, alt):
    """Show a matplotlib Figure below the running cell; outside of a notebook nothing happens. alt: what it shows, in words."""
    try:
        from IPython import get_ipython
        from IPython.display import Image, display
    except ImportError:
        return
    if get_ipython() is None:
        return
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    display(Image(data=picture.getvalue(), alt=alt))


def draw_block():
    """A Transformer block: the residual stream, its two branches, and the one box in which rows meet."""
    figure = Figure(figsize=(11, 3.4))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.4, 22.4), ylim=(-0.9, 4.3))
    axes.axis("off")
    _arrow(axes, (0.0, 0.4), (22.0, 0.4), width=4)
    for x, name, side in (0.0, "residual", "left"), (11.0, "residual2", "center"), (22.0, "residual3", "right"):
        axes.text(x, -0.5, f"{name} (N, C)", color=GREY, ha=side)
    _branch(axes, 1.5, [("ln1", "(N, C)"), ("qkv", "(N, 3C)"), ("attention", "(N, C)"), ("attproj", "(N, C)")])
    _branch(axes, 12.5, [("ln2", "(N, C)"), ("fc", "(N, 4C)"), ("gelu", "(N, 4C)"), ("fcproj", "(N, C)")])
    axes.text(4.65, 3.85, "attention: rows meet in the red box", ha="center", color=RED)
    axes.text(15.65, 3.85, "MLP: each row by itself", ha="center", color=BLUE)
    present(figure, "A block: the residual stream runs along the bottom; two branches leave it, and each is added to it again.")


def _branch(axes, left, boxes):
    """Boxes side by side above the stream, fed from it on the left and added to it on the right. boxes: (name, shape of its output)."""
    width, step, bottom = 1.75, 2.1, 2.0
    _arrow(axes, (left, 0.4), (left, bottom - 0.1))
    for place, (name, shape) in enumerate(boxes):
        x = left + place * step  # of its middle
        colour = RED if name == "attention" else BLUE
        box = FancyBboxPatch((x - width / 2, bottom), width, 0.9, boxstyle="round,pad=0.05", facecolor=PALE, edgecolor=colour, linewidth=2)
        axes.add_patch(box)
        axes.text(x, bottom + 0.45, name, ha="center", va="center", color=colour)
        axes.text(x, bottom + 1.15, shape, ha="center", color=GREY, fontsize=9)
        if place:
            _arrow(axes, (x - step + width / 2 + 0.07, bottom + 0.45), (x - width / 2 - 0.07, bottom + 0.45))
    last, end = left + (len(boxes) - 1) * step + width / 2, left + len(boxes) * step - 0.35
    axes.plot([last + 0.05, end], [bottom + 0.45] * 2, color=GREY, linewidth=1.5)
    _arrow(axes, (end, bottom + 0.45), (end, 0.75))
    axes.text(end, 0.4, "+", ha="center", va="center", fontsize=13, bbox=dict(boxstyle="circle", facecolor="white", edgecolor=GREY))


def _arrow(axes, start, end, width=1.5):
    style = dict(arrowstyle="-|>", mutation_scale=10 + 2 * width, color=GREY, linewidth=width, shrinkA=0, shrinkB=0)
    axes.add_patch(FancyArrowPatch(start, end, **style))


def draw_losses(losses, yardsticks):
    """The loss of each step, its running mean, and horizontal lines to compare with. losses: nats; yardsticks: name -> loss."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    right = len(losses) * 1.45
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats a byte", xlim=(0, right), ylim=(1, 6))
    axes.plot(np.arange(1, len(losses) + 1), losses, color=BLUE, alpha=0.25, linewidth=1)
    means = np.convolve(losses, np.full(SMOOTHED, 1 / SMOOTHED), "valid")  # each of the last steps up to its own
    axes.plot(np.arange(SMOOTHED, len(losses) + 1), means, color=BLUE, linewidth=2)
    for name, loss in yardsticks.items():
        axes.axhline(loss, color=RED, linewidth=1, linestyle="--")
        axes.text(right * 0.99, loss + 0.05, f"{name}: {loss:.2f}", ha="right", color=RED)
    axes.text(right * 0.99, means[-1] - 0.05, f"the model, last {SMOOTHED} steps: {means[-1]:.2f}", ha="right", va="center", color=BLUE)
    axes.set_xticks(np.linspace(0, len(losses), 7, dtype=int))
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, f"The loss falls from {losses[0]:.1f} to {means[-1]:.1f}, below all lines.")


def draw_attention(heads, text):
    """The weights of some heads side by side. heads: title -> (T, T), a row for each query; text: T characters, one for each token."""
    figure = Figure(figsize=(5.6 * len(heads), 5.9), layout="constrained")
    for place, (title, att) in enumerate(heads.items()):
        axes = figure.add_subplot(
            1, len(heads), place + 1, title=title, xlabel="looked at (key); white 0, darkest 1", ylabel="looking (query)"
        )
        axes.imshow(np.where(np.tri(len(att), dtype=bool), att, np.nan), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(text)), text, family="monospace", fontsize=8)
        axes.set_yticks(range(len(text)), text, family="monospace", fontsize=8)
        axes.tick_params(length=0)
    present(figure, "A triangle of weights for each head: dark where a byte looks.")
