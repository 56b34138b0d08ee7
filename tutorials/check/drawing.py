"""Draws who touches what: the threads of a warp down, the memory cells across, as text in a terminal or as a figure in a notebook.

What is drawn is the first moment: the first access to this memory that the first warp of the first block makes together.
"""

import io
import sys
from dataclasses import asdict, dataclass

from tutorials.check.counting import SECTOR_BYTES, WARP_SIZE, bank_turns, sectors, warp_accesses

MOST_COLUMNS = 64
TEXT_THREADS = (*range(8), 31)  # the threads that a text shows


@dataclass
class Picture:
    """Who touches what in one array, in the first moment."""

    memory: str
    verb: str  # read or write
    shape: tuple
    itemsize: int
    is_shared: bool
    cells: dict  # thread in its warp -> the cell that it touches, by number
    pieces: int  # of 32 bytes that the warp moves
    turns: int  # that shared memory takes

    @property
    def fewest_pieces(self):
        return -(-len(set(self.cells.values())) * self.itemsize // SECTOR_BYTES)

    def summary(self):
        """What the picture shows, in a sentence."""
        who = f"{len(self.cells)} thread{'s' * (len(self.cells) > 1)} {self.verb if len(self.cells) > 1 else self.verb + 's'}"
        if self.is_shared:
            return f"{who} shared memory in {self.turns} turn{'s' * (self.turns > 1)}: " + (
                "bank conflicts" if self.turns > 1 else "no conflict"
            )
        used, moved = len(set(self.cells.values())) * self.itemsize, self.pieces * SECTOR_BYTES
        coalesced = ": coalesced" if self.pieces <= self.fewest_pieces + 1 else ": not coalesced"
        moving = f"{self.pieces} piece{'s' * (self.pieces > 1)} of 32 bytes, {moved:,} bytes, {'are' if self.pieces > 1 else 'is'} moved"
        return f"{who} {used} bytes; {moving}{coalesced * (len(self.cells) > 1)}"

    def columns(self):
        """(first cell, cells a column, number of columns): whole pieces of memory, at most MOST_COLUMNS."""
        piece = SECTOR_BYTES // self.itemsize
        first = min(self.cells.values()) // piece * piece
        span = (max(self.cells.values()) // piece + 1) * piece - first
        scale = 1
        while span > MOST_COLUMNS * scale:
            scale *= 2
        return first, scale, -(-span // scale)

    def text(self):
        """The picture as lines of text."""
        first, scale, columns = self.columns()
        piece = SECTOR_BYTES // self.itemsize // scale
        if piece < 4:  # too narrow to be set apart
            piece = columns
        title = f"{self.memory}{list(self.shape)}: what the first warp {self.verb}s at once, from cell {first} on"
        unit = "a column is one cell" if scale == 1 else f"a column is {scale} cells"
        lines = [f"{title} ({unit}" + (f", | every {SECTOR_BYTES} bytes)" if piece < columns else ")")]
        shown = [thread for thread in TEXT_THREADS if thread in self.cells]
        for thread in shown:
            if thread == TEXT_THREADS[-1]:
                lines.append("        ...")
            row = ["."] * columns
            row[(self.cells[thread] - first) // scale] = "#"
            groups = ["".join(row[start : start + piece]) for start in range(0, columns, piece)]
            lines.append(f"  thread {thread:2} " + "|".join(groups))
        return "\n".join([*lines, f"  {self.summary()}"])

    def png(self):
        """The figure as the bytes of a PNG, which a notebook shows without further settings."""
        stream = io.BytesIO()
        self.figure().savefig(stream, format="png", dpi=110)
        return stream.getvalue()

    def figure(self):
        """The picture as a matplotlib figure."""
        from matplotlib.figure import Figure

        first, scale, columns = self.columns()
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots()
        threads = sorted(self.cells)
        axes.scatter([self.cells[thread] + 0.5 for thread in threads], threads, marker="s", s=14)
        piece = SECTOR_BYTES // self.itemsize
        has_edges = columns * scale // piece <= 2 * MOST_COLUMNS
        if has_edges:
            for edge in range(first, first + columns * scale + 1, piece):
                axes.axvline(edge, color="0.85", linewidth=0.8, zorder=0)
        axes.set(
            xlim=(first, first + columns * scale),
            ylim=(WARP_SIZE - 0.5, -0.5),
            xlabel=f"element of {self.memory}" + (f"; a line every {SECTOR_BYTES} bytes" if has_edges else ""),
            ylabel="thread of the warp",
        )
        axes.set_title(self.summary(), fontsize=10)
        return figure


def picture(record, memory):
    """The Picture of a memory in a watching.Record. Reads are drawn if there are any. Raises KeyError if no thread touches it."""
    touches = [touch for touch in record.touches if touch.memory == memory]
    groups = warp_accesses([touch for touch in touches if touch.is_read] or touches)
    if not groups:
        raise KeyError(f"no thread touches {memory!r}: {', '.join(sorted(record.sizes)) or 'nothing was recorded'}")
    group = groups[0]
    _, itemsize, shape = record.sizes[memory]
    return Picture(
        memory=memory,
        verb="read" if group[0].is_read else "write",
        shape=tuple(shape),
        itemsize=itemsize,
        is_shared=group[0].is_shared,
        cells={touch.thread_id % WARP_SIZE: touch.offset // itemsize for touch in group},
        pieces=len(sectors(group)),
        turns=bank_turns(group),
    )


def to_json(drawn):
    return asdict(drawn)


def from_json(fields):
    """The Picture of to_json's dict after its way through JSON, where keys become text."""
    fields = {**fields, "shape": tuple(fields["shape"]), "cells": {int(thread): cell for thread, cell in fields["cells"].items()}}
    return Picture(**fields)


def in_notebook():
    """Is this process the kernel of a notebook, where figures can be shown?"""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def show(drawn):
    """Show a Picture: a figure in a notebook, text elsewhere."""
    if in_notebook():
        from IPython.display import Image, display

        display(Image(drawn.png()))
    else:
        print(f"\n{drawn.text()}")
