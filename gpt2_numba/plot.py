"""Plot a run: training and validation loss, learning rate and gradient norm over the steps.

    python -m gpt2_numba.plot LOGDIR [--out FILE]

Reads LOGDIR/main.log (ours or llm.c's) and writes LOGDIR/loss.png, or FILE.
"""

import contextlib
import os
import warnings

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, one_line, user_path
from gpt2_numba.errors import UserError
from gpt2_numba.training.log import read_main_log

# Blue and red remain distinct for the colour-blind; printed in grey, the dots distinguish validation from training.
_TRAIN_COLOUR = "#2a78b5"
_VAL_COLOUR = "#d1495b"
_QUIET_COLOUR = "#5b6670"

# From this many steps on, single steps are noise: the plot then also shows a running mean over 1/50 of the run.
_SMOOTH_FROM_STEPS = 100

_MOST_LETTERS = 100  # of the title; more do not fit above the plot


def plot_losses(log_path, png_path, title):
    """Plot the main.log at log_path to a PNG at png_path (1650 x 825 pixels), with `title` at the top.

    Needs no display. Values that are not finite, or too large for a float32, are gaps. Raises UserError if the log cannot be read or holds
    no finite loss, or if the PNG cannot be written.
    """
    series = {name: (steps, _with_gaps(values)) for name, (steps, values) in read_main_log(log_path).items()}
    if np.isnan([*series["train_loss"][1], *series["val_loss"][1]]).all():
        raise UserError(f"a plot needs at least one finite loss, got none in {str(log_path)!r}: plot again when the run has done a step")
    title = one_line(title)
    with _matplotlib_alone():
        figure = _draw(series, title if len(title) <= _MOST_LETTERS else title[: _MOST_LETTERS - 1] + "…")
        try:
            figure.savefig(png_path, format="png")
        except OSError as error:
            raise UserError(
                f"the path of the plot must be writable, got {str(png_path)!r} ({error.strerror or type(error).__name__}): choose another"
            ) from error


def _with_gaps(values):
    """The values (n,) float64, with NaN, which matplotlib leaves out, for all that it cannot draw."""
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


@contextlib.contextmanager
def _matplotlib_alone():
    """Draw as if the user had not set up matplotlib: for a notebook's backend that is not installed here, for LaTeX; and without warnings."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib import rc_context  # imported here: it takes as long as all of Numba, and a run plots only at its end

        with rc_context({"text.usetex": False}), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the font lacks a letter of the title
            yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _draw(series, title):
    """The matplotlib Figure. series: as read_main_log returns it, with gaps."""
    from matplotlib.figure import Figure

    train_steps, train_losses = series["train_loss"]
    val_steps, val_losses = series["val_loss"]

    # A Figure rather than pyplot: it draws into memory, needs no display and leaves no global state.
    figure = Figure(figsize=(11, 5.5), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    grid = figure.add_gridspec(2, 2, width_ratios=(2.4, 1))
    loss_axes = figure.add_subplot(grid[:, 0])
    rate_axes = figure.add_subplot(grid[0, 1], sharex=loss_axes)
    norm_axes = figure.add_subplot(grid[1, 1], sharex=loss_axes)

    if len(train_steps):
        _draw_noisy(loss_axes, train_steps, train_losses, _TRAIN_COLOUR, "training")
    if len(val_steps):  # a run may log one without the other
        loss_axes.plot(
            val_steps,
            val_losses,
            color=_VAL_COLOUR,
            linewidth=1.8,
            marker="o",
            markersize=4.5,
            label=f"validation (last {val_losses[-1]:.4f})",
        )
    loss_axes.legend(frameon=False, fontsize=10, loc="upper right")
    _label(loss_axes, "loss (nats per token)")
    loss_axes.set_xlabel("step")

    rate_axes.plot(*series["learning_rate"], color=_QUIET_COLOUR, linewidth=1.8)
    _label(rate_axes, "learning rate")
    rate_axes.set_ylim(bottom=0)
    rate_axes.yaxis.set_major_formatter("{x:g}")  # 0.0006 at the tick, rather than 6 and a factor of 1e-4 in a corner
    rate_axes.tick_params(labelbottom=False)

    _draw_noisy(norm_axes, *series["norm"], _QUIET_COLOUR, "gradient norm")
    _label(norm_axes, "gradient norm (before clipping)")
    norm_axes.set_ylim(bottom=0)
    norm_axes.set_xlabel("step")
    return figure


def _draw_noisy(axes, steps, values, colour, label):
    """Draw a value per step; in a longer run draw it faintly, with its running mean on top."""
    if len(steps) < _SMOOTH_FROM_STEPS:
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=".", label=label)  # the marker shows a run of one step
        return
    width = len(steps) // 50 | 1  # odd, so that the middle of the window is a step
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(*_running_mean(steps, values, width), color=colour, linewidth=1.8, label=f"{label} (mean of {width} steps)")


def _running_mean(steps, values, width):
    """(steps, means) of each window of `width` values (odd), at the window's middle step, so that the curve does not lag."""
    middle = width // 2
    return steps[middle : len(steps) - middle], np.convolve(values, np.full(width, 1 / width), mode="valid")


def _label(axes, quantity):
    """Write the quantity and its unit above the axes, where it need not be rotated; style ticks, grid and spines."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(quantity, loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def run(argv):
    """Draw the plot that the command line asks for."""
    parser = Parser(prog="python -m gpt2_numba.plot", description="Plot the losses of a run from its main.log.")
    parser.add_argument("logdir", metavar="LOGDIR", type=user_path, help="the log directory of a run (its -o)")
    parser.add_argument("--out", metavar="FILE", type=user_path, help="the PNG to write (default LOGDIR/loss.png)")
    arguments = parser.parse_args(argv)
    png_path = arguments.out or arguments.logdir / "loss.png"
    plot_losses(arguments.logdir / "main.log", png_path, title=arguments.logdir.resolve().name)
    print(f"wrote {png_path}")


def main(argv):
    """Run the command line. Returns the exit code: 0, or 2 for a mistake of the user's, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
