"""The results of the model as tables and a picture, and their insertion into the documentation."""

import functools
import json
import re
from pathlib import Path

from matplotlib.figure import Figure as Picture

from dev.scaling.figures import OUR_RUNS, PUBLISHED_RUNS, Run
from dev.scaling.one_gpu import BENCH, measured
from dev.scaling.planning_tables import planning_blocks, table
from dev.scaling.step import memory_gib, step
from gpt2_numba.planning.collectives import fabric
from gpt2_numba.planning.figures import FIGURES, NETWORKS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PICTURE = DOCS / "scaling.png"
MODELS = "d12", "d48"
GPUS = tuple(2**n for n in range(10))
TOKENS = {"d12": 524288, "d48": 1048576}  # per step, as in llm.c's published runs; both ways to choose the batch agree for 8 GPUs
PER_GPU = {model: tokens // 8 for model, tokens in TOKENS.items()}
ENOUGH = 0.9  # share of N times one GPU below which the tables list the losses
LOSSES = {
    "micro_steps": "small micro-batches",
    "slowed": "compute slowed by messages",
    "gradients": "waiting for gradients",
    "norm": "norm and loss",
    "adamw": "AdamW",
    "parameters": "waiting for parameters",
}
BLOCK = "<!-- {}: written by python -m dev.scaling --write -->\n{}<!-- end -->"


@functools.cache
def modelled(model, per_gpu, ranks, stage, network):
    """The Step with TOKENS per step over all GPUs or, if per_gpu, PER_GPU for each."""
    tokens = PER_GPU[model] * ranks if per_gpu else TOKENS[model]
    return step(model, ranks, tokens, stage, fabric=fabric(network))


def share(model, per_gpu, ranks, stage, network):
    """Speed as a share of `ranks` times that of one GPU."""
    many, one = modelled(model, per_gpu, ranks, stage, network), modelled(model, per_gpu, ranks=1, stage=0, network=network)
    return many.tokens_per_second / ranks / one.tokens_per_second


def losses(model, per_gpu, ranks, stage, network):
    """Extra time of a step over 1/ranks of the same step on one GPU: name -> ms. Negative where it takes less."""
    many, one = modelled(model, per_gpu, ranks, stage, network), modelled(model, per_gpu, ranks=1, stage=0, network=network)
    ideal = many.tokens / one.tokens / ranks
    return {LOSSES[name]: ms - ideal * one.parts[name] for name, ms in many.parts.items()}


# ------------------------------------------------------------------------------------------------------------- tables


def inputs_table():
    rows = [[name, f"{one.value:g} {one.unit}".strip(), f"**{one.known}**", one.source] for name, one in FIGURES.items()]
    return table(["input", "value", "known", "source"], rows)


def one_gpu_table():
    header = ["one H200, measured, ms", "B", "forward", "backward: classifier", "a layer", "embedding", "norm", "AdamW"]
    rows = []
    for model in MODELS:
        gpu = measured(model)
        rows.append([model, gpu.B, *(f"{ms:.2f}" for ms in (gpu.forward, gpu.head, gpu.layer, gpu.tail, gpu.norm, gpu.adamw))])
    return table(header, rows)


def our_runs(folder):
    """Runs from a result of dev.bench.many_gpus, in which each GPU also ran alone with the same number of micro-steps."""
    rows = json.loads((BENCH / folder / "result.json").read_text())["rows"]
    runs = []
    for row in rows:
        alone = [one["step_ms"] for one in rows if one["gpus"] == 1 and all(one[key] == row[key] for key in ("model", "micro_steps"))]
        alone = alone[: row["gpus"]]  # GPU 0 first: the processes use the first GPUs
        tokens = row["micro_steps"] * row["B"] * row["T"]
        if row["gpus"] > 1:
            runs.append(Run(
                f"ours, {row['gpus']} H200", row["model"], ranks=row["gpus"], stage=row["zero_stage"], tokens=tokens * row["gpus"],
                ms=row["step_ms"], one_tokens=tokens, alone_ms=tuple(alone), source=f"measured: [{folder}](../dev/bench/{folder})",
                messages_ms=row["messages_alone_ms"], lost_ms=row["exposed_ms"], memory_gib=row["arena_gib"],
            ))  # fmt: skip
    return runs


def all_our_runs():
    return sorted((run for folder in OUR_RUNS for run in our_runs(folder)), key=lambda run: (run.model, run.ranks, run.stage))


def check(run, one_ms):
    """The modelled Step of a Run on one host, if one GPU alone takes one_ms for its step of run.one_tokens."""
    host = fabric(NETWORKS[0])
    one = step(run.model, ranks=1, tokens=run.one_tokens, stage=0, fabric=host)
    gpu = measured(run.model).slower(one_ms / one.ms)
    return step(run.model, run.ranks, run.tokens, run.stage, fabric=host, gpu=gpu)


def checks_table():
    """The time of a step, modelled from the mean of the GPUs' speeds and from the slowest."""
    header = ["run", "model", "tokens a step", "ms", "of N × one", "model: ms", "of N × one", "error", "error, from the slowest", "source"]
    rows = []
    for run in all_our_runs() + list(PUBLISHED_RUNS):
        ideal, predicted = run.one_ms * run.tokens / run.one_tokens / run.ranks, check(run, run.one_ms)
        slowest = f"{check(run, max(run.alone_ms)).ms / run.ms - 1:+.1%}" if len(run.alone_ms) > 1 else ""
        rows.append([
            run.name, run.model, f"`-z {run.stage}`, {run.tokens:,}", f"{run.ms:,.1f}", f"{ideal / run.ms:.1%}", f"{predicted.ms:,.1f}",
            f"{ideal / predicted.ms:.1%}", f"{predicted.ms / run.ms - 1:+.1%}", slowest, run.source,
        ])  # fmt: skip
    return table(header, rows)


def messages_alone(run, predicted):
    """The modelled counterpart of Run.messages_ms."""
    return predicted.messages + measured(run.model).norm / (1 if run.stage == 0 else run.ranks)


def messages_table():
    """How long the messages of our runs took, and by how much they lengthened the step."""
    header = ["run", "model", "tokens a step", "messages alone, ms", "model", "they lengthen the step by, ms", "model", "of the step"]
    rows = []
    for run in all_our_runs():
        predicted = check(run, run.one_ms)
        rows.append([
            run.name, run.model, f"`-z {run.stage}`, {run.tokens:,}", f"{run.messages_ms:.2f}", f"{messages_alone(run, predicted):.2f}",
            f"{run.lost_ms:.2f}", f"{predicted.lost:.2f}", f"{run.lost_ms / run.ms:.1%}",
        ])  # fmt: skip
    return table(header, rows)


def our_table():
    """Our runs on several GPUs, compared with the same GPUs alone."""
    header = [
        "model", "GPUs", "ZeRO", "micro-steps", "tok/s", "each alone, tok/s", "of the sum of these", "of N × the slowest",
        "ms a step", "messages alone, ms", "they lengthen it by, ms", "GiB a GPU", "source",
    ]  # fmt: skip
    rows = []
    for run in all_our_runs():
        count = run.one_tokens // measured(run.model).B // measured(run.model).T
        speed, alone = run.tokens / run.ms * 1000, [run.one_tokens / ms * 1000 for ms in run.alone_ms]
        rows.append([
            run.model, run.ranks, f"`-z {run.stage}`", count, f"{speed:,.0f}", f"{min(alone):,.0f} to {max(alone):,.0f}",
            f"{speed / sum(alone):.1%}", f"{speed / run.ranks / min(alone):.1%}", f"{run.ms:,.1f}", f"{run.messages_ms:.1f}", f"{run.lost_ms:.1f}",
            f"{run.memory_gib:.1f}", run.source.removeprefix("measured: "),
        ])  # fmt: skip
    return table(header, rows)


def scaling_table(model, per_gpu):
    wide, poor = NETWORKS
    header = [
        "GPUs", "B × micro-steps", "ms, `-z 1`", "tok/s, `-z 1`", "of N × one: `-z 0`", "`-z 1`", "`-z 2`", "`-z 1`, " + poor,
        "GiB: `-z 0`", "`-z 1`", "`-z 2`",
    ]  # fmt: skip
    rows = []
    for ranks in GPUS:
        one = modelled(model, per_gpu, ranks, stage=1, network=wide)
        shares = [share(model, per_gpu, ranks, stage, network=wide) for stage in (0, 1, 2)] + [
            share(model, per_gpu, ranks, stage=1, network=poor)
        ]
        memory = [f"{memory_gib(model, ranks, stage, one.B):.1f}" for stage in (0, 1, 2)]
        speed = [f"{one.ms:,.1f}", thousands(one.tokens_per_second)]
        rows.append([ranks, f"{one.B} × {one.count}", *speed, *(f"{s:.1%}" for s in shares), *memory])
    return table(header, rows)


def thousands(value):
    """As in 629k or 4.98M."""
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"


def parts_table():
    """Where the time of a step goes, -z 1."""
    header = ["`-z 1`, " + NETWORKS[0], "GPUs", "N × one", *LOSSES.values(), "step, ms", "messages", "hidden"]
    rows = []
    for model in MODELS:
        for per_gpu in (False, True):
            for ranks in (8, 64, 512):
                many = modelled(model, per_gpu, ranks, stage=1, network=NETWORKS[0])
                lost = losses(model, per_gpu, ranks, stage=1, network=NETWORKS[0])
                ideal = many.ms - sum(lost.values())
                hidden = 1 - (many.gradients + many.parameters) / many.messages
                rows.append([
                    batch_name(model, per_gpu), ranks, f"{ideal:,.1f}", *(f"{ms:+.2f}" for ms in lost.values()), f"{many.ms:,.1f}",
                    f"{many.messages:.2f}", f"{hidden:.0%}",
                ])  # fmt: skip
    return table(header, rows)


def batch_name(model, per_gpu):
    return f"{model}, {PER_GPU[model]:,} tokens a GPU" if per_gpu else f"{model}, {TOKENS[model]:,} tokens a step"


def limits_table():
    """The largest GPU count with ENOUGH of N × one, and the two largest losses at the next size."""
    header = ["batch", "network between hosts", "ZeRO", f"{ENOUGH:.0%} up to", "then", "of N × one", "lost most, of the step's time"]
    rows = []
    for model in MODELS:
        for per_gpu in (False, True):
            for network in NETWORKS:
                for stage in (0, 1):
                    case = model, per_gpu
                    shares = {ranks: share(*case, ranks, stage, network) for ranks in GPUS}
                    below = [ranks for ranks in GPUS if shares[ranks] < ENOUGH]
                    first = below[0] if below else GPUS[-1]
                    lost = losses(*case, first, stage, network)
                    total = modelled(*case, first, stage, network).ms
                    worst = sorted(lost, key=lost.get, reverse=True)[:2]
                    rows.append([
                        batch_name(*case), network, f"`-z {stage}`", first // 2 if below else f"{GPUS[-1]}, all", first, f"{shares[first]:.1%}",
                        ", ".join(f"{name} {lost[name] / total:.1%}" for name in worst),
                    ])  # fmt: skip
    return table(header, rows)


def memory_table():
    """GiB per GPU, as planned by the trainer."""
    header = ["GPUs", *(f"{model}, B = {measured(model).B}: `-z {stage}`" for model in MODELS for stage in (0, 1, 2))]
    rows = []
    for ranks in (1, 2, 4, 8, 64):
        rows.append([ranks, *(f"{memory_gib(model, ranks, stage, measured(model).B):.1f}" for model in MODELS for stage in (0, 1, 2))])
    return table(header, rows)


# -------------------------------------------------------------------------------------------------------- the picture

LINES = (  # stage, network, colour, style
    (0, NETWORKS[0], "#2878b5", "-"),
    (1, NETWORKS[0], "#c82423", "-"),
    (2, NETWORKS[0], "#e8a33d", "--"),
    (0, NETWORKS[1], "#2878b5", ":"),
    (1, NETWORKS[1], "#c82423", ":"),
)


def drawn():
    """Share of N × one, in percent: (per_gpu, model) -> a list over GPUS for each of LINES."""
    return {
        (per_gpu, model): [
            [round(100 * share(model, per_gpu, ranks, stage, network), 1) for ranks in GPUS] for stage, network, _, _ in LINES
        ]
        for per_gpu in (False, True)
        for model in MODELS
    }


def draw(path):
    """A panel for each model and each way to choose the batch. The file also holds the values as text."""
    picture = Picture(figsize=(12, 8), dpi=110, layout="constrained")
    panels = picture.subplots(2, 2, sharex=True, sharey=True)
    for axes, ((per_gpu, model), lines) in zip(panels.flat, drawn().items()):
        for (stage, network, colour, style), shares in zip(LINES, lines):
            axes.plot(GPUS, shares, style, color=colour, marker=".", label=f"-z {stage}, {network}")
        axes.set_title(batch_name(model, per_gpu), loc="left", fontweight="bold")
        axes.axvline(8, color="#bbbbbb", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, map(str, GPUS))
        axes.set_ylim(0, 105)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("speed, % of N × one GPU")
    for axes in panels[1]:
        axes.set_xlabel("GPUs; one host up to 8")
    panels[0][0].legend(fontsize=8.5, loc="lower left")
    picture.suptitle("Modelled, not measured: H200s, 8 a host", fontsize=11)
    picture.savefig(path, format="png", metadata={"Description": str(drawn())})


# --------------------------------------------------------------------------------------------------------- the documents


def scaling_blocks():
    """The generated tables of docs/scaling.md: name of the block -> table."""
    return {
        "inputs": inputs_table(), "one GPU": one_gpu_table(), "checks": checks_table(), "messages": messages_table(), "parts": parts_table(), "limits": limits_table(),
        **{f"{model} {kind}": scaling_table(model, kind == "per GPU") for model in MODELS for kind in ("per step", "per GPU")},
    }  # fmt: skip


def many_gpus_blocks():
    """Those of docs/many_gpus.md."""
    return {"measured": our_table(), "memory": memory_table()}


BLOCKS = {"scaling.md": scaling_blocks, "many_gpus.md": many_gpus_blocks, "planning.md": planning_blocks}  # document -> its tables


def with_blocks(text, tables):
    """The text of a document with its blocks replaced. Raises ValueError if a block does not occur in it exactly once."""
    for name, content in tables.items():
        pattern = re.escape(BLOCK.format(name, "\0")).replace("\0", ".*?")
        block = BLOCK.format(name, content + "\n")
        text, found = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the block {name!r} must occur in the document exactly once, it occurs {found} times")
    return text


def write():
    """Update the blocks of the documents, and the picture."""
    for document, tables in BLOCKS.items():
        path = DOCS / document
        path.write_text(with_blocks(path.read_text(), tables()))
    draw(PICTURE)
