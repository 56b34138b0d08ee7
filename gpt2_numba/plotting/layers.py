"""Gradients and activations of every layer over the run, as heat maps: one for each tensor, a row for each layer."""

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.plotting.curves import AXIS_LABELS, label, shown_title

# The tensors shown, if the log has them: the matrices, and where a block's parts meet the residual stream.
TENSORS = {
    "gradients": ("qkvw", "attprojw", "fcw", "fcprojw"),
    "activations": ("qkv", "atty", "fch", "residual3"),
}
TENSOR_TITLES = {
    "qkvw": "qkv weights", "attprojw": "attention's projection", "fcw": "MLP, first matrix", "fcprojw": "MLP, second matrix",
    "qkv": "queries, keys, values", "atty": "attention's output", "fch": "MLP, before GELU", "residual3": "residual stream",
}  # fmt: skip
# As on the command line -> as in run.jsonl, and its name in a title.
STATISTICS = {
    "rms": ("rms", "root mean square"), "largest": ("largest", "largest |x|"), "zeros": ("zeros", "share of zeros"),
    "not-finite": ("not_finite", "share of not finite"),
}  # fmt: skip
DEFAULTS = {"gradients": "rms", "activations": "largest"}  # gradients vanish, activations grow


def has_layers(run):
    """Whether the log has statistics of layers (--stats-every)."""
    return bool(run.history and run.history.statistics)


def layers_figure(run, axis="steps", statistic=None, title=None):
    """The matplotlib Figure of a run's heat maps: gradients above, activations below. Call it inside matplotlib_alone.

    statistic  a key of STATISTICS; None: DEFAULTS
    Raises UserError if the log has no statistics.
    """
    from matplotlib.figure import Figure

    if not has_layers(run):
        raise UserError(f"{run.directory} has no statistics of layers: train with --stats-every N, 100 for instance")
    maps = {kind: _maps(run, kind, STATISTICS[statistic or DEFAULTS[kind]][0]) for kind in TENSORS}
    columns = max(1, *map(len, maps.values()))
    figure = Figure(figsize=(3.3 * columns, 5.6), dpi=150, layout="constrained")
    if title:
        figure.suptitle(shown_title(title), fontsize=13, fontweight="bold", parse_math=False)
    rows = figure.subfigures(2, 1)
    for row, (kind, tensors) in zip(rows, maps.items()):
        name = STATISTICS[statistic or DEFAULTS[kind]][1]
        row.suptitle(f"{kind}: {name}", fontsize=10, x=0.01, ha="left")
        _draw_row(row, run, tensors, axis, columns, log=(statistic or DEFAULTS[kind]) in ("rms", "largest"))
        if kind == "activations":
            row.supxlabel(AXIS_LABELS[axis], fontsize=10)
    return figure


def _maps(run, kind, statistic):
    """[(tensor, steps (n,), values (layers, n))] of the tensors that the log has."""
    maps = []
    for tensor in TENSORS[kind]:
        columns = {}
        for step, found in run.history.statistics:
            values = found.get(kind, {}).get(tensor, {})
            values = values.get(statistic) if isinstance(values, dict) else None
            if isinstance(values, list) and values:
                columns[step] = [_number(value) for value in values]
        if columns:
            layers = len(columns[max(columns)])  # the last step's: before, the directory may have had another model
            columns = {step: values for step, values in columns.items() if len(values) == layers}
            maps.append((tensor, np.array(list(columns), np.int64), np.array(list(columns.values())).T))
    return maps


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


def _draw_row(figure, run, tensors, axis, columns, log):
    """The heat maps of one kind, with one scale of colours. log: of magnitudes."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    numbers = np.concatenate([values[np.isfinite(values)] for *_, values in tensors] or [np.ones(1)])
    positive = numbers[numbers > 0]
    if log and len(positive):
        low, high = positive.min(), positive.max()
        norm = LogNorm(low, high if high > low else 2 * low)
    else:
        norm = Normalize(0, max(float(numbers.max(initial=0)), 1e-9))
    all_axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    image = None
    for axes, (tensor, steps, values) in zip(all_axes, tensors):
        x = run.reached(steps, axis)
        values, x = values[:, np.isfinite(x)], x[np.isfinite(x)]
        if not len(x):
            axes.set_visible(False)
            continue
        image = axes.pcolormesh(
            _edges(x), np.arange(len(values) + 1) - 0.5, np.ma.masked_invalid(values), norm=norm, cmap="viridis", rasterized=True
        )
        label(axes, TENSOR_TITLES[tensor], axis, letters=9)
        axes.set_facecolor("#d1495b")  # what is not finite
        axes.grid(False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.tick_params(labelsize=8)
    for axes in all_axes[len(tensors) :]:
        axes.set_visible(False)
    all_axes[0].set_ylabel("layer", fontsize=9)
    if image is not None:
        bar = figure.colorbar(image, ax=list(all_axes), shrink=0.9, pad=0.01, format="{x:g}")
        bar.ax.yaxis.set_minor_formatter("")
        bar.ax.tick_params(labelsize=8)


def _edges(x):
    """Where the columns of a heat map begin and end: halfway between their places."""
    x = np.asarray(x, np.float64)
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middles = (x[1:] + x[:-1]) / 2
    return np.concatenate([[x[0] - (middles[0] - x[0])], middles, [x[-1] + (x[-1] - middles[-1])]])
