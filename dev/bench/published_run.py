"""llm.c's published run of GPT-2 1558M, by the same command on N GPUs: speed, memory, equal bits, a kill, another number of GPUs.

    python -m dev.bench.published_run TEXT --gpus 8 --questions data/hellaswag_val.bin --out DIR

The command is the one with which llm.c trained GPT-2 1558M on eight H100 (github.com/karpathy/llm.c/discussions/677), flag for flag. Only
these differ: the data (TEXT, in GPT-2's tokens) and the directory, the last step (-x), when checkpoints are written (-n), whether HellaSwag
is measured (-h), and with other than eight GPUs the tokens of a step (-d), so that every GPU has as many micro-steps as one of eight. Parts:

    straight   all steps: milliseconds a step, tokens a second, MFU, memory; seconds for validation, HellaSwag and a checkpoint
    killed     the same command again; two steps after the first checkpoint one process is killed, and the run is resumed (-y 1).
               Before it goes on, the trainer compares the checkpoint's files with their checksums. All losses and norms, and the checksums
               of the first and the last checkpoint, must be those of `straight`: the same bits, twice
    fewer      from the first checkpoint of `straight`, half as many GPUs, which are killed when they have written a checkpoint of their own;
               from that one all GPUs, to the end. Sums are made in another order now, and of other rows of the text: by how much losses
               differ is printed

Questions are answered in `straight` only, since they change no bit. Beside the measured milliseconds stands what docs/scaling.md's model
predicts from one H200. Writes DIR/table.txt, DIR/result.json and what the processes have printed, after every part. A checkpoint of GPT-2
1558M is 22 GB, and the directory for temporary files (TMPDIR) has to hold twice as many as a run writes. On eight GPUs all of it should take
eight minutes. Exit code 1 if a part does not go as it must, or bits differ.
"""

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dev.bench.against_torch import all_versions
from dev.bench.machine import commit, gpus
from dev.bench.process_memory import ROOT, MemoryWatch
from dev.bench.report import table
from dev.scaling.step import step as modelled_step
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.data import __main__ as data
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.planning.collectives import fabric
from gpt2_numba.planning.figures import NETWORKS
from gpt2_numba.training.checkpoint import checkpoint_files, done_checkpoints, done_file_name, read_done

COMMAND = "-b 16 -t 1024 -r 0 -z 1 -c 0.1 -k cosine -l 0.0006 -q 0.1 -u 700 -ge 1 -y 1 -e d48 -v 250 -s 300000 -g 384"
TOKENS_PER_GPU = 1048576 // 8  # in a step
PUBLISHED = {"ms": 2750.0, "tokens_per_second": 381e3, "mfu": 47.4, "memory": "57 (GB)"}  # 8 H100, llm.c
WARM_UP = 3  # steps of a run that are not timed, if there are more: matrix products are chosen and graphs recorded in them
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
STEP = re.compile(r"step +(\d+)/\d+ \| loss (\S+) .*\| norm (\S+) .*?\| +([\d.]+) ms \| +([\d./na]+).* MFU")
SAVED = re.compile(r"wrote the checkpoint of step (\d+)")
FIRST = "to the first step's line"  # which is printed when the second step is under way
# what the trainer prints when it has done something that is to be timed
TIMED = {"validation": "val loss", "HellaSwag": "HellaSwag:", "checkpoint": "wrote the checkpoint"}


def parse(argv):
    """Parse the command line."""
    parser = Parser(prog="python -m dev.bench.published_run", doc=__doc__)
    parser.add_argument("text", type=user_path, help="a text file, a stand-in for FineWeb-Edu")
    parser.add_argument("--gpus", type=int, default=8, help="processes, each with a GPU, of one host (default: 8)")
    parser.add_argument("--steps", type=int, default=12, help="of a run (default: 12)")
    parser.add_argument("--every", type=int, default=6, help="steps between checkpoints (default: 6)")
    parser.add_argument("--questions", type=user_path, help="HellaSwag, as python -m gpt2_numba.data hellaswag makes it (default: none)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}, straight first (default: all)")
    parser.add_argument(
        "--more", default="", help="further flags of the trainer, such as '--precision fp8'; a later one replaces an earlier"
    )
    parser.add_argument("--tokenizer", choices=("gpt2", "bytes"), default="gpt2", help="of the text (default: gpt2)")
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    arguments = parser.parse_args(argv)
    names, arguments.parts = arguments.parts, arguments.parts.split(",")
    if arguments.parts[0] != "straight" or not set(arguments.parts) <= set(PARTS):
        raise UserError(f"--parts takes some of {', '.join(PARTS)}, straight first, got {names!r}")
    if not 0 < arguments.every <= arguments.steps - 4:
        raise UserError(f"--steps must be at least four more than --every, got {arguments.steps} and {arguments.every}")
    if arguments.gpus < 2:
        raise UserError(f"--gpus must be at least 2, got {arguments.gpus}")
    if MPIRUN is None:
        raise UserError("several processes need mpirun: pip install -e '.[mpi]'")
    return arguments


# ---------------------------------------------------------------------------------------------------------------------- runs


class Run:
    """What one process group has printed: its steps, and the seconds of what it did between them."""

    def __init__(self):
        self.steps = {}  # number -> (loss, norm, ms, MFU), as text and float
        self.seconds = {name: [] for name in (FIRST, *TIMED)}
        self.exit_code, self.was_killed, self.memory_mib, self.own_mib = None, False, None, None

    def read(self, line, seconds, since_last):
        """A line of the console, `seconds` after the start and `since_last` after the line before."""
        if found := STEP.search(line):
            if not self.steps:
                self.seconds[FIRST].append(seconds)
            number, loss, norm, ms, mfu = found.groups()
            self.steps[int(number)] = (loss, norm, float(ms), mfu)
        for name, begin in TIMED.items():
            if line.startswith(begin):
                self.seconds[name].append(since_last)
        if found := re.match(r"  all +([\d.,]+) MiB", line):
            self.own_mib = float(found[1].replace(",", ""))

    def figures(self):
        """Medians of the steps after the first ones, as a dict."""
        timed = list(self.steps.values())[WARM_UP if len(self.steps) > WARM_UP else 0 :]
        mfu = [float(values[3]) for values in timed if values[3][0].isdigit()]
        return {
            "ms": statistics.median(values[2] for values in timed) if timed else None, "mfu": statistics.median(mfu) if mfu else None,
            "memory_mib": self.memory_mib, "own_mib": self.own_mib, "exit_code": self.exit_code,
            "seconds": {name: [round(one, 1) for one in several] for name, several in self.seconds.items()},
            "steps": {number: values[:3] for number, values in self.steps.items()},
        }  # fmt: skip


class Bench:
    """The runs, all of one command, and where their files are."""

    def __init__(self, arguments, scratch):
        self.arguments, self.scratch = arguments, scratch
        self.shards = str(scratch / "text_train_*.bin")
        self.questions = ("-h", "1", "--eval-file", str(arguments.questions)) if arguments.questions else ()
        tokens = TOKENS_PER_GPU * arguments.gpus
        self.flags = f"{COMMAND} -d {tokens} -x {arguments.steps} -n {arguments.every} {arguments.more}".split()
        self.runs, self.outcome = {}, {}
        self.begin = time.perf_counter()

    def flag(self, name):
        """The value of a flag: the last one counts."""
        return self.flags[len(self.flags) - self.flags[::-1].index(name)]

    def say(self, text):
        print(f"[{time.perf_counter() - self.begin:5.1f} s] {text}", flush=True)

    def run(self, name, directory, processes=None, until=None, more=()):
        """Start `processes`; when a printed line fulfils until(line, run), kill one of them. Returns the Run."""
        processes = processes or self.arguments.gpus
        trainer = [sys.executable, "-m", "gpt2_numba.train", "-i", self.shards, "-j", self.shards, *self.flags, "-o", str(directory), *more]
        launch = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(processes)]
        run, watch = Run(), MemoryWatch() if real_gpu() else None
        before = watch.used() if watch else None
        begin = last = time.perf_counter()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(
            [*launch, *trainer], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment, start_new_session=True
        )  # fmt: skip
        try:
            with watch or contextlib.nullcontext(), open(self.arguments.out / f"{name}.txt", "w", buffering=1) as console:
                for line in process.stdout:
                    now = time.perf_counter()
                    console.write(f"{now - begin:7.2f} {line}")
                    run.read(line, now - begin, now - last)
                    last = now
                    if until and until(line, run):
                        run.was_killed, until = kill(trainers(process.pid)[-1:]), None
            run.exit_code = process.wait()
        except BaseException:  # the trainers are in process groups of their own, but in mpirun's session
            kill([process.pid, *trainers(process.pid)])
            process.wait()
            raise
        if watch and before is not None:
            run.memory_mib = round(watch.most_used - before)
        self.runs[name] = run
        self.say(f"{name}: exit code {run.exit_code} after {time.perf_counter() - begin:.1f} s, {len(run.steps)} steps")
        return run


def trainers(group):
    """Process ids of the trainers that mpirun has started in the session `group`, rising."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
            except OSError:  # it has ended meanwhile
                continue
            if session == group and b"gpt2_numba.train" in command and b"-np" not in command:
                found.append(int(entry.name))
    return sorted(found)


def kill(processes):
    """Kill them with SIGKILL. Returns whether there was one."""
    killed = False
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(process, signal.SIGKILL)
            killed = True
    return killed


def link_checkpoint(source, target, step):
    """Give the directory `target` a checkpoint of `source` without copying it: hard links."""
    target.mkdir()
    for path in [*checkpoint_files(source, step), source / done_file_name(step)]:
        os.link(path, target / path.name)


def checksums(directory, step):
    """Name -> checksums of all files of a checkpoint, as written when it was."""
    return read_done(directory, step).files


def straight(bench):
    """The run with which the others are compared."""
    run = bench.run("straight", bench.scratch / "straight", more=bench.questions)
    if run.exit_code:
        raise UserError(f"the first run has failed: see {bench.arguments.out / 'straight.txt'}")


def killed(bench):
    """One process is killed; the command given again finishes the run. Everything must be as in `straight`."""
    first, last = bench.arguments.every, bench.arguments.steps
    directory, undisturbed, outcome = bench.scratch / "killed", bench.runs["straight"], bench.outcome
    before = bench.run("killed", directory, until=lambda _, run: max(run.steps, default=0) == first + 2)
    again = bench.run("again", directory)
    steps = before.steps | again.steps
    outcome["a process was killed"], outcome["exit code of the killed run"] = before.was_killed, before.exit_code
    outcome["it goes on at step"], outcome["exit code of the resumed run"] = min(again.steps, default=None), again.exit_code
    outcome["it should go on at step"] = first + 1
    outcome["steps with other losses or norms"] = [
        number for number, values in undisturbed.steps.items() if number not in steps or values[:2] != steps[number][:2]
    ]
    complete = done_checkpoints(directory)
    outcome["checkpoints with the same checksums"] = {
        step: step in complete and checksums(directory, step) == checksums(bench.scratch / "straight", step) for step in (first, last)
    }  # fmt: skip
    shutil.rmtree(directory)


def fewer(bench):
    """Half of the processes resume from a checkpoint of all, and all from theirs."""
    first, count = bench.arguments.every, bench.arguments.gpus
    directory, undisturbed, outcome = bench.scratch / "fewer", bench.runs["straight"], bench.outcome
    link_checkpoint(bench.scratch / "straight", directory, first)
    saved = lambda line, run: bool(SAVED.match(line)) and bool(run.steps)  # noqa: E731
    half = bench.run(f"on_{count // 2}", directory, count // 2, until=saved, more=("-n", "1"))
    everyone = bench.run(f"on_{count}", directory)
    outcome["steps of fewer"], outcome["then of all"] = sorted(set(half.steps) - set(everyone.steps)), sorted(everyone.steps)
    outcome["steps that should be"] = list(range(first + 1, bench.arguments.steps + 1))
    steps = half.steps | everyone.steps
    differences = [abs(float(steps[n][0]) - float(undisturbed.steps[n][0])) for n in steps]
    outcome["largest difference of a loss"] = max(differences, default=None)
    outcome["exit code at the end"] = everyone.exit_code


PARTS = {"straight": straight, "killed": killed, "fewer": fewer}


# -------------------------------------------------------------------------------------------------------------------- report


def predicted_ms(bench):
    """Milliseconds of a step as docs/scaling.md's model has it, or None if the command is not the published one."""
    if bench.arguments.more or bench.flag("-e") != "d48":
        return None
    n = bench.arguments.gpus
    return modelled_step("d48", n, TOKENS_PER_GPU * n, 1, fabric=fabric(NETWORKS[0])).ms


def tables(bench):
    """What was measured, beside what was published, and what the parts have shown."""
    figures, n = bench.runs["straight"].figures(), bench.arguments.gpus
    tokens = int(bench.flag("-d"))

    def gib(mib):
        return f"{mib / 1024:.1f}" if mib else ""

    ms = figures["ms"]
    rows = [
        [
            f"{n} processes", f"{tokens:,}", f"{ms:,.1f}", f"{tokens / ms * 1000:,.0f}", f"{figures['mfu']}" if figures["mfu"] else "",
            gib(figures["memory_mib"]), gib(figures["own_mib"]),
        ],
    ]  # fmt: skip
    if (modelled := predicted_ms(bench)) is not None:
        rows.append(["the model (docs/scaling.md)", f"{tokens:,}", f"{modelled:,.1f}", f"{tokens / modelled * 1000:,.0f}", "", "", ""])
    p = PUBLISHED
    rows.append(
        ["llm.c, 8 H100, published", "1,048,576", f"{p['ms']:,.1f}", f"{p['tokens_per_second']:,.0f}", f"{p['mfu']}", p["memory"], ""]
    )  # fmt: skip
    header = ["", "tokens a step", "ms a step", "tok/s", "MFU, %", "GiB, first GPU", "GiB, own count"]
    lines = [table(header, rows), ""]
    names = [FIRST, *TIMED]
    seconds = [[name, *(" ".join(f"{one:.1f}" for one in run.seconds[what]) for what in names)] for name, run in bench.runs.items()]
    lines += ["seconds, from a line of the console to the next", table(["run", *names], seconds), ""]
    lines += [f"{name}: {value}" for name, value in bench.outcome.items()]
    return "\n".join(lines)


def failed(outcome):
    """What must not be, as a list of lines."""
    wrong = []
    if outcome.get("steps with other losses or norms"):
        wrong.append("losses or norms differ between two runs of the same command")
    same = outcome.get("checkpoints with the same checksums")
    if same is not None and not all(same.values()):
        wrong.append("checkpoints of two runs of the same command differ, or one is missing")
    if outcome.get("exit code of the killed run") == 0 or not outcome.get("a process was killed", True):
        wrong.append("the run that was to be killed has ended by itself")
    if outcome.get("it goes on at step") != outcome.get("it should go on at step") or outcome.get("exit code of the resumed run", 0) != 0:
        wrong.append("the killed run was not resumed from its checkpoint, or has failed then")
    if "steps that should be" in outcome:
        some, rest = outcome["steps of fewer"], outcome["then of all"]
        if not some or not rest or some + rest != outcome["steps that should be"] or outcome["exit code at the end"] != 0:
            wrong.append("the run on another number of processes has failed, or began elsewhere than at the checkpoint")
    return wrong


def write(bench, argv):
    """Write what there is so far. Returns the table, and what must not be."""
    wrong = failed(bench.outcome)
    training = f"mpirun -np {bench.arguments.gpus} --bind-to none python -m gpt2_numba.train {' '.join(bench.flags)}"
    head = "; ".join(gpus() or ["no GPU"]), datetime.datetime.now().astimezone().isoformat(timespec="seconds"), training, ""
    text = "\n".join([*head, tables(bench), *(line.upper() for line in wrong)])
    (bench.arguments.out / "table.txt").write_text(text + "\n")
    result = {
        "command": "python -m dev.bench.published_run " + " ".join(argv), "training": training, "gpu": gpus(), "commit": commit(),
        "versions": all_versions(), "outcome": bench.outcome, "runs": {name: run.figures() for name, run in bench.runs.items()},
    }  # fmt: skip
    (bench.arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return text, wrong


@contextlib.contextmanager
def sigterm_as_exception():
    """Within the block SIGTERM, as from `timeout`, raises SystemExit, so that processes and files are cleaned up."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def measure(argv):
    """Measure as the command line says. Returns the exit code: 1 if something differs that must not."""
    arguments = parse(argv)
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sigterm_as_exception(), tempfile.TemporaryDirectory() as scratch:
        if data.main([str(arguments.text), "--out", scratch, "--name", "text", "--tokenizer", arguments.tokenizer]):
            return 2
        bench = Bench(arguments, Path(scratch))
        for name in arguments.parts:
            PARTS[name](bench)
            text, wrong = write(bench, argv)
    print(f"\n{text}")
    return 1 if wrong else 0


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake or if the first run has failed, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
