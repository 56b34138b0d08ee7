"""Make a step of a run again, to the bit, and look at every layer of it: python -m gpt2_numba.replay LOGDIR --step S

    python -m gpt2_numba.replay log --step 131                      statistics of every layer, the rows of the batch, what has grown
    python -m gpt2_numba.replay log --step 131 --against reference  each layer by another set of kernels, too: what is wrong, and where
    python -m gpt2_numba.replay log --steps 90:140                  a picture of the layers, LOGDIR/replay_90_140.png

Steps are counted from 1, as the console prints them. Nothing is written but the picture and the files that are asked for.
Exit code: 0; 1 if a step differs from the log, or a tensor leaves its bound; 2 for a mistake of the user's, reported in one line.
"""

import json
import math
import warnings
from argparse import ArgumentTypeError
from types import SimpleNamespace

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import count_parameters
from gpt2_numba.gpu.backend import device_name
from gpt2_numba.plotting.curves import matplotlib_alone, save_figure, write_whole
from gpt2_numba.plotting.layers import STATISTICS, layers_figure
from gpt2_numba.plotting.runs import Run
from gpt2_numba.progress import Progress
from gpt2_numba.replaying import tables
from gpt2_numba.replaying.comparing import compare_walks
from gpt2_numba.replaying.other_kernels import CHOICES, OnHost, open_other, side_of
from gpt2_numba.replaying.recorded import RecordedRun, as_logged
from gpt2_numba.replaying.rerun import Rerun
from gpt2_numba.replaying.rows import by_norm, rows_of, unusual
from gpt2_numba.replaying.statistics import StepStatistics, by_layer

COMPARED_TOKENS = 1024  # --against walks through as many rows, by default: at least one
ROUNDING_OF_SUMS = {"fp32": 1e-3, "bf16": 3e-2}  # relative, between one process and several: what their roundings may grow to


class Replay:
    """Steps of a run that are made again, the last ones watched."""

    def __init__(self, recorded, first, last):
        """recorded: a RecordedRun. first, last: the steps that are watched. Raises UserError if they cannot be made."""
        self.recorded = recorded
        for step in (first, last):
            recorded.check_step(step)
        recorded.check_one_run(first - 1, last)
        self.rerun = Rerun(self.recorded, first)
        self.first, self.last = first, last
        self.steps, self.statistics, self.differing = [], {}, []
        self.compared_with_log = self.exact = 0
        self.farthest = 0.0  # relative difference from the log, of a run by several processes
        self.born = None
        self.rows = []  # of the last step

    def make(self):
        """Make all steps; the last one without its update. `steps` has those that were watched, `statistics` theirs by number."""
        rerun = self.rerun
        with Progress("making steps again", self.last - rerun.done, "steps") as progress:
            while rerun.done < self.last:
                number = rerun.done + 1
                watch = StepStatistics(rerun.model) if number >= self.first else None
                step = rerun.make_step(watch, update=number < self.last)
                self._check(step)
                progress.advance()
                if watch:
                    self.steps.append(step)
                    self.statistics[number] = watch.finish()
                    self.born = self.born or watch.not_finite and f"step {number}: {watch.not_finite}"
                if number == self.last:
                    break

    def _check(self, step):
        """Compare a step with the log."""
        logged = self.recorded.logged.get(step.number)
        if logged is None:
            return
        self.compared_with_log += 1
        pairs = [(step.loss, logged[0]), (step.norm, logged[1])]
        if self.rerun.ranks > 1:
            apart = max(0.0 if str(mine) == str(other) else abs(mine - other) / abs(other) for mine, other in pairs)
            self.farthest = max(self.farthest, apart)
            same = apart <= ROUNDING_OF_SUMS[self.rerun.model.options.precision]
        else:
            same = all(as_logged(mine, other, self.recorded.digits) for mine, other in pairs)
            exact = self.recorded.exact(step.number) if step.number == self.last else None
            self.exact += exact is not None
            same = same and (exact is None or exact == (step.loss, step.norm))
        if not same:
            self.differing.append(
                f"step {step.number}: loss {step.loss:.9g}, in the log {logged[0]:.9g}, norm {step.norm:.9g}, {logged[1]:.9g}"
            )

    def agreement(self):
        """A line on how the steps made again agree with the log."""
        rerun, count = self.rerun, self.compared_with_log
        begin = f"the checkpoint of step {rerun.starts_at}" if rerun.starts_at else "the start of the run"
        made = f"{self.last - rerun.starts_at} step{'s' * (self.last - rerun.starts_at != 1)} from {begin}"
        if not count:
            return f"{made}; the log has nothing to compare with"
        if self.differing:
            return f"{made}: {len(self.differing)} DIFFER from the log, the first is {self.differing[0]}"
        if rerun.ranks > 1:
            return f"{made}, by one process instead of {rerun.ranks}: losses and norms agree with the log within {self.farthest:.1e}, not to the bit"
        return f"{made}: losses and norms as logged, digit for digit{'; the last one to the bit (a later checkpoint has it)' * bool(self.exact)}"


# ---------------------------------------------------------------------------------------------------------- one step


def explain_step(replay, arguments):
    """Print what there is to say about the last step. Returns facts for --json."""
    rerun, step = replay.rerun, replay.steps[-1]
    found, before = replay.statistics[step.number], replay.statistics.get(step.number - 1, {})
    if replay.born:
        print(f"\n{replay.born}")
    rows = replay.rows = rows_of(step, rerun.row_norms(step))
    usual = replay.steps[-2].row_losses if len(replay.steps) > 1 else step.row_losses
    odd = unusual(rows, usual)
    print(f"\n{tables.rows_table(rows, {row.number for row in odd}, rerun.encoding)}")
    facts = {"unusual_rows": [row.number for row in odd]}
    if odd and math.isfinite(step.loss):
        without = rerun.loss_and_norm_without(step, {row.number for row in odd})
        whose = f"th{'ese' if len(odd) > 1 else 'is'} {f'{len(odd)} rows' if len(odd) > 1 else 'row'}"
        print(f"without {whose} the step has loss {without[0]:.6f}, norm {without[1]:.4f}" if without else "all rows are unusual")
        facts["without_unusual_rows"] = without
    print()
    for line in tables.growth_lines(found, before) if before else ["the step before is not compared: the checkpoint comes after it"]:
        print(line)
    print(tables.layers_table(found, before, arguments.statistic.replace("-", "_")))
    if arguments.all:
        print(f"\n{tables.all_table(found)}")
    return facts


def compare_step(replay, arguments):
    """Walk through the rows with the largest gradients by both sets of kernels, and print the verdicts. Returns [Compared]."""
    step, model = replay.steps[-1], replay.rerun.model
    other = open_other(arguments.against, model)
    rows = by_norm(replay.rows)
    count = min(arguments.rows or max(1, COMPARED_TOKENS // model.T), len(rows), model.B)
    chosen = rows[:count]
    batch = tuple(np.array([getattr(row, name) for row in chosen]) for name in ("inputs", "targets"))
    found = compare_walks(model, batch, other, parts=len(rows) / count, accumulated=arguments.accumulated)
    sides = (other, OnHost()) if other.own is not None else (side_of(model), other)
    which = f"row{'s' * (count > 1)} {', '.join(row.label for row in chosen[:4])}{', ...' * (count > 4)}"
    shown = "every block" if arguments.all else "the worst block of each tensor"
    print(f"\n{sides[0].label} against {sides[1].label}, each layer on the same input: {which} of step {step.number}, {shown}")
    print(tables.compared_table(found, arguments.all))
    print("\n".join(tables.verdict_lines(found)))
    return found


# ------------------------------------------------------------------------------------------------------- the picture


def draw_layers(replay, path, statistic):
    """The heat maps of python -m gpt2_numba.plot --layers, of the steps made again."""
    statistics = [(number, by_layer(found)) for number, found in sorted(replay.statistics.items())]
    run = Run(replay.recorded.directory.resolve().name, replay.recorded.directory, {}, SimpleNamespace(statistics=statistics, headers=[]))
    with matplotlib_alone():
        title = f"{run.name}, steps {replay.first} to {replay.last}"
        save_figure(layers_figure(run, "steps", statistic, title=title), path)
    print(f"wrote {path}")


# --------------------------------------------------------------------------------------------------- the command line


def parse(argv):
    """The arguments of the command line."""
    parser = Parser(prog="python -m gpt2_numba.replay", doc=__doc__, allow_abbrev=False)
    parser.add_argument("logdir", metavar="LOGDIR", type=user_path, help="the log directory of a run (its -o)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", metavar="S", type=_step, help="the step to replay, as the console counts them, from 1")
    which.add_argument("--steps", metavar="A:B", type=_steps, help="the same of step B, and a picture of the layers in the steps A to B")
    parser.add_argument("--against", metavar="SET", help=f"compare each layer with another set of kernels: {CHOICES}")
    parser.add_argument(
        "--rows",
        metavar="N",
        type=_step,
        help=f"rows that --against compares, largest gradient first (default: {COMPARED_TOKENS:,} tokens, at least one)",
    )
    parser.add_argument(
        "--accumulated",
        action="store_true",
        help="also let the other set go on with its own results: how the difference grows (needs memory)",
    )
    parser.add_argument("--statistic", choices=list(STATISTICS), default="rms", help="what the table of layers shows (default rms)")
    parser.add_argument("--all", action="store_true", help="every tensor of every block, all four statistics")
    parser.add_argument("--out", metavar="FILE", type=_picture, help="the picture, PNG or SVG (default LOGDIR/replay_A_B.png)")
    parser.add_argument("--json", metavar="FILE", type=user_path, help="also write all of it to FILE, as JSON")
    return parser.parse_args(argv)


def _step(text):
    if not text.isdecimal() or not 1 <= int(text[:10]) <= 10**9:
        raise ArgumentTypeError(f"a whole number of at least 1 is needed, got {text[:40]!r}")
    return int(text[:10])


def _steps(text):
    first, colon, last = text.partition(":")
    if not colon or _step(first) > _step(last):
        raise ArgumentTypeError(f"two steps A:B with A <= B are needed, such as 90:110, got {text[:40]!r}")
    return _step(first), _step(last)


def _picture(text):
    path = user_path(text)
    if path.suffix.lower() not in (".png", ".svg"):
        raise ArgumentTypeError(f"a picture ends in .png or .svg, got {text!r}")
    return path


def run(argv):
    """Replay what the command line asks for. Returns the exit code."""
    arguments = parse(argv)
    warnings.filterwarnings("ignore", "(overflow|invalid value|divide by zero) encountered", RuntimeWarning)  # the report says it better
    recorded = RecordedRun(arguments.logdir)
    first, last = arguments.steps or (arguments.step, arguments.step)
    recorded.check_step(last)
    if not arguments.steps and recorded.can_begin_before(last - 1):
        first = last - 1  # to compare with
    replay = Replay(recorded, first, last)
    model = replay.rerun.model
    if arguments.against:
        open_other(arguments.against, model)  # complain before the work
    print(f"{arguments.logdir}: {model.config}, {count_parameters(model.config):,} parameters, {model.options.precision}, kernels "
          f"{model.kernels.name}, {device_name() if model.options.device == 'gpu' else 'CPU'}")  # fmt: skip
    replay.make()
    print(replay.agreement())
    for remark in replay.rerun.remarks:
        print(f"the data have changed since the checkpoint: {remark}")
    for step in replay.steps[-2:]:
        print(tables.step_line(step, step.number in recorded.logged))
    facts = explain_step(replay, arguments)
    compared = compare_step(replay, arguments) if arguments.against else []
    if arguments.steps:
        draw_layers(replay, arguments.out or arguments.logdir / f"replay_{first}_{last}.png", arguments.statistic)
    if arguments.json:
        _write_json(arguments.json, replay, facts, compared)
    return 1 if replay.differing or not all(one.row.ok for one in compared) else 0


def _write_json(path, replay, facts, compared):
    steps = [
        {
            "step": step.number,
            "loss": step.loss,
            "norm": step.norm,
            "rows": step.row_losses.tolist(),
            "statistics": by_layer(replay.statistics[step.number]),
        }
        for step in replay.steps
    ]
    rows = [
        {"tensor": one.tensor.name, "block": one.tensor.block, "function": one.function, "difference": one.row.error, "bound": one.row.bound,
         "ok": bool(one.row.ok), "accumulated": one.accumulated}
        for one in compared
    ]  # fmt: skip
    contents = {"agrees_with_log": not replay.differing, "not_finite": replay.born, "steps": steps, "compared": rows} | facts
    write_whole(path, json.dumps(_without_infinity(contents), allow_nan=False, indent=1).encode() + b"\n")


def _without_infinity(value):
    """The value with floats that JSON has not as strings."""
    if isinstance(value, dict):
        return {name: _without_infinity(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main(argv):
    """The command line. Returns the exit code; a user's mistake is reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
