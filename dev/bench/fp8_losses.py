"""Is fp8 as good? The same training in bf16 and with factors of eight bits: by how much do the losses differ, and is that chance?

    python -m dev.bench.fp8_losses --out DIR --text tinyshakespeare.txt [--variants e5m2,e4m3] -- FLAGS OF gpt2_numba.train

Trainings that differ by roundings come apart, so the measure of chance is bf16 itself, run several times with other noise in its stochastic
rounding (dev/bench/roundings.py): the mean of fp8's losses over the last fifth of the steps may differ from bf16's by what dev/bench/chance.py
allows, which chance alone exceeds once in a hundred comparisons.

Variants, of what layers/fast/float8.py has chosen:

    fp8          as it is
    e5m2, e4m3   the format of the gradients of outputs
    float32      partial sums in float32: no fast accumulation
    float32 backward  the same, of the gradients only

Writes DIR/table.txt and result.json. Exit code 1 if a variant is worse than chance explains.
"""

import contextlib
import datetime
import json
import time
from unittest.mock import patch

import numpy as np

from dev.bench.against_torch import write_tokens
from dev.bench.chance import allowance
from dev.bench.machine import commit, gpus
from dev.bench.report import table
from dev.bench.roundings import Series
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.float8 import FORMATS
from gpt2_numba.layers.fast import float8

OUTSIDE = 0.01  # how often chance alone may exceed the allowance
LAST = 5  # the last fifth of the steps is judged
FEWEST_RUNS = 3
VARIANTS = {
    "fp8": {},
    "e5m2": {"DOUT_FORMAT": FORMATS["e5m2"]},
    "e4m3": {"DOUT_FORMAT": FORMATS["e4m3"]},
    "float32": {"FAST_ACCUMULATION": dict.fromkeys(float8.FAST_ACCUMULATION, False)},
    "float32 backward": {"FAST_ACCUMULATION": {"out": True, "dinp": False, "dweight": False}},
}
USUAL = "-e d12 -b 8 -t 1024 -d 8192 -x 300 -l 0.0006 -u 60 -q 0.1 -c 0.1 -r 0"


@contextlib.contextmanager
def variant(name):
    """A context in which layers/fast/float8.py has the choices of a variant."""
    with patch.multiple(float8, **VARIANTS[name]) if VARIANTS[name] else contextlib.nullcontext():
        yield


def train(flags, precision, seeds):
    """The losses of a training in a precision, (seeds, steps)."""
    begin = time.perf_counter()
    series = Series([*flags, "--precision", precision])
    losses = np.array([series.train(seed)["losses"] for seed in seeds])
    print(f"{precision}: {len(losses)} runs in {time.perf_counter() - begin:.0f} s, last loss {losses[0, -1]:.4f}", flush=True)
    return losses


def last_fifth(losses):
    """The mean loss of each run over the last fifth of its steps. losses (runs, steps)."""
    return losses[:, -max(1, losses.shape[1] // LAST) :].mean(axis=1)


def judge(exact, rounded):
    """A variant's losses (runs, steps) beside bf16's. Returns a dict of figures, in nats per token; worse: beyond what chance explains."""
    difference = last_fifth(rounded).mean() - last_fifth(exact).mean()
    allowed = float(allowance(last_fifth(exact), OUTSIDE))
    return {
        "mean_difference": float(rounded.mean() - exact.mean()), "difference_at_the_end": float(difference), "allowed": allowed,
        "spread_of_bf16": float(last_fifth(exact).std(ddof=1)), "worse": bool(difference > allowed),
        "finite": bool(np.isfinite(rounded).all()),
    }  # fmt: skip


def parse(argv):
    """Parse the command line: (arguments, flags of the training)."""
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, USUAL.split())
    parser = Parser(prog="python -m dev.bench.fp8_losses", doc=__doc__)
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    parser.add_argument("--text", type=user_path, help="what to train on (default: the built-in corpus, as bytes)")
    parser.add_argument("--variants", default="fp8", help=f"with commas between them: {', '.join(VARIANTS)} (default: fp8)")
    parser.add_argument("--runs", type=int, default=5, help=f"of bf16, at least {FEWEST_RUNS} (default: 5)")
    parser.add_argument("--fp8-runs", type=int, default=1, help="of each variant (default: 1)")
    arguments = parser.parse_args(own)
    arguments.variants = arguments.variants.split(",")
    if unknown := set(arguments.variants) - set(VARIANTS):
        raise UserError(f"--variants takes {', '.join(VARIANTS)}, got {', '.join(sorted(unknown))}")
    if arguments.runs < FEWEST_RUNS or arguments.fp8_runs < 1:
        raise UserError(f"--runs must be at least {FEWEST_RUNS} and --fp8-runs at least 1, got {arguments.runs}, {arguments.fp8_runs}")
    return arguments, flags


def measure(argv):
    """Measure as the command line says. Returns the exit code: 1 if a variant is worse than chance explains."""
    arguments, flags = parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shard = arguments.out.absolute() / "tokens.bin"
    data = write_tokens(arguments.text, "gpt2" if arguments.text else "bytes", shard)
    flags = ["-i", str(shard), "-j", str(shard), "-v", "0", "-s", "0", "--device", "gpu", *flags]
    exact, rounded, figures = train(flags, "bf16", range(arguments.runs)), {}, {}
    for name in arguments.variants:
        with variant(name):
            rounded[name] = train(flags, "fp8", range(arguments.fp8_runs))
        figures[name] = judge(exact, rounded[name])
    shard.unlink()
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    rows = [
        [name, f"{one['mean_difference']:+.4f}", f"{one['difference_at_the_end']:+.4f}", f"{one['allowed']:.4f}", f"{one['spread_of_bf16']:.4f}",
         "WORSE" if one["worse"] or not one["finite"] else "as good"]
        for name, one in figures.items()
    ]  # fmt: skip
    header = ["variant", "fp8 - bf16, all steps", "last fifth", "allowed", "spread of bf16", ""]
    text = "\n".join([f"{(gpus() or ['simulator'])[0]}; {date}; {data}", " ".join(flags[8:]), "", table(header, rows)])
    print(f"\n{text}")
    (arguments.out / "table.txt").write_text(text + "\n")
    result = {
        "command": "python -m dev.bench.fp8_losses " + " ".join(argv), "date": date, "commit": commit(), "figures": figures,
        "bf16": exact.round(6).tolist(), "fp8": {name: losses.round(6).tolist() for name, losses in rounded.items()},
    }  # fmt: skip
    (arguments.out / "result.json").write_text(json.dumps(result) + "\n")
    return int(any(one["worse"] or not one["finite"] for one in figures.values()))


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
