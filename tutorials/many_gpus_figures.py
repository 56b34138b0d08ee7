"""The figures of chapter 12. Each function draws one and shows it below the cell of a notebook; a script skips it."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from tutorials.model_figures import BLUE, GREY, PALE, RED, present

ORANGE, GREEN, PURPLE = "#e08a1e", "#3f9b57", "#8a5aa8"


# ------------------------------------------------------------------------------------------------------------- the ring


def ring_states(values):
    """What n processes hold before a ring all-reduce and after each of its 2 (n - 1) steps.

    values: (n, n), a row for each process, a column for each part. Returns [(state, {(process, part) that has just come})].
    """
    values = np.array(values)
    ranks = len(values)
    states = [(values.copy(), set())]
    for step in range(2 * (ranks - 1)):
        adding = step < ranks - 1
        before, came = values.copy(), set()
        for rank in range(ranks):
            sender = (rank - 1) % ranks
            part = (sender - 1 - step) % ranks if adding else (sender - (step - ranks + 1)) % ranks
            values[rank, part] = before[sender, part] + (before[rank, part] if adding else 0)
            came.add((rank, part))
        states.append((values.copy(), came))
    return states


def draw_ring(values):
    """All steps of a ring all-reduce, a panel each. values: (n, n), as for ring_states."""
    states = ring_states(values)
    ranks, sums = len(values), np.sum(values, axis=0)
    figure = Figure(figsize=(11, 5.6))
    columns = ranks
    panels = figure.subplots(2, columns)
    figure.subplots_adjust(left=0.04, right=0.995, top=0.92, bottom=0.03, wspace=0.06, hspace=0.22)
    places = [*panels[0], *panels[1][1:]]  # the first panel of the second row has the legend
    for number, (panel, (state, came)) in enumerate(zip(places, states)):
        title = "at first" if not number else f"step {number}: {'send and add' if number < ranks else 'send and copy'}"
        _draw_state(panel, title, state, came, sums)
    _draw_legend(panels[1][0])
    for number in range(ranks):
        panels[0][0].text(
            -0.14,
            _row(number, ranks) + 0.35,
            f"process\n{number}",
            rotation=90,
            ha="right",
            va="center",
            multialignment="center",
            fontsize=8,
            color=GREY,
        )
        panels[0][0].text(number + 0.5, _row(0, ranks) + 0.86, f"part {number}", ha="center", fontsize=8, color=GREY)
    present(figure, "A grid of processes by parts in each step; arrows go down a row; after three steps each process has one whole sum.")


def _row(rank, ranks):
    return (ranks - 1 - rank) * 1.25


def _draw_state(panel, title, state, came, sums):
    ranks = len(state)
    panel.set(xlim=(-0.1, ranks + 0.02), ylim=(-0.75, _row(0, ranks) + 1.3))
    panel.axis("off")
    panel.set_title(title, fontsize=10)
    for rank in range(ranks):
        for part in range(ranks):
            whole = state[rank, part] == sums[part]
            colour = GREEN if whole else PALE
            edge = ORANGE if (rank, part) in came else "#cfd6dc"
            style = {"facecolor": colour, "edgecolor": edge, "linewidth": 2.2 if (rank, part) in came else 0.8}
            panel.add_patch(Rectangle((part + 0.04, _row(rank, ranks)), 0.92, 0.72, **style))
            text = panel.text(part + 0.5, _row(rank, ranks) + 0.35, f"{state[rank, part]}", ha="center", va="center", fontsize=9)
            text.set_color("white" if whole else "black")
    arrow = {"arrowstyle": "-|>", "mutation_scale": 9, "color": ORANGE, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    for rank, part in came:
        top = _row(rank, ranks) + 0.72
        panel.add_patch(FancyArrowPatch((part + 0.5, top + 0.5), (part + 0.5, top + 0.04), **arrow))
        if rank == 0:  # it comes from the last one, round the ring
            panel.add_patch(FancyArrowPatch((part + 0.5, -0.04), (part + 0.5, -0.5), **arrow))


def _draw_legend(panel):
    panel.set(xlim=(-0.1, 4.02), ylim=(-0.75, 5.05))
    panel.axis("off")
    for y, text, style in (
        (3.6, "a sum that lacks\nsome processes", {"facecolor": PALE, "edgecolor": "#cfd6dc", "linewidth": 0.8}),
        (2.2, "the whole sum", {"facecolor": GREEN, "edgecolor": "#cfd6dc", "linewidth": 0.8}),
        (
            0.8,
            "has just come from\nthe process above\n(process 0: from the last)",
            {"facecolor": "white", "edgecolor": ORANGE, "linewidth": 2.2},
        ),
    ):
        panel.add_patch(Rectangle((0.1, y), 0.92, 0.72, **style))
        panel.text(1.2, y + 0.35, text, va="center", fontsize=9)


# ------------------------------------------------------------------------------------------------------------ ZeRO


def draw_shares(sharing, ranks):
    """Which numbers each process updates. sharing: function of a rank -> Sharing (gpt2_numba/parallel/shards.py)."""
    figure = Figure(figsize=(11, 0.62 * ranks + 1.3))
    segments = sharing(0).state.segments
    count = sharing(0).state.global_count
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.078 * count, 1.01 * count), ylim=(-0.95, ranks + 0.45))
    axes.axis("off")
    for rank in range(ranks):
        bottom = ranks - 1 - rank
        axes.text(-0.008 * count, bottom + 0.35, f"process {rank}", ha="right", va="center", fontsize=9.5)
        state = sharing(rank).state
        for segment in segments:
            edge = "white" if segment.name in state.cut else PALE
            axes.add_patch(Rectangle((segment.start, bottom), segment.length, 0.7, facecolor=PALE, edgecolor=edge, linewidth=0.8))
        for _, start, length, segment in state.parts():
            is_cut = segment.name in state.cut
            axes.add_patch(Rectangle((start, bottom), length, 0.7, facecolor=BLUE if is_cut else RED, linewidth=0))
    for name in dict.fromkeys(segment.name for segment in segments):
        blocks = [segment for segment in segments if segment.name == name]
        start, stop = blocks[0].start, blocks[-1].stop
        if stop - start > 0.01 * count:
            axes.text((start + stop) / 2, -0.12, name, ha="center", va="top", fontsize=9, color=GREY)
            for segment in blocks if len(blocks) > 1 else ():
                axes.text((segment.start + segment.stop) / 2, -0.42, f"{segment.layer}", ha="center", va="top", fontsize=8.5, color=GREY)
    axes.text(-0.008 * count, -0.42, "block", ha="right", va="top", fontsize=8.5, color=GREY)
    axes.text(0, ranks + 0.1, "blue: the part of each matrix that this process updates", color=BLUE, fontsize=9.5, va="center")
    axes.text(count, ranks + 0.1, "red: vectors, which all processes update", color=RED, fontsize=9.5, ha="right", va="center")
    present(figure, "Each matrix is cut into as many parts as there are processes, and each process has one part of each.")


def draw_memory(plans):
    """Memory of a GPU as stacked bars. plans: {label: {what it is for: GiB}}."""
    figure = Figure(figsize=(10, 0.5 * len(plans) + 1.3), layout="constrained")
    panel = figure.subplots()
    kinds = list(dict.fromkeys(kind for plan in plans.values() for kind in plan))
    colours = dict(zip(kinds, (BLUE, ORANGE, GREEN, "#c9d1d8")))
    for place, plan in enumerate(plans.values()):
        left = 0.0
        for kind in kinds:
            size = plan[kind]
            panel.barh(place, size, left=left, height=0.66, color=colours[kind], edgecolor="white", label=kind if not place else None)
            if size > 2:
                dark = kind != kinds[-1]
                panel.text(left + size / 2, place, f"{size:.1f}", ha="center", va="center", color="white" if dark else "black", fontsize=9)
            left += size
        panel.text(left + 0.5, place, f"{left:.1f}", va="center", fontsize=10)
    panel.set_yticks(range(len(plans)), list(plans))
    panel.invert_yaxis()
    panel.set_xlabel("GiB on each GPU")
    panel.set_xlim(0, 1.08 * max(sum(plan.values()) for plan in plans.values()))
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=len(kinds))
    present(figure, "Stacked bars: the part of AdamW's state shrinks with the number of GPUs, the other parts stay.")


# -------------------------------------------------------------------------------------------------------- overlap


def draw_timelines(ways):
    """What compute and messages do when. ways: {title: (computed, sent)}, lists of (label, from, to) in ms."""
    figure = Figure(figsize=(10, 1.25 * len(ways) + 0.6))
    end = max(to for lanes in ways.values() for lane in lanes for _, _, to in lane)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.11 * end, 1.08 * end), ylim=(-0.62, 2.5 * len(ways)))
    axes.axis("off")
    for number, (title, lanes) in enumerate(ways.items()):
        bottom = 2.5 * (len(ways) - 1 - number)
        axes.text(0, bottom + 1.98, title, fontsize=10.5, va="center")
        for y, name, boxes, colour in ((bottom + 0.85, "compute", lanes[0], BLUE), (bottom, "messages", lanes[1], ORANGE)):
            axes.text(-0.01 * end, y + 0.37, name, ha="right", va="center", fontsize=9.5, color=colour)
            for label, start, to in boxes:
                axes.add_patch(Rectangle((start, y), to - start, 0.75, facecolor=colour, edgecolor="white", linewidth=1.5))
                axes.text((start + to) / 2, y + 0.37, label, ha="center", va="center", color="white", fontsize=9)
        last = max(to for lane in lanes for _, _, to in lane)
        axes.text(last + 0.008 * end, bottom + 0.37, f"{last:g} ms", va="center", fontsize=10)
    for ms in range(0, int(end) + 1, 4):
        axes.plot([ms, ms], [-0.12, -0.02], color=GREY, linewidth=1)
        axes.text(ms, -0.2, f"{ms}", ha="center", va="top", fontsize=8.5, color=GREY)
    axes.text(-0.01 * end, -0.2, "ms", ha="right", va="top", fontsize=8.5, color=GREY)
    present(figure, "Lanes of compute and messages: sent as soon as a layer is done, the messages end soon after the last layer.")
