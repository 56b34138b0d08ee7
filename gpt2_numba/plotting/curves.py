"""One panel for each quantity, and the picture of all of them. Matplotlib is imported where it is used: it takes as long as all of Numba."""

import contextlib
import io
import os
import re
import signal
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2_numba.command_line import one_line
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

# Blue and red remain distinct for the colour-blind; printed in grey, the dots distinguish validation from training.
TRAIN_COLOUR, VAL_COLOUR, QUIET_COLOUR = "#2a78b5", "#d1495b", "#5b6670"
# Of several runs, a colour for each: Okabe and Ito's, without black and yellow.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

# From this many steps on, single steps are noise: a plot then also shows a running mean, by default over 1/50 of the run.
SMOOTH_FROM_STEPS = 100
# From this many on, the losses of the first twentieth would take all the height.
CUT_FROM_STEPS = 2000

MOST_LETTERS = 100  # of the title; more do not fit above the plot
MOST_POINTS = 2000  # of a curve: more do not show, and make an SVG of megabytes
AXIS_LABELS = {"steps": "step", "tokens": "tokens", "hours": "hours"}


@dataclass(frozen=True)
class Style:
    """How to draw.

    axis       steps, tokens or hours        smooth  width of the running mean, in steps; 1: none; None: 1/50 of the run
    top        the largest loss shown; None: chosen
    published  from published_lines
    """

    axis: str = "steps"
    smooth: int | None = None
    top: float | None = None
    published: dict = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------------- panels


def draw_loss(axes, runs, style):
    """Training and validation loss, and what GPT-2 reaches."""
    alone = len(runs) == 1
    for number, run in enumerate(runs):
        colour = TRAIN_COLOUR if alone else run_colour(number)
        with _class_of(axes, number, "train"):
            draw_noisy(axes, *run.along("train_loss", style.axis), colour, "training" if alone else run.name, style.smooth)
    for number, run in enumerate(runs):
        x, losses = run.along("val_loss", style.axis)
        if len(x):  # a run may log one without the other
            label = f"validation (last {losses[-1]:.4f})" if alone else f"{run.name}, validation (last {losses[-1]:.4f})"
            colour = VAL_COLOUR if alone else run_colour(number)
            with _class_of(axes, number, "val"):
                many = {"markevery": -(-len(x) // 40), "markersize": 4.5 if alone else 5}
                if not alone:
                    many |= {"markerfacecolor": "white", "linestyle": "--"}
                axes.plot(x, losses, color=colour, linewidth=1.8 if alone else 1.2, marker="o", label=label, **many)
    _draw_published(axes, style.published.get("val_loss", []))
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(frameon=False, fontsize=10 if len(handles) < 5 else 8, loc="upper right")
    _limit_losses(axes, runs, style)


def _limit_losses(axes, runs, style):
    """Leave out the first losses of a long run: they would take all the height."""
    if style.top is not None:
        axes.set_ylim(top=style.top)
    elif runs and min(len(run.get("train_loss")[0]) for run in runs) >= CUT_FROM_STEPS:
        tops, bottoms = [], []
        for run in runs:
            _, losses = run.get("train_loss")
            late = losses[len(losses) // 20 :]
            if np.isfinite(late).any():
                tops.append(np.nanpercentile(late, 99.5))
                bottoms.append(np.nanmin(late))
        reached = [value for _, value in style.published.get("val_loss", [])]
        if tops:
            low, high = min(bottoms + reached), max(tops + reached)
            margin = 0.05 * (high - low) or 0.1
            axes.set_ylim(low - margin, high + margin)


def draw_accuracy(axes, runs, style):
    """The accuracy of evaluations, and GPT-2's and GPT-3's."""
    for number, run in enumerate(runs):
        x, accuracies = run.along("eval_accuracy", style.axis)
        if len(x):
            with _class_of(axes, number, "val"):
                colour = VAL_COLOUR if len(runs) == 1 else run_colour(number)
                axes.plot(x, accuracies, color=colour, linewidth=1.8, marker="o", markersize=4, markevery=-(-len(x) // 40))
    _draw_published(axes, style.published.get("eval_accuracy", []), at_left=True)  # where the curve is low


def draw_rate(axes, runs, style):
    """The learning rate."""
    for number, run in enumerate(runs):
        with _class_of(axes, number):
            x, rates = run.along("learning_rate", style.axis)
            axes.plot(*thin(x, rates), color=_quiet(runs, number), linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")  # 0.0006 at the tick, rather than 6 and a factor of 1e-4 in a corner


def _noisy(name, label, scale=1.0):
    """The function that draws a series with a value per step."""

    def draw(axes, runs, style):
        for number, run in enumerate(runs):
            x, values = run.along(name, style.axis)
            with _class_of(axes, number):
                draw_noisy(axes, x, values * scale, _quiet(runs, number), label, style.smooth)
        axes.set_ylim(bottom=0)
        largest = [values[len(values) // 20 :] * scale for _, values in (run.get(name) for run in runs)]
        if sum(map(len, largest)) >= CUT_FROM_STEPS:  # a few outliers would flatten the rest
            largest = np.concatenate(largest)
            if np.isfinite(largest).any() and np.nanpercentile(largest, 99.5) > 0:
                axes.set_ylim(top=1.3 * np.nanpercentile(largest, 99.5))

    return draw


def draw_scores(axes, runs, style):
    """How unusual loss and gradient norm are, and from where on updates are skipped."""
    from matplotlib.lines import Line2D

    alone = len(runs) == 1
    for number, run in enumerate(runs):
        for name, colour, line in (("loss_z", TRAIN_COLOUR, "-"), ("norm_z", VAL_COLOUR, ":")):
            x, scores = thin(*run.along(name, style.axis))
            with _class_of(axes, number):
                shape = {"linewidth": 0.8, "linestyle": "-" if alone else line, "marker": "." if len(x) < SMOOTH_FROM_STEPS else None}
                axes.plot(x, scores, color=colour if alone else run_colour(number), **shape)
    settings = runs[0].header.get("settings", {}) if alone else {}
    for name, colour in (("skip_loss_z", TRAIN_COLOUR), ("skip_norm_z", VAL_COLOUR)):
        if settings.get(name):
            axes.axhline(settings[name], color=colour, linewidth=1, linestyle="--")
    lines = [
        Line2D([], [], color=TRAIN_COLOUR if alone else "0.3", label="loss"),
        Line2D([], [], color=VAL_COLOUR if alone else "0.3", linestyle="-" if alone else ":", label="norm"),
    ]
    axes.legend(handles=lines, frameon=False, fontsize=8, loc="upper right", ncols=2)


def draw_memory(axes, runs, style):
    """The memory in use: of the process on the host, and on the GPU."""
    from matplotlib.lines import Line2D

    kinds = []
    for name, label, line in (("gpu_bytes", "GPU", "-"), ("host_bytes", "host", ":")):
        for number, run in enumerate(runs):
            x, used = run.along(name, style.axis)
            if len(x):
                with _class_of(axes, number):
                    axes.plot(
                        x, used / 2**30, color=_quiet(runs, number), linewidth=1.6, linestyle=line, marker="." if len(x) < 3 else None
                    )
                kinds.append((label, line))
    lines = [Line2D([], [], color="0.3", linestyle=line, label=label) for label, line in dict.fromkeys(kinds)]
    axes.legend(handles=lines, frameon=False, fontsize=8, loc="lower right", ncols=2)
    largest = max(np.nanmax(run.get(name)[1], initial=0) for run in runs for name in ("gpu_bytes", "host_bytes"))
    axes.set_ylim(0, 1.2 * largest / 2**30 or None)


@dataclass(frozen=True)
class Panel:
    """title: the quantity and its unit. names: the series without which there is no panel. draw: function of axes, runs and Style."""

    title: str
    names: tuple
    draw: object


PANELS = {
    "loss": Panel("loss (nats per token)", ("train_loss", "val_loss"), draw_loss),
    "accuracy": Panel("HellaSwag accuracy", ("eval_accuracy",), draw_accuracy),
    "rate": Panel("learning rate", ("learning_rate",), draw_rate),
    "norm": Panel("gradient norm (before clipping)", ("norm",), _noisy("norm", "gradient norm")),
    "scores": Panel("z-scores", ("loss_z", "norm_z"), draw_scores),
    "speed": Panel("tokens per second", ("tokens_per_second",), _noisy("tokens_per_second", "speed")),
    "mfu": Panel("MFU (% of the bf16 peak)", ("mfu",), _noisy("mfu", "MFU", 100.0)),
    "memory": Panel("memory in use (GiB)", ("host_bytes", "gpu_bytes"), draw_memory),
}


def panels_of(runs):
    """The names of the PANELS for which the logs have something; the loss is always among them."""
    return [
        name for name, panel in PANELS.items() if name == "loss" or any(len(run.get(series)[0]) for run in runs for series in panel.names)
    ]


def run_colour(number):
    """The colour of a run among several."""
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def _quiet(runs, number):
    return QUIET_COLOUR if len(runs) == 1 else run_colour(number)


def _draw_published(axes, lines, at_left=False):
    """Horizontal lines with their names, at the right or at the left."""
    for label, value in lines:
        with _class_of(axes, None):
            axes.axhline(value, color="0.35", linewidth=1, linestyle=(0, (5, 3)))
            axes.annotate(
                label, (0 if at_left else 1, value), xycoords=("axes fraction", "data"), xytext=(2 if at_left else -2, 2),
                textcoords="offset points", fontsize=8, color="0.35", ha="left" if at_left else "right", va="bottom",
            )  # fmt: skip


@contextlib.contextmanager
def _class_of(axes, number, kind=None):
    """Mark what is drawn inside as a run's, for a page's switches. number: of the run; None: a published line."""
    before = set(axes.get_children())
    yield
    for artist in axes.get_children():
        if artist not in before and not artist.get_gid():
            run = "published" if number is None else f"run-{number}"
            part = kind if kind != "train" or artist.get_alpha() is None else "single"
            artist.set_gid(f"class:{run} {part or ''}".strip())


# ---------------------------------------------------------------------------------------------------------- curves


def draw_noisy(axes, x, values, colour, label, smooth=None):
    """Draw a value per step; in a longer run draw it faintly, with its running mean on top. smooth: steps of the mean, None: chosen."""
    if not len(x):
        return
    if smooth is None:
        smooth = len(x) // 50 if len(x) >= SMOOTH_FROM_STEPS else 1
    width = smooth // 2 * 2 + 1  # odd, so that the middle of the window is a step
    if width < 3 or width > len(x):
        marker = "." if len(x) < SMOOTH_FROM_STEPS else None  # shows a run of one step
        axes.plot(*thin(x, values), color=colour, linewidth=1.8 if marker else 1, marker=marker, label=label)
        return
    axes.plot(*thin(x, values), color=colour, linewidth=0.7, alpha=0.35)
    means = running_mean(x, values, width)
    axes.plot(*thin(*means), color=colour, linewidth=1.8, label=f"{label} (mean of {width} steps)")


def running_mean(x, values, width):
    """(x, means) of each window of `width` values (odd), at the window's middle, so that the curve does not lag."""
    middle = width // 2
    return x[middle : len(x) - middle], np.convolve(values, np.full(width, 1 / width), mode="valid")


def thin(x, values, most=MOST_POINTS):
    """(x, values) with the lowest and the highest of each group of neighbours, so that `most` points show what all would."""
    group = -(-2 * len(x) // most)
    if len(x) <= most:
        return x, values
    groups = np.resize(np.arange(len(x)), (-(-len(x) // group), group))
    groups[-1] = np.minimum(np.arange(group) + (len(groups) - 1) * group, len(x) - 1)
    lowest = np.where(np.isnan(values), np.inf, values)[groups].argmin(axis=1)
    highest = np.where(np.isnan(values), -np.inf, values)[groups].argmax(axis=1)
    rows = np.arange(len(groups))
    kept = np.unique(np.concatenate([groups[rows, lowest], groups[rows, highest], [0, len(x) - 1]]))
    return x[kept], values[kept]


# --------------------------------------------------------------------------------------------------------- pictures


def label(axes, quantity, axis="steps", letters=10):
    """Write the quantity and its unit above the axes, where it need not be rotated; style ticks, grid and spines."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(quantity, loc="left", fontsize=letters)
    axes.xaxis.set_major_locator(MaxNLocator(integer=axis == "steps", nbins=6))
    if axis == "tokens":
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
    if axes.get_ylim()[1] >= 10_000:
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def short(value):
    """A large number as a few letters: 524288 -> 524k, 10e9 -> 10B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def shown_title(title):
    """The title as it fits above a plot."""
    title = one_line(title)
    return title if len(title) <= MOST_LETTERS else title[: MOST_LETTERS - 1] + "…"


def overview(runs, title, style, panels=None):
    """The matplotlib Figure of all panels: the loss large, the others beside it. Call it inside matplotlib_alone."""
    from matplotlib.figure import Figure

    first, *others = panels or panels_of(runs)
    columns = 1 if len(others) < 3 else 2
    rows = max(1, -(-len(others) // columns))
    # A Figure rather than pyplot: it draws into memory, needs no display and leaves no global state.
    size = (11, 5.5) if rows * columns <= 2 else (15, max(5.5, 2.1 * rows))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(shown_title(title), fontsize=13, fontweight="bold", parse_math=False)
    grid = figure.add_gridspec(rows, 1 + columns, width_ratios=(2.4 if columns == 1 else 2, *[1] * columns))
    loss_axes = figure.add_subplot(grid[:, 0])
    all_axes = [loss_axes]
    for place in range(len(others)):
        axes = figure.add_subplot(grid[place // columns, 1 + place % columns], sharex=loss_axes)
        if place + columns < len(others):
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel(AXIS_LABELS[style.axis])
        all_axes.append(axes)
    loss_axes.set_xlabel(AXIS_LABELS[style.axis])
    for axes, name in zip(all_axes, [first, *others]):
        PANELS[name].draw(axes, runs, style)
        label(axes, PANELS[name].title, style.axis)
    return figure


def one_panel(name, runs, style, size):
    """The matplotlib Figure of one panel. size: (width, height), inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    PANELS[name].draw(axes, runs, style)
    label(axes, "", style.axis)
    axes.set_xlabel(AXIS_LABELS[style.axis])
    reached = np.concatenate([run.along(series, style.axis)[0] for run in runs for series in ("train_loss", "val_loss")])
    if np.isfinite(reached).any() and np.nanmax(reached) > np.nanmin(reached):  # the same range in all panels
        margin = 0.04 * (np.nanmax(reached) - np.nanmin(reached))
        axes.set_xlim(np.nanmin(reached) - margin, np.nanmax(reached) + margin)
    return figure


@contextlib.contextmanager
def matplotlib_alone():
    """Draw as if the user had not set up matplotlib: for a notebook's backend that is not installed here, for LaTeX; and without warnings."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        rc_context = _loaded_matplotlib().rc_context
        settings = {"text.usetex": False, "svg.fonttype": "none", "svg.hashsalt": "gpt2_numba", "path.simplify": True}
        with rc_context(settings), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the font lacks a letter of the title
            yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _loaded_matplotlib():
    """matplotlib, with all that a figure needs. Ctrl-C waits: an extension module that it interrupts while it loads ends the process at exit."""
    waits = [signal.SIGINT] if hasattr(signal, "pthread_sigmask") else []  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waits) if waits else ()
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    finally:
        if waits:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return matplotlib


def save_figure(figure, path):
    """Write a Figure as SVG if the path ends in .svg, otherwise as PNG. The file is replaced at once: a reader never sees half of it."""
    if Path(path).suffix.lower() == ".svg":
        write_whole(path, svg_text(figure).encode())
        return
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def svg_text(figure):
    """A Figure as SVG, in which what belongs to a run has a class (run-0, ...) instead of matplotlib's id."""
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    text = re.sub(r'\bid="class:([^"]*)"', r'class="\1"', picture.getvalue())
    return text.replace("stroke-opacity: 0.35", "opacity: 0.35")  # of the whole curve: where it crosses itself it is no darker


def write_whole(path, contents):
    """Write bytes to a new file and give it its name when it is whole. Raises UserError if that is not possible."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            open_regular(path, "ab").close()  # a device or a pipe must not be replaced by a file
        try:
            part.write_bytes(contents)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"the path of the plot must be writable, got {str(path)!r} ({reason}): choose another") from error
