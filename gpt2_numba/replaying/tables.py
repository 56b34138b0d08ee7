"""What a replay prints: as much as a screen holds."""

import math

from gpt2_numba.replaying.rows import by_norm, shown_text
from gpt2_numba.replaying.statistics import Tensor

GROWN = 2.0  # times as large as in the step before
MOST_ROWS, MOST_FAILURES, MOST_BLOCKS, MOST_LETTERS = 8, 8, 48, 50
# Of each block: what the residual stream and its branches carry, and the gradients of the matrices, in the order of backward.
_SHOWN = ("qkv", "atty", "fch", "residual3", "dfcprojw", "dfcw", "dattprojw", "dqkvw")


def number(value):
    """A number in eight columns."""
    return f"{value:8.3g}" if value else f"{'0':>8}"


def step_line(step, logged):
    """One line on a Step: loss and norm, and how unusual they are."""
    scores = "".join(f", {what} {z:+.1f}z" for what, z in (("loss", step.loss_z), ("norm", step.norm_z)) if z == z)
    skipped = (
        ", its update skipped" if step.skipped else "" if math.isfinite(step.loss) and math.isfinite(step.norm) else ", updates nothing"
    )
    return f"step {step.number}: loss {step.loss:.6f}, norm {step.norm:.4f}{scores}{skipped}{'' if logged else ' (not in the log)'}"


def rows_table(rows, odd, encoding):
    """The rows with the largest gradients. odd: numbers of those that are unusual."""
    lines = [f"{'row':>9}{'loss':>8}{'norm':>9}  of {len(rows)} rows; * unusual, for its loss or its gradient"]
    for row in sorted(by_norm(rows), key=lambda row: row.number not in odd)[:MOST_ROWS]:
        text = shown_text(row, encoding)
        lines.append(
            f" {'*' if row.number in odd else ' '}{row.label:>7}{row.loss:8.3f}{row.norm:9.3f}  {row.place}  {text[:MOST_LETTERS]}"
        )
    return "\n".join(lines)


def growth_lines(found, before):
    """Which tensors are GROWN times as large, by rms, as in the step before: the first in the order of computation, and the most."""
    grown = [(tensor, numbers.rms / before[tensor].rms) for tensor, numbers in found.items() if tensor in before and before[tensor].rms > 0]
    above = [(tensor, factor) for tensor, factor in grown if factor >= GROWN]
    if not grown:
        return ["nothing can be compared with the step before"]
    if not above:
        tensor, factor = max(grown, key=lambda item: item[1])
        return [f"no tensor's rms is {GROWN:g} times that of the step before; the most is {factor:.3g} times, {tensor}"]
    lines = [f"{len(above)} of {len(grown)} tensors have an rms of {GROWN:g} times that of the step before, or more"]
    for kind, word in (("activations", "forward"), ("gradients", "backward")):
        ones = [(tensor, factor) for tensor, factor in above if tensor.kind == kind]
        if ones:
            most, by = max(ones, key=lambda item: item[1])
            lines.append(f"  {word}: first {ones[0][0]}, {ones[0][1]:.3g} times; most {most}, {by:.3g} times")
    return lines


def layers_table(found, before, statistic):
    """A statistic of each block's main tensors, with its factor since the step before where it has grown. before: may be empty."""
    blocks = sorted({tensor.block for tensor in found if tensor.block is not None})
    names = [name for name in _SHOWN if any(Tensor(name, block) in found for block in blocks)]
    lines = [f"{statistic:<9}" + "".join(f"{name:>15}" for name in names)]
    for block in blocks[:MOST_BLOCKS]:
        cells = []
        for name in names:
            value, old = (getattr(numbers.get(Tensor(name, block)), statistic, math.nan) for numbers in (found, before))
            factor = value / old if old else math.nan
            value = math.nan if Tensor(name, block) in found and found[Tensor(name, block)].not_finite else value
            cells.append(f"{number(value)}{f' ×{factor:<5.3g}' if factor >= GROWN else '':7}")
        lines.append(f"block {block:<3}" + "".join(cells).rstrip())
    if len(blocks) > MOST_BLOCKS:
        lines.append(f"... and {len(blocks) - MOST_BLOCKS} more blocks: --all prints them")
    return "\n".join(lines)


def all_table(found):
    """Every tensor's statistics, in the order of computation."""
    lines = [f"{'tensor':<24}{'largest':>11}{'rms':>11}{'zeros':>9}{'not finite':>12}"]
    for tensor, numbers in found.items():
        lines.append(f"{tensor!s:<24}{numbers.largest:11.3g}{numbers.rms:11.3g}{numbers.zeros:9.2%}{numbers.not_finite:12.2%}")
    return "\n".join(lines)


def compared_table(found, every_block):
    """The verdicts of a comparison: one line for each tensor, or for each kind of tensor that of its worst block."""
    with_walks = any(one.accumulated is not None for one in found)
    shown = found if every_block else _worst_blocks(found)
    lines = [f"{'tensor':<24}{'by':<28}{'difference':>11}{'bound':>10}{'share':>8}{'accumulated' if with_walks else '':>13}".rstrip()]
    for one in shown:
        walk = f"{one.accumulated:13.1e}" if one.accumulated is not None else ""
        share = f"{one.share:8.2f}" if one.share < 1000 else f"{one.share:8.0e}"
        verdict = "" if one.row.ok else "  FAILED"
        lines.append(f"{one.tensor!s:<24}{one.function:<28}{one.row.error:11.1e}{one.row.bound:10.1e}{share}{walk}{verdict}")
    return "\n".join(lines)


def _worst_blocks(found):
    worst = {}
    for one in found:
        key = one.tensor.name, one.function
        if key not in worst or one.share > worst[key].share:
            worst[key] = one
    return list(worst.values())


def verdict_lines(found):
    """What has left its bound, the first in the order of computation first; or that nothing has."""
    wrong = [one for one in found if not one.row.ok]
    if not wrong:
        return [f"all {len(found)} tensors are within their bounds"]
    first = wrong[0]
    lines = [f"the first of {len(wrong)} that left its bound: {first.tensor}, by {first.function}", f"FAILED {_failure(first)}"]
    lines += [f"FAILED {_failure(one)}" for one in wrong[1:MOST_FAILURES]]
    return lines + ([f"... and {len(wrong) - MOST_FAILURES} more"] if len(wrong) > MOST_FAILURES else [])


def _failure(one):
    row = one.row
    return f"{one.tensor} {row.shape} at {row.index}: got {row.got:.9g}, expected {row.expected:.9g}, error {row.error:.3g}, bound {row.bound:.3g}"
