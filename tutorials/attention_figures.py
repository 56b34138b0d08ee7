"""The figures of chapter 06. Each function draws one and shows it below the cell of a notebook; a script skips it."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tutorials.model_figures import BLUE, GREY, PALE, RED, present

KEY_COLOURS = ("#2a78b5", "#e08a1e", "#3f9b57", "#8e6bb0")
LIGHT_BLUE, MASKED, HIDDEN = "#bcd3e6", "#e79aa2", "#f7dde0"
IN_MEMORY, NOT_USED = "#f0b35f", "#fbe6c8"


def draw_pull(att, v, out):
    """Three values in the plane, their weighted mean, and where raising each score would move it. att (3,), v (3, 2), out (2,)."""
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axes = figure.add_subplot(xlabel="channel 0", ylabel="channel 1", aspect="equal")
    axes.add_patch(Rectangle(out - 0.055, 0.11, 0.11, color="black", zorder=4))
    axes.annotate("out", out, xytext=(-10, 12), textcoords="offset points", ha="right", fontsize=11)
    for s, colour in enumerate(KEY_COLOURS[:3]):
        axes.plot(*v[s], "o", color=colour, markersize=8 + 24 * att[s])
        right = v[s][0] > out[0]
        label = f"v[{s}], weight {att[s]:g}"
        axes.annotate(label, v[s], xytext=(14 if right else -14, 0), textcoords="offset points", ha="left" if right else "right", va="center",
                      color=colour, fontsize=11)  # fmt: skip
        axes.plot(*zip(out, v[s]), color=colour, linewidth=1, linestyle=":")
        move = {"arrowstyle": "-|>", "color": colour, "linewidth": 2.5, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", out + att[s] * (v[s] - out), out, arrowprops=move)
    axes.set(xlim=(-2.6, 6.6), ylim=(-0.7, 4.5))
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "A triangle of values; from the weighted mean inside it, an arrow towards each value, as long as its weight says.")


def draw_running_sum(exponents):
    """The terms of an online softmax's total after each of its scores, which are `exponents` times log 2, as stacked bars."""
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axes = figure.add_subplot(ylabel="total")
    for step in range(len(exponents)):
        largest = max(exponents[: step + 1])
        bottom = 0.0
        for s in range(step + 1):
            height = 2.0 ** (exponents[s] - largest)
            axes.bar(step, height, 0.5, bottom=bottom, color=KEY_COLOURS[s], edgecolor="white")
            if height > 0.1:
                axes.text(step, bottom + height / 2, f"{height:g}", ha="center", va="center", color="white", fontsize=10)
            bottom += height
        axes.text(step, bottom + 0.04, f"{bottom:g}", ha="center", va="bottom", fontsize=11)
        if step and largest > max(exponents[:step]):
            factor = 2.0 ** (max(exponents[:step]) - largest)
            axes.text(step - 0.5, 0.45, f"× {factor:g}\n→", ha="center", va="center", color=RED, fontsize=13)
    names = [f"score[{s}] = {exponent} log 2" + "\nlargest = " + f"{max(exponents[: s + 1])} log 2" for s, exponent in enumerate(exponents)]
    axes.set_xticks(range(len(exponents)), names, fontsize=9)
    axes.set_ylim(0, 2.2)
    axes.spines[["top", "right"]].set_visible(False)
    present(figure, "Stacked bars: when a larger score comes, all that has been added shrinks by the same factor.")


def _triangle(axes, T, colour_of, title):
    """The pairs of T queries (rows) and keys (columns): a cell for each, in the colour that colour_of(t, s) returns; None leaves it out."""
    for t in range(T):
        for s in range(T):
            if colour := colour_of(t, s):
                axes.add_patch(Rectangle((s, t), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
    axes.set(xlim=(-0.1, T + 0.1), ylim=(T + 0.1, -0.1), aspect="equal")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _name_sides(axes, T):
    axes.text(T / 2, T + 0.3, "keys s →", ha="center", va="top", fontsize=9, color=GREY)
    axes.text(-0.3, T / 2, "queries t ↓", ha="right", va="center", fontsize=9, color=GREY, rotation=90)


def _panels(width, height, columns):
    """A figure with `columns` panels side by side, with room for titles of two lines above and one line of text below."""
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(1, columns)
    figure.subplots_adjust(left=0.03, right=0.99, top=1 - 0.5 / height, bottom=0.35 / height, wspace=0.08)
    return figure, panels


def _legend(axes, x, y, entries):
    """Squares with a text each, below one another, from (x, y) on."""
    for place, (colour, text) in enumerate(entries):
        axes.add_patch(Rectangle((x, y + 1.15 * place), 0.8, 0.8, facecolor=colour))
        axes.text(x + 1.1, y + 0.42 + 1.15 * place, text, va="center", fontsize=9)


def draw_cuts(T=8, query=5, key=2):
    """The pairs of queries and keys, cut by rows and cut by columns."""
    figure, (by_row, by_column) = _panels(8.4, 4.2, 2)
    title = f"a sum over keys: forward, dq\nthe block of query {query}"
    _triangle(by_row, T, lambda t, s: None if s > t else BLUE if t == query else PALE, title)
    title = f"a sum over queries: dk, dv\nthe block of key {key}"
    _triangle(by_column, T, lambda t, s: None if s > t else RED if s == key else PALE, title)
    for axes in by_row, by_column:
        _name_sides(axes, T)
    present(figure, "Two triangles of pairs: one with a row, the other with a column in colour.")


def draw_tiles(T=16, tile=4):
    """The pairs that a block works on at one moment: one query and one key, and a tile of each; and which tiles there are."""
    figure, (plain, tiled) = _panels(10.4, 5.4, 2)
    here, now = T - tile, 1  # the first query of the block that is shown, and its tile of keys at this moment

    def colour_of_pair(t, s):
        if s > t:
            return None
        return BLUE if (t, s) == (here, now * tile) else LIGHT_BLUE if t == here else PALE

    def colour_in_tiles(t, s):
        if s // tile > t // tile:
            return None
        if s // tile == t // tile:
            return MASKED if s <= t else HIDDEN
        return PALE if t < here else BLUE if s // tile == now else LIGHT_BLUE

    _triangle(plain, T, colour_of_pair, "one query a block:\na key that is read serves one pair")
    _triangle(tiled, T, colour_in_tiles, f"{tile} queries a block:\na key that is read serves {tile} pairs")
    for edge in range(tile, T, tile):
        tiled.plot([0, edge], [edge, edge], color="white", linewidth=3)
        tiled.plot([edge, edge], [edge, T], color="white", linewidth=3)
    for axes in plain, tiled:
        _name_sides(axes, T)
    _legend(plain, 6.5, 0.3, [(BLUE, "at this moment"), (LIGHT_BLUE, "the rest of this block's pairs"), (PALE, "other blocks")])
    _legend(tiled, 9, 0.3, [(MASKED, "tiles that need the mask"), (HIDDEN, "hidden by it")])
    present(figure, "Two triangles of pairs, with one pair or one tile of pairs in dark blue.")


def draw_rungs(T=12, tile=4, B=3):
    """Where the weights are, and how many at one time, for four ways of computing attention. Of all sequences, B are drawn."""
    figure, panels = _panels(12.2, 3.9, 4)

    def one_pair(t, s):
        return None if s > t else BLUE if (t, s) == (T - 3, tile) else PALE

    def all_pairs(t, s):
        return IN_MEMORY if s <= t else NOT_USED

    def one_tile(t, s):
        return None if s // tile > t // tile else BLUE if (t // tile, s // tile) == (2, 1) else PALE

    ways = (
        ("plain, warp_per_query:\na block has one at a time", 1, one_pair),
        ("whole_matrices:\nthose of all sequences", B, all_pairs),
        ("sequence_at_a_time:\nthose of one sequence", 1, all_pairs),
        ("fast (tf32, bf16):\na block has a tile", 1, one_tile),
    )
    for axes, (title, sheets, colour_of) in zip(panels, ways):
        _triangle(axes, T, colour_of, title)
        for behind in range(1, sheets):
            place = 0.9 * behind, -0.9 * behind
            axes.add_patch(Rectangle(place, T, T, facecolor=IN_MEMORY, edgecolor="white", linewidth=2, zorder=-behind))
        axes.set(xlim=(-0.3, T + 2.2), ylim=(T + 0.3, -2.2))
    entries = ((0.06, BLUE, "in registers"), (0.2, IN_MEMORY, "in memory"), (0.33, NOT_USED, "in memory, and hidden by the mask"),
               (0.6, PALE, "not there at this moment"))  # fmt: skip
    for x, colour, text in entries:
        figure.patches.append(Rectangle((x, 0.035), 0.011, 0.034, facecolor=colour, transform=figure.transFigure))
        figure.text(x + 0.016, 0.052, text, va="center", fontsize=9)
    present(figure, "Four squares of weights: one weight, three whole sheets, one whole sheet, one tile.")
