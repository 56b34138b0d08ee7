"""Our trainer beside PyTorch's (dev/oracle/train_torch.py) on one card: milliseconds a step, tokens a second, memory, losses.

    python -m dev.bench.against_torch --out DIR            d12 and d48, at most 7 minutes; without a GPU a tiny model

Both train the same model on the same tokens in the same order, from the same random weights; they run as processes, one after the other, in
alternating order: ours, PyTorch, PyTorch, ours. Every model has a first round, and a second one if the time that is left is enough for it.
A run for which there is no time left is ended. If PyTorch finds too little memory, its run is repeated with half as many rows in a forward
pass (--rows-at-once, which leaves the order of the data as it is); if it fails otherwise, without compilation.

Milliseconds are the median of a program's steps, of all rounds, without the first three of each run, in which kernels are compiled and
matrix products chosen. GiB is the memory that the process adds to what is in use on the GPU, as the driver counts it, with context and
libraries; without a GPU the most that is resident. Each program's own count is its arena (ours), or the most that PyTorch's allocator has
handed out.

Losses are those of the first round. Two right programs agree within a bound that grows with the gradient (`loss_bounds`). d48 is compared
at a tenth of the learning rate, which does not change its speed: at the full rate the norm of its gradient jumps between 8 and 76, and runs
whose rounding differs come apart, 0.09 at step 14.

Writes DIR/table.txt, DIR/result.json, tokens.bin, and what each run has printed. Exit code 1 if a run has failed, or a loss is out of
bounds.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from dev.bench.machine import commit, gpus, versions
from dev.bench.process_memory import MemoryWatch, run_process
from dev.bench.report import table
from dev.bench.train_speed import STEP
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.data.tokenizers import byte_encoding, encode, gpt2_encoding
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.initial_weights import STD

BUILT_IN_BYTES = 2_000_000  # of the built-in corpus: some 600,000 of GPT-2's tokens
VALIDATION_TOKENS = 32_768  # left out at the front, as in llm.c's Tiny Shakespeare, so that our losses are those of llmc_losses.py
# model -> rows of a micro-batch and tokens of a step, as in README's table; PyTorch's --compile (d48 as a whole would take minutes); -l
USUAL = {"d12": ("64", "524288", "1", "0.0006"), "d48": ("16", "65536", "blocks", "0.00006")}
OTHERS = ("4", "4096", "blocks", "0.0006")
TINY = "L=2,NH=2,C=32,T=32,V=257"
DEFAULTS = {  # on a GPU, on a CPU
    "models": (["d12", "d48"], [TINY]), "precision": ("bf16", "fp32"), "sequence_length": ("1024", "32"), "tokenizer": ("gpt2", "bytes"),
}  # fmt: skip
FLAGS = "-u 700 -q 0.1 -c 0.1 -v 0"
PROGRAMS = {"ours": "gpt2_numba.train", "torch": "dev.oracle.train_torch"}
WARM_UP = 3  # steps of a run that are not timed
GOODBYE_SECONDS = 2  # from the last step to the end of a process
SIGNIFICANT_BITS = {"bf16": 8, "tf32": 11, "fp32": 24}


def parse(argv):
    """Parse the command line. What is not given depends on the device."""
    parser = Parser(prog="python -m dev.bench.against_torch", doc=__doc__)
    parser.add_argument(
        "--models", type=split_models, help=f"descriptors with commas between them, or semicolons where sizes have commas "
        f"(default: d12,d48; CPU: {TINY})",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=15, help=f"steps of a run, more than {WARM_UP} (default: 15)")
    parser.add_argument("--out", type=user_path, help="directory for the results (default: named by date and machine, in dev/bench)")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu" if real_gpu() else "cpu", help="(default: %(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="of both programs (default: bf16; CPU: fp32)")
    parser.add_argument("-b", "--batch-size", metavar="B", help="rows of a micro-batch (default: 64 for d12, 16 for d48, else 4; CPU: 2)")
    parser.add_argument("-t", "--sequence-length", metavar="T", help="tokens of a row (default: 1024; CPU: 32)")
    parser.add_argument(
        "-d",
        "--total-batch-tokens",
        metavar="TOKENS",
        help="tokens of a step (default: 524288 for d12, 65536 for d48, else 4096; CPU: 8 T)",
    )
    parser.add_argument("--compile", choices=("0", "1", "blocks"), help="PyTorch's (default: 1 for d12, blocks for others; CPU: 0)")
    parser.add_argument("--flash", choices=("0", "1", "cudnn"), default="1", help="PyTorch's attention (default: 1)")
    parser.add_argument("--text", type=user_path, help="what to train on, such as Tiny Shakespeare (default: the built-in corpus)")
    parser.add_argument("--tokenizer", choices=("gpt2", "bytes"), help="of the text (default: gpt2; CPU: bytes)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each program and model, at most (default: 2)")
    parser.add_argument("--budget", type=float, default=400, metavar="SECONDS", help="time for all runs (default: 400)")
    arguments = parser.parse_args(argv)
    if arguments.steps <= WARM_UP or arguments.rounds < 1:
        raise UserError(f"--steps must be more than {WARM_UP} and --rounds at least 1, got {arguments.steps} and {arguments.rounds}")
    for name, (on_gpu, on_cpu) in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_gpu if arguments.device == "gpu" else on_cpu)
    return arguments


def split_models(text):
    return text.split(";" if "=" in text else ",")


# --------------------------------------------------------------------------------------------------------------- data


def write_tokens(text, tokenizer, path):
    """Write the training tokens of the file `text` (None: the built-in corpus) to the shard `path`. Returns what they are, in words."""
    encoding = gpt2_encoding() if tokenizer == "gpt2" else byte_encoding()
    name, documents = ("built-in corpus", built_in_documents()) if text is None else (text.name, documents_of(text))
    tokens = np.array([token for document in documents for token in (encoding.eot_token, *encode(encoding, document))], np.uint16)
    tokens = tokens[min(VALIDATION_TOKENS, len(tokens) // 10) :]
    write_shard(path, tokens)
    return f"{name}, {len(tokens):,} tokens ({tokenizer})"


def documents_of(path):
    """The documents of a text file: a blank line ends one, and stays with it, as in llm.c's Tiny Shakespeare."""
    try:
        *before, last = path.read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text must be a readable file in UTF-8, got {str(path)!r} ({error})") from error
    return [document + "\n\n" for document in before] + [last]


def built_in_documents():
    """The first documents of the built-in corpus."""
    tokens = builtin_corpus()[0][:BUILT_IN_BYTES]
    begins = np.flatnonzero(tokens == byte_encoding().eot_token)
    return [part[1:].astype(np.uint8).tobytes().decode("utf-8", "replace") for part in np.split(tokens, begins)[1:]]


# --------------------------------------------------------------------------------------------------------------- runs


def read_console(path):
    """What a run has printed: losses, norms and milliseconds of its steps, its own count of memory (MiB), its last line."""
    text = path.read_text(errors="replace")
    steps = STEP.findall(text)
    own = re.search(r"^  all +([\d.,]+) MiB", text, re.M) or re.search(r"^memory: ([\d,]+) MiB", text, re.M)
    return {
        "losses": [float(loss) for _, loss, *_ in steps],
        "norms": [float(norm) for _, _, norm, _ in steps],
        "step_ms": [float(ms) for *_, ms in steps],
        "own_memory_mib": own and float(own[1].replace(",", "")),
        "last_line": (text.strip().splitlines() or [""])[-1][-200:],
        "out_of_memory": "out of memory" in text.lower(),
    }


class Comparison:
    """All runs of a measurement. `runs` has their results, in order."""

    def __init__(self, arguments, shard):
        self.arguments, self.shard, self.begin, self.runs = arguments, shard, time.perf_counter(), []
        # What PyTorch turned out to be unable to do: model -> rows that fit into memory; models that cannot be compiled.
        self.rows_at_once, self.not_compiled = {}, set()

    def seconds(self):
        return time.perf_counter() - self.begin

    def sizes(self, model):
        """(B, tokens of a step, PyTorch's --compile, learning rate) of a model, as text."""
        a = self.arguments
        B, tokens, compiled, rate = USUAL.get(model, OTHERS)
        if a.device == "cpu":
            B, tokens, compiled = "2", str(8 * int(a.sequence_length)), "0"
        compiled = "0" if model in self.not_compiled else a.compile or compiled
        return a.batch_size or B, a.total_batch_tokens or tokens, compiled, rate

    def significant_bits(self):
        """Of the numbers in matrix products: both programs use TF32 in float32 on a GPU."""
        a = self.arguments
        return SIGNIFICANT_BITS["tf32" if (a.device, a.precision) == ("gpu", "fp32") else a.precision]

    def command(self, program, model):
        """The command line of a run, without Python's path."""
        B, tokens, compiled, rate = self.sizes(model)
        a = self.arguments
        flags = f"-e {model} -b {B} -t {a.sequence_length} -d {tokens} -x {a.steps} -l {rate} {FLAGS}"
        flags += f" --precision {a.precision} --device {a.device}"
        if program == "ours":
            flags += " -r 0 -s 0"
        else:
            flags += f" --compile {compiled} --flash {a.flash}"
            flags += f" --rows-at-once {self.rows_at_once[model]}" if model in self.rows_at_once else ""
        return ["-m", PROGRAMS[program], "-i", str(self.shard), "-j", str(self.shard), *flags.split()]

    def measure(self):
        """All rounds, as far as time allows: first one of every model, each with its share of the time."""
        a = self.arguments
        for index, model in enumerate(a.models):
            self.round(model, 1, (a.budget - self.seconds()) / (len(a.models) - index))
        for number in range(2, a.rounds + 1):
            for model in a.models:
                took, left = (
                    sum(run["seconds"] for run in self.runs if (run["model"], run["round"]) == (model, 1)),
                    a.budget - self.seconds(),
                )
                if took < left:
                    self.round(model, number, left)
                else:
                    print(f"no round {number} of {model}: the first took {took:.0f} s, and {left:.0f} s are left", flush=True)

    def round(self, model, number, seconds):
        """Both programs, in an order that alternates with the round, in so many seconds together."""
        stop = self.seconds() + seconds
        for program in list(PROGRAMS)[:: 1 if number % 2 else -1]:
            result = self.run(program, model, number, stop)
            while program == "torch" and not result["ok"] and self.make_easier(model, result):
                result = self.run(program, model, number, stop)

    def make_easier(self, model, failed):
        """After a failed run of PyTorch's, have the next one take half as many rows, or do without compilation. Returns whether it can."""
        rows = self.rows_at_once.get(model, int(self.sizes(model)[0]))
        if failed["exit_code"] is None:  # it took too long
            return False
        if failed["out_of_memory"] and rows % 2 == 0:
            self.rows_at_once[model] = rows // 2
            print(f"PyTorch again, with {rows // 2} rows at once", flush=True)
        elif not failed["out_of_memory"] and self.sizes(model)[2] != "0":
            self.not_compiled.add(model)
            print("PyTorch again, with --compile 0", flush=True)
        else:
            return False
        return True

    def run(self, program, model, number, stop):
        """One run, which is ended `stop` seconds after the start of the measurement. Returns its result, which is added to `runs`."""
        a, command = self.arguments, self.command(program, model)
        tries = sum((run["model"], run["program"], run["round"]) == (model, program, number) for run in self.runs)
        console = a.out / f"{re.sub('[^0-9A-Za-z]+', '-', model)}_{program}_{number}{'_again' * tries}.txt"
        watch = MemoryWatch() if a.device == "gpu" else None
        result = {"model": model, "program": program, "round": number, "command": "python " + " ".join(command)}
        result |= run_process([sys.executable, *command], console, max(1, stop - self.seconds()), watch)
        end = time.perf_counter()
        result |= read_console(console)
        result["ok"] = result["exit_code"] == 0 and len(result["losses"]) == a.steps
        result["out_of_memory"] = result["out_of_memory"] and not result["ok"]
        timed = result["step_ms"][WARM_UP:]
        if watch and timed:
            result |= watch.between(end - GOODBYE_SECONDS - sum(timed) / 1e3, end - GOODBYE_SECONDS)
        self.runs.append(result)
        outcome = f"{statistics.median(timed):.2f} ms a step" if timed else "no step was timed"
        outcome += "" if result["ok"] else f"; {failure(result)}"
        print(f"[{self.seconds():5.1f} s] {model}, {program}, round {number}, {result['seconds']} s: {outcome}", flush=True)
        return result


def failure(run):
    """Why a run has failed, in words."""
    if run["exit_code"] is None:
        return f"ended after {run['seconds']} s and {len(run['losses'])} steps"
    return "out of memory" if run["out_of_memory"] else f"exit code {run['exit_code']}: {run['last_line']}"


# ------------------------------------------------------------------------------------------------------------- tables


def loss_bounds(losses, norms, significant_bits):
    """How far apart the losses of two right programs may be, step by step, as an array. losses, norms: of one of them, step by step.

    Weights that differ by d make the loss differ by the product of d with its gradient. Ours are rounded stochastically, PyTorch's to
    nearest: errors with variances of 1/6 and 1/12 on average, in units in the last place, together the square of 1/2. With p significant
    bits half a unit is at most 2^-p of the weight. Weights have a standard deviation of 0.02, and the signs of d are random: the losses
    differ by a random number with a standard deviation of 2^-p · 0.02 · norm. Four of these are allowed.

    From the second step on the weights also differ by what they have learnt: gradients are known to about 2^-p of themselves, and so is the
    fall of the loss that they have brought about. Sums in float32 add a few of its roundings in each step, as in
    tests/test_torch_oracle.py, and a printed loss is off by half of its last decimal place, on either side.
    """
    losses, norms, step = np.array(losses), np.array(norms), np.arange(1, len(losses) + 1)
    return 2.0**-significant_bits * (4 * STD * norms + abs(losses[0] - losses)) + 4 * step * 2.0**-24 * losses + 1e-6


def compare_losses(ours, theirs, significant_bits):
    """Where the losses of two programs come nearest to their bounds, or exceed them most. ours, theirs: dicts with losses and norms."""
    count = min(len(ours["losses"]), len(theirs["losses"]))
    differences = np.subtract(ours["losses"][:count], theirs["losses"][:count])
    bounds = loss_bounds(ours["losses"][:count], ours["norms"][:count], significant_bits)
    largest, nearest = np.argmax(abs(differences)), np.argmax(abs(differences) / bounds)
    return {
        "bounds": bounds.round(7).tolist(),
        "largest_difference": {"step": int(largest) + 1, "ours_minus_torch": round(float(differences[largest]), 6)},
        "share_of_bound": {"step": int(nearest) + 1, "share": round(float(abs(differences[nearest]) / bounds[nearest]), 3)},
        "losses_agree": bool((abs(differences) <= bounds).all()),
    }


def summarize(comparison, model):
    """The figures of a model: for each program its speed, memory, losses; how many times as fast ours is; whether the losses agree."""
    B, tokens, compiled, rate = comparison.sizes(model)
    figures = {"B": int(B), "tokens_per_step": int(tokens), "compile": compiled, "learning_rate": float(rate)}
    figures["rows_at_once"] = comparison.rows_at_once.get(model)
    for program in PROGRAMS:
        runs = [run for run in comparison.runs if (run["model"], run["program"]) == (model, program) and run["step_ms"][WARM_UP:]]
        runs = [run for run in runs if not run["out_of_memory"]]
        if not runs:
            continue
        ms = statistics.median(step_ms for run in runs for step_ms in run["step_ms"][WARM_UP:])
        first = {name: runs[0].get(name) for name in ("memory_mib", "own_memory_mib", "sm_clock_mhz", "mean_power_w", "losses", "norms")}
        figures[program] = {
            "median_ms": round(ms, 2),
            "median_ms_of_each_run": [round(statistics.median(run["step_ms"][WARM_UP:]), 2) for run in runs],
            "tokens_per_second": round(int(tokens) / ms * 1e3),
        } | first
    if all(program in figures for program in PROGRAMS):
        figures |= compare_losses(figures["ours"], figures["torch"], comparison.significant_bits())
        figures["times_as_fast"] = round(figures["torch"]["median_ms"] / figures["ours"]["median_ms"], 3)
    return figures


def speed_table(figures):
    """Speed and memory of all models. figures: model -> its figures from summarize."""
    rows = []
    for model, both in figures.items():
        for program in PROGRAMS:
            if program not in both:
                rows.append([model, program, *[""] * 6, "no step was timed"])
                continue
            one = both[program]
            if program == "ours":
                remark = f"{both['times_as_fast']:.3f} times as fast" if "times_as_fast" in both else ""
            else:
                remark = f"--compile {both['compile']}" + (f" --rows-at-once {both['rows_at_once']}" if both["rows_at_once"] else "")
            rows.append([
                model, program, f"{one['median_ms']:.2f}", " ".join(f"{ms:.2f}" for ms in one["median_ms_of_each_run"]),
                f"{one['tokens_per_second']:,}", *(f"{mib / 1024:.2f}" if mib else "" for mib in (one["memory_mib"], one["own_memory_mib"])),
                f"{one['sm_clock_mhz']:.0f} MHz {one['mean_power_w'] or 0:.0f} W" if one["sm_clock_mhz"] else "", remark,
            ])  # fmt: skip
    return table(["model", "program", "ms a step", "each run", "tok/s", "GiB", "own count", "clock, power", ""], rows)


def losses_table(model, both):
    """The losses and norms of a model, step by step, with the differences of the losses and their bounds."""
    if "largest_difference" not in both:
        return f"{model}: no losses to compare"
    columns = (both[program][name] for name in ("losses", "norms") for program in PROGRAMS)
    rows = [
        [str(step), f"{ours:.6f}", f"{torch:.6f}", f"{ours - torch:+.1e}", f"{bound:.1e}", f"{our_norm:.4f}", f"{torch_norm:.4f}"]
        for step, (ours, torch, our_norm, torch_norm, bound) in enumerate(zip(*columns, both["bounds"]), start=1)
    ]
    largest, nearest = both["largest_difference"], both["share_of_bound"]
    return (
        f"{table([f'{model}, step', 'loss, ours', 'torch', 'difference', 'bound', 'norm, ours', 'torch'], rows)}\n"
        f"-l {both['learning_rate']:g}; largest difference of the losses: {largest['ours_minus_torch']:+.1e} in step {largest['step']}; at "
        f"most {nearest['share']:.2f} of its bound, in step {nearest['step']}: the losses "
        f"{'agree' if both['losses_agree'] else 'DO NOT AGREE'}"
    )


def default_folder(arguments):
    """A separate folder for each day, machine and precision."""
    machine = (gpus() or ["GPU"])[0].partition(",")[0].replace("NVIDIA ", "") if arguments.device == "gpu" else "cpu"
    name = re.sub("[^0-9a-z]+", "-", f"{machine}-against-torch-{arguments.precision}".lower())
    return Path(__file__).parent / f"{datetime.date.today()}-{name}"


def all_versions():
    """Versions of both programs' packages."""
    found = versions()
    for package in ("torch", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def measure(argv):
    """Measure as the command line says. Returns the exit code: 1 if a run has failed, or the losses do not agree."""
    arguments, found = parse(argv), all_versions()
    if "torch" not in found:
        raise UserError("this comparison needs PyTorch, which is not installed: pip install -e '.[oracle]'")
    arguments.out = (arguments.out or default_folder(arguments)).absolute()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        data = write_tokens(arguments.text, arguments.tokenizer, arguments.out / "tokens.bin")
    except OSError as error:
        raise UserError(f"--out must be a directory that can be written, got {str(arguments.out)!r} ({error.strerror})") from error
    comparison = Comparison(arguments, arguments.out / "tokens.bin")
    comparison.measure()

    figures = {model: summarize(comparison, model) for model in arguments.models}
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    machine = (gpus() or ["GPU"])[0] if arguments.device == "gpu" else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    sizes = "; ".join(f"{model}: B={both['B']}, {both['tokens_per_step']:,} tokens a step" for model, both in figures.items())
    text = "\n".join([
        f"{machine}; {date}", "; ".join(f"{name} {version}" for name, version in found.items()), data,
        f"{arguments.precision}, T={arguments.sequence_length}; {sizes}; --flash {arguments.flash}",
        f"\n{speed_table(figures)}", *(f"\n{losses_table(model, both)}" for model, both in figures.items()),
    ])  # fmt: skip
    print(f"\n{text}")
    (arguments.out / "table.txt").write_text(text + "\n")
    result = {
        "command": "python -m dev.bench.against_torch " + " ".join(argv), "date": date, "gpu": gpus(), "machine": platform.platform(),
        "commit": commit(), "versions": found, "data": data, "precision": arguments.precision, "models": figures, "runs": comparison.runs,
        "seconds": round(comparison.seconds(), 1),
    }  # fmt: skip
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.out} after {result['seconds']:.0f} s")
    last_tries = {(run["model"], run["program"], run["round"]): run["ok"] for run in comparison.runs}
    return 0 if all(last_tries.values()) and all(both.get("losses_agree") for both in figures.values()) else 1


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
