"""A Plan as text, and whether the run can start."""

import shlex

from gpt2_numba.config import count_parameters, parse_descriptor
from gpt2_numba.planning import measured
from gpt2_numba.planning.cards import CARDS
from gpt2_numba.planning.checks import checkpoint_gb, problems, warnings
from gpt2_numba.planning.memory import capacity_gib, fits, largest_micro_batch, memory_by_part, memory_gib, memory_guide, outside_gib
from gpt2_numba.planning.predict import MODELS, can_predict
from gpt2_numba.training.speed import flops_per_token

LEVELS = 0, 1, 2  # of recomputing, -r
GPUS = tuple(2**n for n in range(10))
MOST_COLUMNS = 8  # micro-batches in the table
VALIDATION_SHARE = 0.01  # of the time of the steps, above which it is mentioned


def report(plan):
    """(the plan as lines of text, whether the run can start)."""
    lines = [*_heading(plan), "", *_memory(plan)]
    hours = None
    if plan.card and can_predict(plan.options) and plan.is_divisible and plan.T <= plan.config.max_T:
        step = plan.step()
        hours = plan.steps * step.ms / 3.6e6
        lines += ["", *_time(plan, step, hours), "", *_gpus(plan)]
    elif not (plan.card and can_predict(plan.options)):
        lines += ["", "time: planned for the fast kernels on a GPU only, in bf16, in fp8 or in fp32 with TF32 (-f 1)"]
    if not fits(plan):
        lines += ["", *_guide(plan)]
    wrong, doubtful = problems(plan), warnings(plan, hours)
    lines += ["", *(f"problem: {line}" for line in wrong), *(f"warning: {line}" for line in doubtful)]
    return [*lines, *_command(plan)], not wrong


def _heading(plan):
    settings = plan.settings
    where = f"{plan.gpus} × {CARDS[plan.card].name}" if plan.card else f"CPU, {plan.gpus} process{'es' * (plan.gpus > 1)}"
    count = plan.tokens_per_step / (plan.B * plan.T * plan.gpus)
    lines = [
        f"{settings.model}: {plan.config}, {count_parameters(plan.config):,} parameters, {settings.precision}",
        f"on {where}{f', -z {settings.zero_stage}' if plan.gpus > 1 else ''}: {plan.steps:,} steps of {plan.tokens_per_step:,} tokens "
        f"({count:g} micro-step{'' if count == 1 else 's'} of {plan.B} × {plan.T} on each), {_tokens(plan.tokens)} tokens in all",
    ]
    if plan.data_tokens:
        lines.append(f"data: {_tokens(plan.data_tokens)} tokens, read {plan.tokens / plan.data_tokens:.2f} times")
    return lines + [f"chosen: {line}" for line in plan.chosen]


def _memory(plan):
    """Parts of each level of recomputing at this micro-batch, then the totals of several micro-batches."""
    rows = [memory_by_part(plan, level) for level in LEVELS]
    names = [name for name in rows[0] if plan.card or name != "outside"]
    outside = f"; outside the arena: measured on H200s, {outside_gib(plan):.1f}" if plan.card else ""
    lines = [f"memory of each {'GPU' if plan.card else 'process'}, GiB, as the trainer plans it{outside}"]
    table = [["", *names, "all"]]
    table += [
        [f"-b {plan.B} -r {level}", *(f"{row[name]:.2f}" for name in names), f"{sum(row.values()):.2f}"] for level, row in enumerate(rows)
    ]
    lines += _table(table)
    largest = [largest_micro_batch(plan, level) for level in LEVELS]
    sizes = _sizes(plan, max(largest))
    table = [["all, by micro-batch", *(f"-b {B}" for B in sizes), "largest -b"]]
    for level in LEVELS:
        totals = [memory_gib(plan, level, B) for B in sizes]
        marked = [f"{gib:.1f}" + ("" if gib <= capacity_gib(plan) else "!") for gib in totals]
        table.append([f"-r {level}", *marked, largest[level] or "none"])
    lines += ["", *_table(table)]
    return lines + [f"  ! more than the {capacity_gib(plan):.1f} GiB there are"] * any("!" in line for line in lines)


def _sizes(plan, largest):
    """Micro-batches to show: this one and powers of two, up to the first that does not fit or is more than a step has rows."""
    rows = max(1, plan.tokens_per_step // (plan.T * plan.gpus))
    powers = [2**n for n in range(32) if 2**n < 4 * max(1, largest) and 2**n <= rows]
    return sorted({plan.B, *powers[-MOST_COLUMNS:]})


def _time(plan, step, hours):
    mfu = _mfu(plan, step, plan.gpus)
    lines = [
        f"time{'' if _is_measured(plan) else ', an estimate'}: {step.ms:,.1f} ms a step, {step.tokens_per_second:,.0f} tok/s, MFU {mfu:.1%}",
        f"  the run: {_hours(hours)}{_validation(plan, step)}",
        f"  price: {_price(plan, hours)}",
    ]
    return lines + [f"  {line}" for line in _sources(plan)]


def _validation(plan, step):
    """What validating adds, which all processes share."""
    settings, gpu = plan.settings, plan.one_gpu()
    if plan.given.train_data is None or not settings.val_every:
        return " of steps"
    share = settings.val_batches * gpu.forward / plan.gpus / (settings.val_every * step.ms)
    return (
        f" of steps; validating (-v {settings.val_every} -m {settings.val_batches}) adds {share:.0%}"
        if share > VALIDATION_SHARE
        else " of steps"
    )


def _price(plan, hours):
    if plan.price is None:
        return "none known for this card: give dollars per GPU-hour, --price"
    return f"{plan.gpus} × {_hours(hours)} × {plan.price:.2f} = {_digits(plan.gpus * hours * plan.price)} dollars ({plan.price_source})"


def _is_measured(plan):
    return (plan.card, plan.options.precision) in measured.SPEEDS


def _sources(plan):
    """From which measurements the time follows, and what is assumed."""
    precision, card, settings = plan.options.precision, CARDS[plan.card], plan.settings
    lines = [
        "from: each kernel's share of the limits of one H200, 2026-11-29 (dev/bench/2026-11-29-h200-ruler-*), scaled to the speeds of d12 and d48"
        if precision == "bf16"
        else "from: each kernel's share of the limits of one H200, 2026-11-29 (dev/bench/2026-11-29-h200-ruler-fp32), scaled to d12's speed"
    ]
    if plan.options.float8:
        shares = " and ".join(f"{share:.0%} at {width:,} channels" for share, width in zip(measured.FLOAT8_TIME, measured.WIDTHS))
        lines.append(f"fp8 takes a share of the time of bf16, measured on one H200, 2026-11-29: {shares}")
    if _is_measured(plan):
        speeds = ", ".join(f"{model} {speed / 1000:g}k tok/s at B={B}" for model, B, _, speed in measured.SPEEDS[plan.card, precision])
        lines.append(f"measured on one {plan.card.upper()}{' in bf16' * plan.options.float8}, {measured.SPEEDS_DATE}: {speeds}")
    else:
        lines.append(
            f"scaled by what is published of the {card.name}: {card.bandwidth:,} GB/s, {card.peak_tflops:g} TFLOP/s dense bf16, of which large "
            f"products reach {card.achievable:.0%}; no such card was at hand"
        )
    unmeasured = []
    if settings.gelu_fusion != measured.MEASURED_FUSION[precision] and not plan.options.float8:
        unmeasured.append(f"-ge {settings.gelu_fusion}")
    if settings.recompute:
        unmeasured.append(f"-r {settings.recompute}")
    if plan.config not in [parse_descriptor(model) for model in MODELS[: len(measured.SPEEDS["h200", precision])]]:
        unmeasured.append("this model")
    if plan.T != measured.MEASURED_T:
        unmeasured.append(f"-t {plan.T}")
    if unmeasured:
        lines.append(f"by formula, not measured: {', '.join(unmeasured)}")
    if plan.gpus > 1:
        hosts = f", {plan.network} between hosts" if plan.gpus > 8 else ""
        lines.append(f"messages between GPUs: the model of docs/scaling.md, measured on 2 and 4 H200s of one host{hosts}")
    return lines


def _gpus(plan):
    """The same run on other numbers of GPUs."""
    one, gpu, rows = None, plan.one_gpu(), []
    header = ["GPUs", "B × micro-steps", "ms a step", "tok/s", "of N × one", "MFU", "hours", "dollars", "GiB a GPU"]
    for gpus in sorted({*GPUS, plan.gpus}):
        try:
            step = plan.step(gpu, gpus)
        except ValueError:
            continue  # the tokens of a step are not the same number of rows for each
        one = one or step.tokens_per_second / gpus
        hours = plan.steps * step.ms / 3.6e6
        gib = memory_gib(plan, B=step.B, gpus=gpus)
        rows.append([
            gpus, f"{step.B} × {step.count}", f"{step.ms:,.1f}", f"{step.tokens_per_second:,.0f}", f"{step.tokens_per_second / gpus / one:.1%}",
            f"{_mfu(plan, step, gpus):.1%}", _digits(hours), "" if plan.price is None else _digits(hours * gpus * plan.price),
            f"{gib:.1f}" + ("" if gib <= capacity_gib(plan) else "!"),
        ])  # fmt: skip
    if not rows:
        return []
    title = f"the same run on other numbers of GPUs, 8 a host, {plan.network} between hosts; modelled, docs/scaling.md"
    return [title, *_table([header, *rows])]


def _mfu(plan, step, gpus):
    flops = flops_per_token(count_parameters(plan.config), plan.config.L, plan.config.C, plan.T)
    return step.tokens_per_second * flops / (gpus * CARDS[plan.card].peak_tflops * 1e12)


def _guide(plan):
    """How to make it fit: the published order."""
    rows = [[flags, f"{gib:.1f}", "does not fit" if gib > capacity_gib(plan) else "fits", cost] for flags, gib, cost in memory_guide(plan)]
    start = [f"-b {plan.B} -r {plan.options.recompute} -t {plan.T}", f"{memory_gib(plan):.1f}", "does not fit", ""]
    lines = [f"to fit into {capacity_gib(plan):.1f} GiB, in this order: -b, -r, -w 0, -t", *_table([["", "GiB", "", "cost"], start, *rows])]
    if rows and rows[-1][2] != "fits":
        more = " or -z 1 on several GPUs" if plan.settings.zero_stage == 0 else ""
        lines.append(f"  it does not fit: a smaller model (-e){more}")
    return lines


def _command(plan):
    """The command that trains so, for a plan without data; and what a checkpoint takes."""
    lines = [f"a checkpoint takes {checkpoint_gb(plan):,.2f} GB"]
    if plan.given.train_data is not None:
        return lines
    settings = plan.settings
    flags = f"-e {shlex.quote(settings.model)} -b {plan.B} -t {plan.T} -d {plan.tokens_per_step} -r {settings.recompute} -x {plan.steps}"
    many = f"mpirun -np {plan.gpus} --bind-to none " if plan.gpus > 1 else ""
    zero = f" -z {settings.zero_stage}" if plan.gpus > 1 else ""
    precision = " --precision fp8" if plan.options.float8 else ""
    return [*lines, f"to train so: {many}python -m gpt2_numba.train -i ... -j ... {flags}{zero}{precision} -o DIR"]


def _hours(hours):
    return f"{_digits(hours)} hours" if hours >= 2 else f"{_digits(60 * hours)} minutes"


def _digits(value):
    """Hours, minutes or dollars: with as many decimals as are worth reading."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _tokens(count):
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:,.2f}{unit}"
    return f"{count:,}"


def _table(rows):
    """Rows of cells as aligned lines; the first column to the left, numbers to the right, words to the left."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    is_text = [any(len(row[column]) > 14 and " " in row[column] for row in rows[1:]) for column in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if first or text else cell.rjust(width)
            for cell, width, text, first in zip(row, widths, is_text, [True] + [False] * len(row))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
