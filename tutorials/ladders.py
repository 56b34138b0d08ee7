"""The ladder of a layer function, from its plain kernel to the one that the trainer uses: as a table, as a picture, as values.

    show_ladder("layernorm_forward")                  prints a line for every rung
    draw_ladder("layernorm_forward")                  shows a bar for every rung, in a notebook
    recorded("layernorm_forward")                     its rows, for use in a text: row.rung, row.ms, row.share

Without a GPU these are the rows of a table that was measured on an H200. On a GPU, show_ladder and draw_ladder measure with dev.kernels, a
layer once in a process: some seconds. `precision` leaves rows out: "fp32", "tf32" or "bf16".
"""

import contextlib
import functools
import io
from datetime import date
from importlib.metadata import version

from dev.kernels import LAYERS, ladder
from dev.kernels.ladder_picture import draw_rows, label
from dev.kernels.ladder_table import parse_table, read_table
from gpt2_numba.gpu.backend import SIMULATING, device_name
from tutorials.model_figures import present
from tutorials.quotes import ROOT

RECORDED = ROOT / "dev" / "bench" / "2026-11-28-h200-kernel-sets" / "ladder.txt"


def recorded(function, precision=None):
    """The rows of a layer function in the recorded table, a tuple of dev.kernels.ladder_table.Row, slowest rung first."""
    return _chosen(_recorded_table(), function, precision)


def show_ladder(*functions, precision=None):
    """Print where and when it was measured, then a line for every rung of these layer functions. Raises UserError for another name."""
    tables = [_table(function) for function in functions]
    print(tables[0].where)
    print(f"{'function':<28}{'rung':<30}{'':<6}{'ms':>9}{'rate':>16}{'of the ceiling':>16}")
    for function, table in zip(functions, tables):
        for row in _chosen(table, function, precision):
            rate = f"{row.gigabytes_per_second:,.0f} GB/s" if row.teraflops is None else f"{row.teraflops:.1f} TFLOP/s"
            share = label(row).partition(", ")[2]
            print(f"{row.function:<28}{row.rung:<30}{row.precision:<6}{row.ms:>9.3f}{rate:>16}{share:>16}")


def draw_ladder(*functions, precision=None):
    """Show a bar for every rung of these layer functions, as long as its share of the ceiling. Raises UserError for another name."""
    tables = {function: _table(function) for function in functions}
    rows = {function: _chosen(table, function, precision) for function, table in tables.items()}
    alt = "; ".join(f"{row.function}, {row.rung}, {row.precision}: {label(row)}" for chosen in rows.values() for row in chosen)
    present(draw_rows(rows, tables[functions[0]].where), alt)


def _chosen(table, function, precision):
    return tuple(row for row in table.rows_of(function) if precision in (None, row.precision))


@functools.cache
def _recorded_table():
    return read_table(RECORDED)


def _table(function):
    """The table in which a function's rows are: the recorded one or, on a GPU, one that is measured."""
    _recorded_table().rows_of(function)  # raises for a name that no function has
    if SIMULATING:
        return _recorded_table()
    return _measured_table(next(layer for layer in LAYERS if function in ladder(layer)))


@functools.cache
def _measured_table(layer):
    """The rungs of a layer, checked and timed on this GPU."""
    from dev.kernels.__main__ import run

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run([layer])
    return parse_table(f"# measured, one {device_name()}, {date.today()}, numba-cuda {version('numba-cuda')}\n{printed.getvalue()}")
