"""GPT-2 1558M drifts from llm.c's losses, by 1e-2 within ten steps: chance, or a bias?

    python -m dev.bench.drift tinyshakespeare.txt --out DIR                 one GPU with 80 GB, at most five minutes

All runs are those of dev/bench/llmc_losses.py for d48, from one bfloat16 model file, with the same data in the same order. First our
trainer as it is (seed 0) and with other seeds of its stochastic rounding (dev/bench/roundings.py): how far these come apart is chance. Then
one part at a time is exchanged for another that computes the same with other roundings:

    encoder    the embeddings' gradients are rounded stochastically, as llm.c does, not to nearest
    cudnn      NVIDIA's attention instead of ours
    rows       8 rows at once, not 16: eight sums in bfloat16 for each gradient instead of four (-b 8 would be other data)
    ge2, ge0   the GELU of both passes, or of neither, in cuBLASLt's epilogue, not of the forward pass alone
    r1         the GELU computed again in backward
    first      cuBLASLt's first algorithms instead of the fastest
    fp32       no bfloat16 at all, but for the start (not by default: it needs more than 80 GB, and a minute)

The first table has the losses' differences to the first run, step by step, the seeds' standard deviation (`spread`), and llm.c's
differences. The second asks for llm.c, and for each exchanged part, whether its loss is one more draw from the distribution of the seeds:
(loss - mean of the seeds) / (spread · sqrt(1 + 1/k)), which by chance exceeds the row's bound somewhere in one row of a hundred
(dev/bench/chance.py). Growth is the factor by which the spread grows in a step, from a line through its logarithms.

Writes DIR/table.txt, result.json and what each run has printed. The model file, 3 GB, and the tokens lie in a temporary directory.
"""

import datetime
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dev.bench.against_torch import all_versions
from dev.bench.chance import student_quantile
from dev.bench.llmc_losses import LLMC
from dev.bench.machine import commit, gpus
from dev.bench.process_memory import run_process
from dev.bench.report import table
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.data import __main__ as data
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS, bfloat16_bits
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.training.model_file import write_model_file

FLAGS = "-t 1024 -l 0.0006 -u 700 -q 0.1 -c 0.1 -v 0 -s 0"
USUAL = "-b 16 -d 65536 -r 0 -ge 1 --precision bf16"
# name -> flags of the trainer that replace USUAL's, or of dev.bench.roundings (before the bar)
PARTS = {
    "encoder": "--encoder stochastic |", "cudnn": "| --attention cudnn", "rows": "--rows-at-once 8 |",
    "ge2": "| -ge 2", "r1": "| -r 1", "ge0": "| -ge 0", "first": "| --matmul-search off",
    "fp32": "--rows-at-once 4 | --precision fp32 -r 2 -ge 0",
}  # fmt: skip
BY_DEFAULT = "encoder,cudnn,rows,ge2,r1,ge0,first"
OUTSIDE = 0.01  # how often chance alone makes a row of the second table exceed its bound somewhere


def parse(argv):
    """Parse the command line."""
    parser = Parser(prog="python -m dev.bench.drift", doc=__doc__)
    parser.add_argument("text", type=user_path, help="Tiny Shakespeare")
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    parser.add_argument("--model", default="d48", help="descriptor; beside d48 there are no losses of llm.c (default: d48)")
    parser.add_argument("--usual", default=USUAL, help=f"flags of the usual run (default: {USUAL})")
    parser.add_argument("--flags", default=FLAGS, help=f"flags of all runs (default: {FLAGS})")
    parser.add_argument("--tokenizer", choices=("gpt2", "bytes"), default="gpt2", help="of the text (default: gpt2, as llm.c's)")
    parser.add_argument("--steps", type=int, default=10, help="of each run (default: 10, as many as llm.c's second way has)")
    parser.add_argument("--seeds", type=int, default=5, help="runs with other roundings, at least 2 (default: 5)")
    parser.add_argument("--parts", default=BY_DEFAULT, help=f"to exchange, in this order; '' for none (default: {BY_DEFAULT})")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS", help="parts for which no time is left are omitted")
    arguments = parser.parse_args(argv)
    arguments.parts = [name for name in arguments.parts.split(",") if name]
    if unknown := [name for name in arguments.parts if name not in PARTS]:
        raise UserError(f"--parts takes {', '.join(PARTS)}, got {unknown[0]!r}")
    if arguments.seeds < 2 or arguments.steps < 3:
        raise UserError(f"--seeds must be at least 2 and --steps at least 3, got {arguments.seeds} and {arguments.steps}")
    return arguments


# ------------------------------------------------------------------------------------------------------------------- runs


def write_start(path, model, seq_len):
    """Write the model file that all runs start from: fresh weights of the descriptor `model`, in bfloat16."""
    config = parse_descriptor(model, default_T=seq_len)
    flat, places, start = np.empty(count_parameters(config), BFLOAT16_BITS), {}, 0
    for name, shape in parameter_shapes(config).items():
        places[name] = start
        start += int(np.prod(shape))
    for name, layer, values in draw_initial_weights(config, parameter_shapes(config)):
        first = places[name] + layer * values.size
        flat[first : first + values.size] = bfloat16_bits(values.reshape(-1))
    write_model_file(path, config, flat)


class Drift:
    """All runs. `losses` has name -> array of losses, seed 0 first; `log` has what each process took."""

    def __init__(self, arguments, shard, start, begin):
        """shard: of tokens; start: the model file; begin: when the measurement began, by time.perf_counter."""
        self.arguments, self.shard, self.start, self.begin = arguments, shard, start, begin
        self.losses, self.log = {}, {}

    def seconds(self):
        return time.perf_counter() - self.begin

    def run(self, name, own, flags, seconds):
        """Run dev.bench.roundings with its `own` flags and the trainer's `flags`, both text. Returns the losses of its runs, a list."""
        a = self.arguments
        file, console = a.out / f"{name}.json", a.out / f"{name}.txt"
        file.unlink(missing_ok=True)
        # a flag that is given twice counts the second time
        flags = f"-i {self.shard} -j {self.shard} -e {self.start} {a.flags} -x {a.steps} {a.usual} {flags}".split()
        command = [sys.executable, "-m", "dev.bench.roundings", *own.split(), "--json", str(file), "--", *flags]
        done = run_process(command, console, seconds, None)
        self.log[name] = {"seconds": done["seconds"], "exit_code": done["exit_code"]}
        if not file.exists():
            last = (console.read_text(errors="replace").strip().splitlines() or [""])[-1][-200:]
            print(f"[{self.seconds():5.1f} s] {name}: failed, exit code {done['exit_code']}: {last}", flush=True)
            return []
        runs = [run["losses"] for run in json.loads(file.read_text())["runs"].values()]
        print(f"[{self.seconds():5.1f} s] {name}: {len(runs)} runs in {done['seconds']} s", flush=True)
        return runs

    def measure(self):
        """The seeds, then each part for which there is time."""
        a = self.arguments
        for seed, losses in enumerate(self.run("seeds", f"--seeds {','.join(map(str, range(a.seeds)))}", "", a.budget)):
            self.losses[f"seed {seed}"] = losses
        if len(self.losses) < 2:
            raise UserError(f"the runs with several seeds have failed: see {a.out / 'seeds.txt'}")
        longest = self.log["seeds"]["seconds"] / 2
        for name in a.parts:
            left = a.budget - self.seconds()
            if left < longest:
                print(f"{name} is omitted: {left:.0f} s are left, and a run takes up to {longest:.0f}", flush=True)
                continue
            own, _, flags = PARTS[name].partition("|")
            for losses in self.run(name, f"--seeds 0 {own}", flags, left):
                self.losses[name] = losses
            longest = max(record["seconds"] for part, record in self.log.items() if part != "seeds")


# ----------------------------------------------------------------------------------------------------------------- judgement


def growth(spread):
    """The factor by which `spread` (one figure a step) grows in a step: from a line through the logarithms of those that are not 0."""
    steps = np.flatnonzero(spread > 0)
    return float(np.exp(np.polyfit(steps, np.log(spread[steps]), 1)[0])) if len(steps) > 1 else None


def judge(losses, llmc):
    """Where each run lies among the seeds. losses: name -> list, names of the sample begin with "seed". llmc: name -> list, may be shorter.

    Returns a dict: `spread` of the seeds (by step), their `growth`, and for each other run its `distances` in standard deviations of a
    difference, from the second step on (the first has no update behind it), the `bound` of its distances, and whether they are `within`.
    """
    sample = np.array([values for name, values in losses.items() if name.startswith("seed")])
    mean, spread, count = sample.mean(axis=0), sample.std(axis=0, ddof=1), len(sample)
    scale = np.maximum(spread, 2.0**-23 * mean) * np.sqrt(1 + 1 / count)  # no loss is more exact than float32
    rows = {}
    for name, values in {**llmc, **{name: values for name, values in losses.items() if not name.startswith("seed")}}.items():
        steps = slice(1, min(len(values), len(mean)))
        distances = (np.array(values)[steps] - mean[steps]) / scale[steps]
        bound = student_quantile(OUTSIDE / max(1, len(distances)), count - 1)
        rows[name] = {"distances": distances.tolist(), "bound": bound, "within": bool((abs(distances) <= bound).all())}
    return {"spread": spread.tolist(), "growth": growth(spread[1:]), "runs": rows}


def differences_table(losses, llmc, spread):
    """The first run's losses and all other runs' differences to it, step by step."""
    first, *others = losses
    header = ["step", f"loss, {first}", *others, "spread", *llmc]
    rows = []
    for s, loss in enumerate(losses[first]):
        row = [str(s + 1), f"{loss:.6f}", *(f"{losses[name][s] - loss:+.1e}" for name in others), f"{spread[s]:.1e}"]
        rows.append(row + [f"{values[s] - loss:+.1e}" if s < len(values) else "" for values in llmc.values()])
    return table(header, rows)


def distances_table(judged):
    """Each run's distances to the seeds' mean, step by step."""
    rows = judged["runs"]
    steps = max((len(row["distances"]) for row in rows.values()), default=0)
    header = ["distance at step", *(str(step + 2) for step in range(steps)), "bound", ""]
    lines = []
    for name, row in rows.items():
        cells = [f"{distance:+.1f}" for distance in row["distances"]]
        lines.append([name, *cells, *[""] * (steps - len(cells)), f"{row['bound']:.1f}", "chance" if row["within"] else "MORE THAN CHANCE"])
    return table(header, lines)


def report(losses, llmc):
    """(figures of `judge`, the tables as text)."""
    judged = judge(losses, llmc)
    spread = np.array(judged["spread"])
    lines = [differences_table(losses, llmc, spread), ""]
    if judged["growth"]:
        lines.append(f"the spread of the seeds grows {judged['growth']:.2f} times a step, from {spread[1]:.1e} to {spread[-1]:.1e}")
    both = list(llmc.values())
    if len(both) == 2:
        apart = abs(np.subtract(*(values[: min(map(len, both))] for values in both)))
        judged["growth_of_llmc"] = growth(apart[1:])
        lines.append(f"llm.c's two ways come apart {judged['growth_of_llmc']:.2f} times a step, from {apart[1]:.1e} to {apart[-1]:.1e}")
    return judged, "\n".join([*lines, "", distances_table(judged)])


def measure(argv):
    """Measure as the command line says."""
    arguments, begin = parse(argv), time.perf_counter()
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    llmc = dict(zip(("llm.c", "llm.c, other way"), LLMC["d48"])) if (arguments.model, arguments.usual) == ("d48", USUAL) else {}
    with tempfile.TemporaryDirectory() as scratch:
        # The shard that llm.c's script for Tiny Shakespeare makes.
        tokens = f"--tokenizer {arguments.tokenizer} --split blank-line --val-tokens 32768 --name ts".split()
        if data.main([str(arguments.text), "--out", scratch, *tokens]):
            return 2
        start, seq_len = Path(scratch) / "start.bin", int(arguments.flags.split("-t ")[1].split()[0])
        write_start(start, arguments.model, seq_len)
        drift = Drift(arguments, Path(scratch) / "ts_train_000000.bin", start, begin)
        print(f"[{drift.seconds():5.1f} s] wrote the model file", flush=True)
        drift.measure()
    judged, tables = report(drift.losses, llmc)
    text = f"{(gpus() or ['no GPU'])[0]}; {datetime.datetime.now().astimezone().isoformat(timespec='seconds')}\n\n{tables}"
    print(f"\n{text}")
    (arguments.out / "table.txt").write_text(text + "\n")
    result = {
        "command": "python -m dev.bench.drift " + " ".join(argv), "gpu": gpus(), "commit": commit(), "versions": all_versions(),
        "losses": drift.losses, "llmc": llmc, "judged": judged, "processes": drift.log, "seconds": round(drift.seconds(), 1),
    }  # fmt: skip
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.out} after {drift.seconds():.0f} s")


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake or if the runs have failed, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
