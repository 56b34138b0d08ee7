"""The tables of docs/planning.md: what python -m gpt2_numba.plan computes, beside what was measured and published."""

import json
import re
import statistics

from dev.scaling.figures import ONE_GPU, OUR_RUNS, SMALL_MODELS, SMALLER_MICRO_BATCHES
from dev.scaling.one_gpu import BENCH
from gpt2_numba.planning import measured
from gpt2_numba.planning.cards import CARDS
from gpt2_numba.planning.choices import decide
from gpt2_numba.planning.memory import memory_by_part, memory_gib
from gpt2_numba.planning.report import report
from gpt2_numba.planning.request import parse_request

EXAMPLE = "-e d48 --gpus 8 --gpu h100 --tokens 33.6B"
GUIDE_MODELS = "d12", "d24", "d36", "d48"
GUIDE = ("-b 16 -r 0", "-b 8 -r 0", "-b 4 -r 0", "-b 1 -r 0", "-b 1 -r 1", "-b 1 -r 2", "-b 1 -r 2 -w 0", "-b 1 -r 2 -w 0 -t 512")
FP32_TRAINING = "2026-11-22-h200-train-fp32"
# A run of llm.c's: name, the plan's flags, hours, dollars or None.
PUBLISHED = (
    ("1558M, 8 H100, 32,000 steps of 1,048,576 tokens", "-e d48 -b 16 -d 1048576 -x 32000 --gpus 8 -z 1 --gpu h100", 24.0, 672),
    ("124M, 8 A100, 10B tokens", "-e d12 -b 64 -d 524288 --tokens 10B --gpus 8 -z 1 --gpu a100", 94 / 60, None),
)
AS_FAST_AS_LLMC = {"d12": 1.10, "d48": 1.064}  # this program's speed over llm.c's on one H100: README.md


def table(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def plan_of(flags):
    return decide(parse_request(flags.split()))


def example():
    """What the command prints."""
    return "```\n" + "\n".join(report(plan_of(EXAMPLE))[0]) + "\n```"


def guide_table():
    """GiB in use on one GPU, and the time of a token, at each step of the memory guide."""
    rows = []
    for flags in GUIDE:
        full = flags if "-t" in flags else flags + " -t 1024"
        plans = [plan_of(f"-e {model} {full} -d 524288 -x 1 --gpu h100") for model in GUIDE_MODELS]
        slower = [
            plan.step().ms / plan_of(f"-e {model} -b 16 -r 0 -d 524288 -x 1 --gpu h100").step().ms
            for plan, model in zip(plans, GUIDE_MODELS)
        ]
        rows.append([f"`{full}`", *(f"{memory_gib(plan):.1f}" for plan in plans), f"{slower[0]:.2f}, {slower[-1]:.2f}"])
    return table(["GiB in use", *(f"{model}" for model in GUIDE_MODELS), "time of a token, d12 and d48"], rows)


def recorded_memory():
    """(name, flags of the plan, GiB of the arena, GiB in use on the card or None) of runs in dev/bench, each kind once."""
    for folder in (*(training for training, _ in ONE_GPU.values()), FP32_TRAINING):
        result = json.loads((BENCH / folder / "result.json").read_text())
        flags = result["command"].partition("gpt2_numba.train ")[2] + " --gpu h200"
        yield folder, flags, float(result["memory"].removesuffix(" MiB").replace(",", "")) / 1024, None
    for folder in (*OUR_RUNS, SMALLER_MICRO_BATCHES):
        for row in json.loads((BENCH / folder / "result.json").read_text())["rows"]:
            flags = f"-e {row['model']} -b {row['B']} -t 1024 -r 0 -x 1 --gpus {row['gpus']} -z {row['zero_stage']} --gpu h200"
            if row["micro_steps"] > 1 and row["arena_gib"] > 10:
                yield folder, flags, row["arena_gib"], CARDS["h200"].memory_gib - row["free_gib"]


def memory_table():
    """The plan beside recorded runs of more than 10 GiB."""
    rows, seen = [], set()
    for folder, flags, arena, used in recorded_memory():
        plan = plan_of(flags)
        what = f"{plan.settings.model}, {plan.options.precision}, B={plan.B}, {plan.gpus} GPU{'s' * (plan.gpus > 1)}, `-z {plan.settings.zero_stage}`"
        if (what, used is None) in seen:
            continue
        seen.add((what, used is None))
        parts = memory_by_part(plan)
        planned = sum(parts.values())
        own = planned - parts["outside"]
        in_use = ["", ""] if used is None else [f"{used:.2f}", f"{planned:.2f} ({planned / used - 1:+.1%})"]
        rows.append([what, f"{arena:.2f}", f"{own:.2f} ({own / arena - 1:+.1%})", *in_use, f"[{folder}](../dev/bench/{folder})"])
    return table(["run on H200s", "arena, GiB", "plan", "in use on the card, GiB", "plan", "recorded in"], rows)


def recorded_times():
    """(file of dev/bench, flags of the plan, ms a step) of small models and small micro-batches on one H200.

    A day's card had its own speed: the times of small micro-batches are scaled by the speed of the large ones, then and on measured.SPEEDS_DATE.
    """
    speeds = {model: speed for model, _, _, speed in measured.SPEEDS["h200", "bf16"]}
    then = {model: _result(training)["tokens_per_second"] for model, (training, _) in ONE_GPU.items()}
    for row in _result(SMALLER_MICRO_BATCHES)["rows"]:
        model, B = row["model"], row["B"]
        tokens = B * row["T"] * row["micro_steps"]
        yield SMALLER_MICRO_BATCHES, f"-e {model} -b {B} -t {row['T']} -d {tokens} -r 0", row["step_ms"] * then[model] / speeds[model]
    for file, flags in SMALL_MODELS.items():
        yield file, flags, statistics.median(map(float, re.findall(r"\| ([\d.]+) ms \|", (BENCH / file).read_text())))


def _result(folder):
    return json.loads((BENCH / folder / "result.json").read_text())


def time_table():
    """The plan beside recorded steps of small models and small micro-batches."""
    rows = []
    for file, flags, ms in recorded_times():
        planned = plan_of(f"{flags} -x 1 --gpu h200").step().ms
        rows.append(
            [f"`{flags}`", f"{ms:.2f}", f"{planned:.2f} ({planned / ms - 1:+.1%})", f"[{file.partition('/')[0]}](../dev/bench/{file})"]
        )
    return table(["run on one H200", "ms a step", "plan", "recorded in"], rows)


def published_table():
    """The plan beside llm.c's published runs."""
    rows = []
    for name, flags, hours, dollars in PUBLISHED:
        plan = plan_of(flags)
        ours = plan.steps * plan.step().ms / 3.6e6
        llmc = ours * AS_FAST_AS_LLMC[plan.settings.model]
        paid, price = ("", "") if dollars is None else (f", {dollars} dollars", f", {plan.gpus * ours * plan.price:,.0f} dollars")
        rows.append([
            name, f"{hours:.2f} h{paid}", f"{ours:.2f} h{price}", f"{ours / hours - 1:+.0%}", f"{llmc:.2f} h", f"{llmc / hours - 1:+.0%}",
        ])  # fmt: skip
    return table(["llm.c's run", "published", "plan, for this program", "", "times the measured ratio to llm.c", ""], rows)


def cards_table():
    rows = []
    for key, card in CARDS.items():
        price = "" if card.price is None else f"{card.price:.2f}: {card.price_source}"
        rows.append(
            [
                f"`{key}`",
                f"{card.memory_gib:.1f}",
                f"{card.bandwidth:,}",
                f"{card.peak_tflops:,}",
                f"{card.achievable:.1%}",
                f"{card.link:,}",
                price,
            ]
        )
    header = [
        "`--gpu`",
        "GiB",
        "GB/s",
        "TFLOP/s, dense bf16",
        "of which large products reach",
        "GB/s to its neighbours",
        "dollars an hour, assumed",
    ]
    return table(header, rows)


def planning_blocks():
    """The generated blocks of docs/planning.md."""
    return {
        "example": example(), "guide": guide_table(), "recorded memory": memory_table(), "recorded times": time_table(),
        "published runs": published_table(), "cards": cards_table(),
    }  # fmt: skip
