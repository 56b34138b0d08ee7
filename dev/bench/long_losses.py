"""Three hundred steps beside PyTorch, in float32 and in bfloat16: is there a bias?

    python -m dev.bench.long_losses --out DIR --text tinyshakespeare.txt        one GPU, three minutes; without a GPU a small model in fp32

Both programs train one model on the same tokens in the same order, from the same random draw (dev/oracle/train_torch.py). A training is
chaotic: roundings make the losses of a late step differ by thousands of times their own size, in either direction. Wrong arithmetic would
show in the mean. So each program's figure is the mean of its losses over all steps, and the measure of chance is our own program, run
several times with other roundings (dev/bench/roundings.py): the allowance for PyTorch's mean follows from how far those means lie apart
(dev/bench/chance.py); one comparison in a hundred would fail by chance. To it comes what the loss's own arithmetic may be off in the same
direction at every step: four roundings to float32, and the last decimal place that is printed. That counts where a small model at a low
rate does not come apart at all.

Runs follow each other: ours in bf16, PyTorch's, then both in fp32. There are three of ours at least, and more while their share of the time
lasts. Writes DIR/table.txt, losses.png, result.json. Exit code 1 if a mean is beyond its allowance, 2 if a run has failed.
"""

import datetime
import json
import os
import platform
import sys
import time

import numpy as np

from dev.bench.against_torch import TINY, all_versions, read_console, write_tokens
from dev.bench.chance import allowance
from dev.bench.machine import commit, gpus
from dev.bench.process_memory import run_process
from dev.bench.report import table
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.plotting.curves import RUN_COLOURS

# On a GPU d12 as in the tables of dev/bench, with few tokens a step; without one, a model that takes a quarter of a minute.
USUAL = {
    "gpu": {"model": "d12", "batch": "-b 8 -t 1024 -d 8192", "precisions": "bf16,fp32", "tokenizer": "gpt2", "share": 0.22},
    "cpu": {"model": TINY, "batch": "-b 4 -t 32 -d 256", "precisions": "fp32", "tokenizer": "bytes", "share": 0.5},
}
SCHEDULE = "-q 0.1 -c 0.1 -v 0"
WARM_UP = 5  # one step in five is warm-up
ROW_EVERY = 20  # of the table
OUTSIDE = 0.01  # how often chance alone may exceed an allowance
FEWEST_RUNS = 3
PRINTED = 1e-6  # what two losses of six decimal places may be off


def parse(argv):
    """Parse the command line. What is not given depends on the device."""
    parser = Parser(prog="python -m dev.bench.long_losses", doc=__doc__)
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    parser.add_argument("--text", type=user_path, help="what to train on, such as Tiny Shakespeare (default: the built-in corpus)")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu" if real_gpu() else "cpu", help="(default: %(default)s)")
    parser.add_argument("--model", help=f"descriptor (default: d12; CPU: {TINY})")
    parser.add_argument("--batch", help="-b, -t and -d of both programs (default: -b 8 -t 1024 -d 8192; CPU: -b 4 -t 32 -d 256)")
    parser.add_argument("--precisions", help="with commas between them (default: bf16,fp32; CPU: fp32)")
    parser.add_argument("--tokenizer", choices=("gpt2", "bytes"), help="of the text (default: gpt2; CPU: bytes)")
    parser.add_argument("--compile", choices=("0", "1", "blocks"), default="0", help="PyTorch's (default: 0)")
    parser.add_argument("--steps", type=int, default=300, help="(default: 300)")
    parser.add_argument("-l", "--learning-rate", type=float, default=0.0006, help="at its peak (default: 0.0006)")
    parser.add_argument("--runs", type=int, default=6, help=f"of ours in each precision, at least {FEWEST_RUNS} (default: 6)")
    parser.add_argument("--budget", type=float, default=200, metavar="SECONDS", help="time for all runs (default: 200)")
    arguments = parser.parse_args(argv)
    if arguments.runs < FEWEST_RUNS or arguments.steps < WARM_UP:
        raise UserError(f"--runs must be at least {FEWEST_RUNS} and --steps at least {WARM_UP}, got {arguments.runs}, {arguments.steps}")
    for name, value in USUAL[arguments.device].items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    arguments.precisions = arguments.precisions.split(",")
    return arguments


# ------------------------------------------------------------------------------------------------------------------- runs


def schedule(arguments):
    """The flags of learning rate and decay, as text."""
    return f"-l {arguments.learning_rate:g} -u {arguments.steps // WARM_UP} {SCHEDULE}"


def flags(arguments, precision, shard):
    """The flags that both programs share, as a list."""
    text = f"-i {shard} -j {shard} -e {arguments.model} {arguments.batch} -x {arguments.steps} {schedule(arguments)}"
    return f"{text} --precision {precision} --device {arguments.device}".split()


def run_ours(arguments, precision, shard, seconds):
    """Our runs in a precision. Returns a list of their losses, one array a run; seed 0 comes first."""
    file = arguments.out / f"ours_{precision}.json"
    file.unlink(missing_ok=True)
    seeds = ",".join(map(str, range(arguments.runs)))
    command = [sys.executable, "-m", "dev.bench.roundings", "--seeds", seeds, "--seconds", str(seconds), "--fewest", str(FEWEST_RUNS)]
    command += ["--json", str(file), "--"]
    console = arguments.out / f"ours_{precision}.txt"
    done = run_process([*command, *flags(arguments, precision, shard), "-r", "0", "-s", "0"], console, arguments.budget, None)
    if done["exit_code"] != 0 or not file.exists():
        raise UserError(f"our runs in {precision} have failed: see {console}")
    runs = json.loads(file.read_text())["runs"]
    print(f"ours, {precision}: {len(runs)} runs in {done['seconds']} s", flush=True)
    return np.array([run["losses"] for run in runs.values()])


def run_torch(arguments, precision, shard):
    """PyTorch's run in a precision. Returns its losses, an array."""
    console = arguments.out / f"torch_{precision}.txt"
    command = [sys.executable, "-m", "dev.oracle.train_torch", *flags(arguments, precision, shard), "--compile", arguments.compile]
    done = run_process(command, console, arguments.budget, None)
    losses = read_console(console)["losses"]
    if done["exit_code"] != 0 or len(losses) != arguments.steps:
        raise UserError(f"PyTorch's run in {precision} has failed after {len(losses)} steps: see {console}")
    print(f"PyTorch, {precision}: {done['seconds']} s", flush=True)
    return np.array(losses)


# ---------------------------------------------------------------------------------------------------------------- judgement


def judge(ours, theirs):
    """PyTorch's losses beside those of all our runs. ours (k, steps), theirs (steps,). Returns a dict of figures.

    mean_difference  of the losses over all steps: the mean of our runs minus PyTorch's
    allowance        what chance and the loss's own arithmetic explain; None with fewer than three runs
    """
    single, mean = ours[0] - theirs, ours.mean(axis=0) - theirs
    figures = {
        "runs": len(ours),
        "mean_difference": float(mean.mean()),
        "mean_of_first_run": float(single.mean()),
        "mean_absolute_of_first_run": float(abs(single).mean()),
        "largest_of_first_run": {"step": int(abs(single).argmax()) + 1, "ours_minus_torch": float(single[abs(single).argmax()])},
        "our_means": ours.mean(axis=1).tolist(), "spread_of_our_means": None, "allowance": None, "agree": None,
    }  # fmt: skip
    if len(ours) >= FEWEST_RUNS:
        figures["spread_of_our_means"] = float(ours.mean(axis=1).std(ddof=1))
        figures["allowance"] = float(allowance(ours.mean(axis=1), OUTSIDE) + 4 * 2.0**-24 * theirs.mean() + PRINTED)
        figures["agree"] = bool(abs(figures["mean_difference"]) <= figures["allowance"])
    return figures


def price_of_bf16(ours, theirs):
    """By how much the mean loss in bf16 exceeds that in fp32, of each program, and what a single mean scatters by chance."""
    spread = np.hypot(*(ours[precision].mean(axis=1).std(ddof=1) for precision in ("bf16", "fp32")))
    return {
        "ours": float(ours["bf16"].mean() - ours["fp32"].mean()),
        "torch": float(theirs["bf16"].mean() - theirs["fp32"].mean()),
        "spread_of_a_difference": float(spread),
    }


# ------------------------------------------------------------------------------------------------------- tables and picture


def losses_table(precision, ours, theirs):
    """Every twentieth step of one precision, and what our runs scatter there."""
    header = [f"{precision}, step", "ours", "torch", "difference", "mean of ours - torch", "spread of ours"]
    count = len(theirs)
    steps = sorted({1, *range(ROW_EVERY, count + 1, ROW_EVERY), count})
    spread = ours.std(axis=0, ddof=1) if len(ours) > 1 else np.full(count, np.nan)
    rows = [
        [str(step), f"{ours[0, s]:.6f}", f"{theirs[s]:.6f}", f"{ours[0, s] - theirs[s]:+.1e}",
         f"{ours[:, s].mean() - theirs[s]:+.1e}", f"{spread[s]:.1e}"]
        for step in steps for s in (step - 1,)
    ]  # fmt: skip
    return table(header, rows)


def summary(precision, figures):
    """The figures of `judge` in words."""
    largest = figures["largest_of_first_run"]
    lines = [
        f"{precision}: the first of our runs minus PyTorch: mean {figures['mean_of_first_run']:+.2e}, mean absolute value "
        f"{figures['mean_absolute_of_first_run']:.1e}, largest {largest['ours_minus_torch']:+.1e} in step {largest['step']}"
    ]
    if figures["allowance"] is None:
        return lines[0] + f"\nfewer than {FEWEST_RUNS} of our runs: no judgement"
    lines.append(
        f"mean of our {figures['runs']} runs minus PyTorch, over all steps: {figures['mean_difference']:+.2e}; allowed are "
        f"{figures['allowance']:.1e} (means of our runs scatter by {figures['spread_of_our_means']:.1e}): "
        f"{'no bias is seen' if figures['agree'] else 'THERE IS A BIAS'}"
    )
    return "\n".join(lines)


def plot(path, ours, theirs):
    """The losses, and below them the differences of each precision with the scatter of our own runs."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1 + len(ours), 1, figsize=(9, 3.2 * (1 + len(ours))), sharex=True, layout="constrained")
    for number, (precision, runs) in enumerate(ours.items()):
        steps = np.arange(1, runs.shape[1] + 1)
        colour, other = RUN_COLOURS[2 * number : 2 * number + 2]
        axes[0].plot(steps, runs[0], color=colour, linewidth=1.2, label=f"{precision}, ours")
        axes[0].plot(steps, theirs[precision], color=other, linewidth=1.2, linestyle="--", label=f"{precision}, PyTorch")
        panel, spread = axes[1 + number], 2 * runs.std(axis=0, ddof=1) if len(runs) > 1 else 0
        panel.fill_between(steps, -spread, spread, color=colour, alpha=0.2, linewidth=0, label="two standard deviations of our runs")
        panel.plot(steps, runs.mean(axis=0) - theirs[precision], color=other, linewidth=1.0, label="mean of our runs - PyTorch")
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_title(precision)
    axes[0].set_ylabel("loss, nats per token")
    for panel in axes:
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(argv):
    """Measure as the command line says. Returns the exit code: 1 if a mean is beyond its allowance."""
    arguments, found, begin = parse(argv), all_versions(), time.perf_counter()
    if "torch" not in found:
        raise UserError("this comparison needs PyTorch, which is not installed: pip install -e '.[oracle]'")
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    shard, share = arguments.out / "tokens.bin", arguments.share * arguments.budget
    data = write_tokens(arguments.text, arguments.tokenizer, shard)
    ours, theirs = {}, {}
    for precision in arguments.precisions:
        ours[precision] = run_ours(arguments, precision, shard, share * (1.5 if precision == "fp32" else 1))
        theirs[precision] = run_torch(arguments, precision, shard)

    figures = {precision: judge(ours[precision], theirs[precision]) for precision in ours}
    machine = (gpus() or ["GPU"])[0] if arguments.device == "gpu" else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    lines = [
        f"{machine}; {date}", "; ".join(f"{name} {version}" for name, version in found.items()), data,
        f"{arguments.model} {arguments.batch} {schedule(arguments)}, {arguments.steps} steps",
    ]  # fmt: skip
    for precision in ours:
        lines += ["", losses_table(precision, ours[precision], theirs[precision]), summary(precision, figures[precision])]
    if set(ours) >= {"bf16", "fp32"} and min(map(len, ours.values())) > 1:
        price = figures["price_of_bf16"] = price_of_bf16(ours, theirs)
        lines += [
            f"\nmean loss in bf16 minus that in fp32: ours {price['ours']:+.2e}, PyTorch {price['torch']:+.2e}; two single runs scatter by "
            f"{price['spread_of_a_difference']:.1e}"
        ]
    text = "\n".join(lines)
    print(f"\n{text}")
    (arguments.out / "table.txt").write_text(text + "\n")
    result = {
        "command": "python -m dev.bench.long_losses " + " ".join(argv), "date": date, "machine": machine, "commit": commit(),
        "versions": found, "data": data, "figures": figures, "seconds": round(time.perf_counter() - begin, 1),
        "ours": {precision: runs.round(6).tolist() for precision, runs in ours.items()},
        "torch": {precision: losses.tolist() for precision, losses in theirs.items()},
    }  # fmt: skip
    (arguments.out / "result.json").write_text(json.dumps(result) + "\n")
    plot(arguments.out / "losses.png", ours, theirs)
    print(f"wrote {arguments.out} after {result['seconds']:.0f} s")
    return 0 if all(one["agree"] in (True, None) for one in figures.values() if "agree" in one) else 1


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake or a failed run, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
