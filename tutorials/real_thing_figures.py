"""The figures of chapter 14. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image as Picture

from tutorials.model_figures import BLUE, DPI, GREY, PALE, RED, present

ORANGE, GREEN = "#e08a1e", "#3f9b57"
PICTURE_WIDTH, COLOURS = 1100, 64  # of a picture that a command has drawn
SMOOTHED = 10  # steps of the running mean in a curve of losses


def draw_rates(runs, guess):
    """Losses of short runs, smoothed. runs: {label: (steps,)}; guess: the loss of a model that knows nothing."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    axes = figure.subplots()
    longest = max(map(len, runs.values()))
    axes.plot((SMOOTHED, longest), (guess, guess), color=GREY, linestyle="--", linewidth=1.2)
    axes.text(longest / 2, guess * 1.04, "ln V: knows nothing", color=GREY, fontsize=9.5, va="bottom", ha="center")
    for (label, losses), colour in zip(runs.items(), (ORANGE, BLUE, RED)):
        mean = np.convolve(losses, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
        steps = np.arange(SMOOTHED, len(losses) + 1)
        axes.semilogy(steps, mean, color=colour, linewidth=2)
        axes.text(len(losses) + 1, mean[-1], f"-l {label}", color=colour, va="center", fontsize=9.5)
    axes.set_xlim(SMOOTHED - 1, longest * 1.2)
    axes.set_yticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats a byte,\nmean of {SMOOTHED} steps\n(logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "Three runs that differ in the learning rate: the middle one has the lowest loss.")


def draw_spike(runs, garbage):
    """Z-scores and validation losses of runs. runs: {label: (steps [(step, z)], validations [(step, loss)])}; garbage: its steps, a range."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes in (above, below):
        axes.axvspan(garbage.start - 0.5, garbage.stop - 0.5, color="#fbe3d6", linewidth=0)
        axes.spines[["top", "right"]].set_visible(False)
    for (label, (scores, validations)), colour in zip(runs.items(), (BLUE, RED, GREEN)):
        above.plot(*zip(*scores), ".", color=colour, markersize=6, label=label)
        late = [(step, loss) for step, loss in validations if step >= garbage.start - 40]
        below.plot(*zip(*late), "o-", color=colour, markersize=4, linewidth=1.6, label=label)
    above.axhline(3, color=GREY, linestyle="--", linewidth=1.2)
    above.text(garbage.start - 44, 3.15, "threshold of -sl 3", color=GREY, fontsize=9.5, va="bottom")
    above.set_xlim(garbage.start - 45, None)
    above.set_ylabel("z-score of the loss")
    below.set_ylabel("validation loss,\nnats a byte")
    below.set_xlabel("step (shaded: random bytes)")
    below.legend(frameon=False, fontsize=9.5)
    present(
        figure,
        "Above: z-scores jump at the random bytes and then shrink. Below: without skipping the validation loss rises, and then recovers.",
    )


def draw_file(path, alt):
    """Show a picture that a command has drawn, smaller and in fewer colours, so that the notebook stays small."""
    picture = Picture.open(path).convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    pixels = np.asarray(picture.quantize(COLOURS).convert("RGB"))
    figure = Figure(figsize=(pixels.shape[1] / DPI, pixels.shape[0] / DPI))
    figure.figimage(pixels)
    present(figure, alt)


def draw_tokenizers(merges, losses, bits):
    """Loss per token and bits per byte of one kind of model, against the number of merged pairs."""
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, title, colour in ((left, losses, "loss, nats a token", RED), (right, bits, "bits per byte", BLUE)):
        axes.plot(merges, values, "o-", color=colour, linewidth=2, markersize=5)
        for place, value in zip(merges, values):
            axes.annotate(
                f"{value:.2f}",
                (place, value),
                xytext=(6, -4 if colour == RED else 5),
                textcoords="offset points",
                ha="left",
                fontsize=9,
                color=colour,
            )
        axes.set_ylabel(title, fontsize=10.5)
        axes.set_xlabel("merges: pairs made one token")
        axes.set_ylim(min(values) - 0.25 * np.ptp(values), max(values) + 0.3 * np.ptp(values))
        axes.set_xlim(-0.07 * merges[-1], 1.15 * merges[-1])
        axes.spines[["top", "right"]].set_visible(False)
    present(figure, "With more merged pairs the loss of a token rises, and the bits of a byte fall.")


def draw_intervals(scores, chance, reached):
    """95 % intervals of an accuracy against the number of questions. scores: {questions: (low, high)}; two accuracies to compare with."""
    figure = Figure(figsize=(8.4, 2.7), layout="constrained")
    axes = figure.subplots()
    for line, (low, high) in enumerate(scores.values()):
        axes.plot((low, high), (line, line), color=BLUE, linewidth=5, solid_capstyle="butt")
    for value, label, colour, side in (
        (chance, f"chance, {chance:.0%}", GREY, "right"),
        (reached, f"{reached:.1%}, GPT-2 124M", RED, "left"),
    ):
        axes.axvline(value, color=colour, linestyle="--", linewidth=1.2)
        axes.text(value + (0.008 if side == "left" else -0.008), -0.75, label, color=colour, ha=side, va="center", fontsize=9.5)
    axes.set_yticks(range(len(scores)), [f"{questions:,} questions" for questions in scores])
    axes.set_ylim(len(scores) - 0.5, -1.1)
    axes.set_xlim(0, 0.7)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("accuracy: the 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "The more questions, the shorter the interval; only with thousands does it leave chance behind.")


def draw_choices(panels, labels):
    """Shares of the likeliest tokens among the drawn. panels: {title: (V',)}; labels: of the V' bars. Pale: the first panel's."""
    figure = Figure(figsize=(10.4, 5), layout="constrained")
    before = next(iter(panels.values()))
    top = 1.15 * max(values.max() for values in panels.values())
    for axes, (title, values) in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, panels.items()):
        axes.bar(range(len(before)), before, color="#d9e2ea", width=0.85)
        axes.bar(range(len(values)), values, color=BLUE, width=0.5)
        axes.set_title(title, fontsize=10.5)
        axes.set_xticks(range(len(labels)), labels, family="monospace", fontsize=9)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("share of 2,000 draws", fontsize=10)
    figure.supxlabel("next token, the likeliest first (pale: all tokens)", fontsize=10)
    present(figure, "Four panels: all tokens; a low temperature sharpens; top-k and top-p cut off the tail.")


def draw_cache(lengths, without, kept):
    """FLOP of the next token against the length of the text, both axes logarithmic, without and with the keys and values kept."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for values, label, colour in ((without, "everything again", RED), (kept, "keys and values kept", BLUE)):
        axes.loglog(lengths, values, color=colour, linewidth=2)
        axes.text(lengths[-1] * 1.06, values[-1], label, color=colour, va="center", fontsize=9.5)
    axes.set_xlim(lengths[0], lengths[-1] * 8)
    axes.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
    axes.minorticks_off()
    axes.grid(axis="y", color=PALE)
    axes.set_xlabel("tokens so far (logarithmic)")
    axes.set_ylabel("FLOP of the next token\n(logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "Without the cache the cost of a token grows with the length of the text; with it, it stays nearly flat.")
