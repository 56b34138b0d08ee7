"""How training scales over the GPUs of a host, and how much of the communication is hidden behind computation.

    python -m dev.bench.many_gpus --gpus 1,2 --models d12,d48 --zero 0,1,2 --micro-steps 8,1 --out DIR

For each number of GPUs, model and ZeRO stage it starts that many processes with mpirun. Each trains on random tokens as in real training
(CUDA graphs, losses reported one step late), with several micro-steps per step and with one. Then come the same steps without messages, and
the messages without the steps: the time that messages add to a step is exposed, the rest of theirs is hidden. "1" runs on all GPUs at the
same time, one independent process per GPU: cards of the same kind differ by some percent, and together they run at the pace of the
slowest. Writes DIR/result.json and DIR/table.txt.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from unittest.mock import patch

import numpy as np

from dev.bench.machine import commit, gpus, versions
from dev.bench.trainer import MAX_NORM, Trainer
from gpt2_numba import fused_layer_order
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import ONCE, count_parameters, parameter_shapes, parse_descriptor

BATCH = {"d12": 64, "d24": 32, "d36": 32, "d48": 16}  # per GPU, as in llm.c's runs; T = 1024
T = 1024
SECONDS = 6.0  # of measured steps, at least 3; as much again to warm up
MESSAGES_REPEATED = 5


class SwitchableGroup:
    """A group whose messages can be switched off: then each rank continues with its own data."""

    def __init__(self, group):
        self._group, self.on = group, True

    def __getattr__(self, name):
        return getattr(self._group, name)

    def begin(self):
        if self.on:
            self._group.begin()

    def end(self):
        if self.on:
            self._group.end()

    def all_reduce(self, arrays):
        if self.on:
            self._group.all_reduce(arrays)

    def reduce_scatter(self, pieces):
        if self.on:
            self._group.reduce_scatter(pieces)

    def all_gather(self, pieces):
        if self.on:
            self._group.all_gather(pieces)


class Runner:
    """The model of one process, and the ways to step it."""

    def __init__(self, group, name, zero_stage, B=None):
        self.group, self.config, self.B = SwitchableGroup(group), parse_descriptor(name), B or BATCH[name]
        self.trainer = Trainer(
            self.config, self.B, T, 1, weights=self._weights(), seed=2 + group.rank, precision="bf16", recompute=0, gelu_fusion=2,
            group=self.group, zero_stage=zero_stage,
        )  # fmt: skip
        self.model = self.trainer.model

    def _weights(self):
        """Weights as large as at the start of training; all layers have the same, since drawing them all takes longer than measuring."""
        random = np.random.default_rng(1)
        for tensor, shape in parameter_shapes(self.config).items():
            one = 0.02 * random.standard_normal(shape if tensor in ONCE else shape[1:], np.float32)
            one += 1 if tensor in ("ln1w", "ln2w", "lnfw") else 0
            for layer in range(1 if tensor in ONCE else self.config.L):
                yield tensor, layer, one

    def step(self, micro_steps):
        """One step. Returns its Measurement."""
        self.trainer.micro_steps = micro_steps
        return self.trainer.queue_step()

    def time_steps(self, seconds, micro_steps, messages=True):
        """Run for about `seconds`, after as long to warm up. Returns the milliseconds of each step, the last loss and norm."""
        from gpt2_numba.gpu.graph import Graphs

        self.group.on = messages
        with patch.object(self.model, "graphs", Graphs(True)):
            for _ in range(2):  # launched, then recorded
                self.step(micro_steps).wait()
            begin = self.model.moment()
            self.step(micro_steps).wait()
            one = self.model.moment().seconds_since(begin)
            count = max(3, *self.group.gather(round(seconds / one)))
            moments, waiting = [self.model.moment()], None
            for _ in range(2 * count):
                result = self.step(micro_steps)
                moments.append(self.model.moment())
                if waiting:
                    waiting.wait()
                waiting = result
            loss, norm, _ = waiting.wait()
        self.group.on = True
        times = [1000 * after.seconds_since(before) for before, after in zip(moments, moments[1:])]
        return times[count:], loss, norm

    def messages_alone(self, micro_steps):
        """Milliseconds of the messages of a step alone: gradients, norm and parameters."""
        from gpt2_numba.gpu.graph import Graphs

        model, graphs = self.model, Graphs(True)

        def messages():
            for micro_step in range(micro_steps):
                last = micro_step + 1 == micro_steps
                for layer in reversed(range(self.config.L)):
                    model.gradients.layer_done(layer, last)
                model.gradients.all_done(last)
            model._measure(MAX_NORM)
            fused_layer_order._update(model, dict(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0))

        def nothing(*arguments, **named):
            pass

        with (
            patch.object(fused_layer_order, "adamw_update", nothing),
            patch("gpt2_numba.layers.fast.residual.residual_forward", nothing),
            patch("gpt2_numba.parallel.gradients.zero", nothing),
        ):
            for _ in range(3):  # launched, recorded, replayed
                graphs.run("messages", messages)
            begin = model.moment()
            for _ in range(MESSAGES_REPEATED):
                graphs.run("messages", messages)
            return 1000 * model.moment().seconds_since(begin) / MESSAGES_REPEATED


def measure(name, zero_stage, micro_steps, seconds, log_dir, B=None):
    """Run one of the processes started by mpirun; the first prints the results as JSON."""
    from dataclasses import replace

    from gpt2_numba.gpu.arena import free_gpu_bytes
    from gpt2_numba.parallel.start import join
    from gpt2_numba.training.preparation import choose_matmuls
    from gpt2_numba.training.settings import SHARD_DEFAULTS

    settings = replace(SHARD_DEFAULTS, device="gpu", log_dir=log_dir, hang_timeout=120)
    group = join(settings, "gpu")
    runner = Runner(group, name, zero_stage, B)
    choose_matmuls(settings, runner.model)
    rows = []
    for count in micro_steps:
        times, loss, norm = runner.time_steps(seconds, count)
        row = {
            "model": name, "gpus": group.ranks, "zero_stage": zero_stage, "micro_steps": count, "B": runner.B, "T": T,
            "step_ms": statistics.median(times), "steps": len(times), "step_ms_range": [min(times), max(times)], "loss": loss, "norm": norm,
            "tokens_per_second": group.ranks * count * runner.B * T / statistics.median(times) * 1000,
            "arena_gib": runner.model.arena.nbytes / 2**30, "free_gib": free_gpu_bytes() / 2**30,
        }  # fmt: skip
        if group.ranks > 1:
            silent, _, _ = runner.time_steps(seconds, count, messages=False)
            row["without_messages_ms"] = group.gather(statistics.median(silent))  # by rank: the slowest sets the pace
            row["messages_alone_ms"] = runner.messages_alone(count)
            row["exposed_ms"] = row["step_ms"] - max(row["without_messages_ms"])
        rows.append(row)
    if group.rank == 0:
        print("ROWS " + json.dumps(rows), flush=True)
    group.close()


def results_table(rows):
    """The results as text. Shares of the GPUs' summed single speeds, and of N times the slowest, with the same micro-steps."""
    lines = [
        "model  GPUs  -z  micro-steps  tokens / step  ms / step      tok/s  of the summed GPUs  of N x slowest  without messages, ms  "
        "messages, ms  exposed, ms  memory, GiB"
    ]
    for row in rows:
        tokens = row["gpus"] * row["micro_steps"] * row["B"] * row["T"]
        alone = [
            one["tokens_per_second"] for one in rows if one["gpus"] == 1 and all(one[key] == row[key] for key in ("model", "micro_steps"))
        ]
        shares, messages = f"{'':>18}  {'':>14}", f"{'':>20}  {'':>12}  {'':>11}"
        if row["gpus"] > 1 and len(alone) >= row["gpus"]:
            alone = alone[: row["gpus"]]
            shares = f"{row['tokens_per_second'] / sum(alone):18.1%}  {row['tokens_per_second'] / (len(alone) * min(alone)):14.1%}"
        if row["gpus"] > 1:
            silent = " ".join(f"{ms:.2f}" for ms in row["without_messages_ms"])
            messages = f"{silent:>20}  {row['messages_alone_ms']:12.2f}  {row['exposed_ms']:11.2f}"
        lines.append(
            f"{row['model']:<5}  {row['gpus']:4}  {row['zero_stage']:2}  {row['micro_steps']:11}  {tokens:13,}  {row['step_ms']:9.2f}  "
            f"{row['tokens_per_second']:9,.0f}  {shares}  {messages}  {row['arena_gib']:11.1f}"
        )
    return "\n".join(lines)


def run(argv):
    """Measure as the command line says. Returns the exit code: 1 if a run fails."""
    integers = lambda text: [int(number) for number in text.split(",")]  # noqa: E731
    parser = Parser(prog="python -m dev.bench.many_gpus", doc=__doc__)
    parser.add_argument("--gpus", type=integers, default=[1, 2], help="numbers of GPUs [1,2]")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["d12", "d48"], help=f"of {', '.join(BATCH)} [d12,d48]")
    parser.add_argument("--zero", type=integers, default=[0, 1, 2], help="ZeRO stages, on several GPUs [0,1,2]")
    parser.add_argument("--micro-steps", type=integers, default=[8, 1], help="micro-steps per step [8,1]")
    parser.add_argument("--batch", type=int, help="micro-batch per GPU [the usual one of each model]")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"duration of each measurement [{SECONDS:g}]")
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    parser.add_argument("--process", help=argparse.SUPPRESS)  # MODEL,STAGE: run as one of mpirun's processes
    arguments = parser.parse_args(argv)
    if arguments.process:
        name, zero_stage = arguments.process.split(",")
        measure(name, int(zero_stage), arguments.micro_steps, arguments.seconds, arguments.out, arguments.batch)
        return 0

    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, failed = [], 0
    for name in arguments.models:
        for count in arguments.gpus:
            for zero_stage in arguments.zero if count > 1 else [0]:
                found = _start(arguments, name, count, zero_stage)
                rows, failed = rows + found, failed + (not found)
                print(results_table(rows), flush=True)
                _write(arguments.out, argv, rows)
    return 1 if failed else 0


def _start(arguments, name, count, zero_stage):
    """The rows of `count` processes, or of an independent process on each GPU if count is 1; [] if one fails."""
    program = [sys.executable, "-m", "dev.bench.many_gpus", "--process", f"{name},{zero_stage}", "--seconds", str(arguments.seconds)]
    program += ["--batch", str(arguments.batch)] if arguments.batch else []
    program += ["--micro-steps", ",".join(map(str, arguments.micro_steps)), "--out", str(arguments.out)]
    together = [(["mpirun", "--allow-run-as-root", "--bind-to", "none", "-np", str(count), *program], {})]
    apart = [(program, {"CUDA_VISIBLE_DEVICES": str(gpu)}) for gpu in range(max(arguments.gpus))]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **more})
        for command, more in (together if count > 1 else apart)
    ]
    rows = []
    for process in running:
        output, _ = process.communicate()
        found = [json.loads(line[5:]) for line in output.splitlines() if line.startswith("ROWS ")]
        if process.returncode or not found:
            print(f"{name} on {count} GPUs with -z {zero_stage} failed, exit code {process.returncode}:\n{output[-4000:]}", flush=True)
            return []
        rows += found[0]
    return rows


def _write(directory, argv, rows):
    result = {
        "command": "python -m dev.bench.many_gpus " + " ".join(argv),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "gpu": gpus(),
        "versions": versions(),
        "parameters": {row["model"]: count_parameters(parse_descriptor(row["model"])) for row in rows},
        "rows": rows,
    }
    (directory / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (directory / "table.txt").write_text(results_table(rows) + "\n")


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
