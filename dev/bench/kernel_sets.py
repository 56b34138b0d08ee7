"""Compares the sets of kernels: the same training with each of them, its speed, and how far apart their losses are.

    python -m dev.bench.kernel_sets --out DIR -- FLAGS OF gpt2_numba.train

For instance with `-i ... -j ... -e d12 -b 4 -t 1024 -d 4096 -x 20`. Writes DIR/table.txt, DIR/result.json and the console output and log
of each run. Exit code 1 if the losses of two float32 runs differ by more than the bound.

The bound. The sets add the same terms in different orders, so two float32 runs differ by rounding. A loss near 11 is itself a multiple of
2^-20 = 9.5e-7, and a value is rounded about a hundred times on the way to it (4 products per block, 12 blocks, and as many norms and
sums), each time by at most 2^-24 of its size, at random: together about 10 * 2^-24 of the loss. AdamW divides by the size of the gradient,
so a gradient that is off by a few millionths moves a parameter by a few millionths of a step, except where the gradient is itself near
zero. This grows over 20 steps; a relative difference of 1e-5, 16 times the rounding of the first loss, is allowed at any step.
"""

import datetime
import json
import statistics

from dev.bench.machine import gpus, versions
from dev.bench.train_speed import run
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path

SETS = {  # name -> flags
    "plain": ["--kernels", "plain"],
    "plain, products by cuBLASLt": ["--kernels", "plain,cublaslt", "-f", "0"],
    "fast, fp32": ["--kernels", "fast", "--precision", "fp32", "-f", "0"],
    "fast, fp32 with TF32": ["--kernels", "fast", "--precision", "fp32"],
    "fast, bf16": ["--kernels", "fast", "--precision", "bf16"],
}
COMPARED = "fast, fp32"
IN_FLOAT32 = "plain", "plain, products by cuBLASLt", "fast, fp32"
RELATIVE_BOUND = 1e-5


def compare(argv):
    """Compare as the command line says. Returns the exit code: 1 if losses differ by more than the bound."""
    parser = Parser(prog="python -m dev.bench.kernel_sets", doc=__doc__)
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    parser.add_argument("--sets", default=",".join(map(str, range(len(SETS)))), help="numbers of the sets to run, from 0 (default: all)")
    parser.add_argument("flags", nargs="+", help="flags of gpt2_numba.train, after --")
    arguments = parser.parse_args(argv)
    names = [list(SETS)[int(number)] for number in arguments.sets.split(",")]
    flags = dict(zip(arguments.flags[::2], arguments.flags[1::2]))
    tokens, runs = int(flags["-d"]), {}
    for name in names:
        directory = arguments.out / name.replace(", ", "-").replace(" ", "_")
        directory.mkdir(parents=True, exist_ok=True)
        steps, digest, memory = run([*arguments.flags, *SETS[name]], directory)
        milliseconds = statistics.median(ms for *_, ms in steps[3:])
        runs[name] = {
            "flags": SETS[name], "losses": [float(loss) for _, loss, *_ in steps], "median_ms": milliseconds,
            "tokens_per_second": tokens / milliseconds * 1000, "memory": memory, "parameters_sha256": digest,
        }  # fmt: skip

    right, lines = (
        True,
        [f"{'kernels':<30}{'ms/step':>11}{'tok/s':>11}{'first loss':>12}{'last loss':>12}{'largest diff. to ' + COMPARED:>28}"],
    )
    for name, row in runs.items():
        difference = max(abs(a - b) / b for a, b in zip(row["losses"], runs.get(COMPARED, row)["losses"]))
        row["largest_relative_difference"] = difference
        within = difference <= RELATIVE_BOUND or name not in IN_FLOAT32
        right = right and within
        lines.append(
            f"{name:<30}{row['median_ms']:>11.2f}{row['tokens_per_second']:>11,.0f}{row['losses'][0]:>12.6f}{row['losses'][-1]:>12.6f}"
            f"{difference:>28.1e}" + ("" if within else f"  MORE than {RELATIVE_BOUND}")
        )
    lines.append(
        f"losses of float32 runs may differ by {RELATIVE_BOUND} of their size; {gpus()[0] if gpus() else 'no GPU'}, {datetime.date.today()}"
    )
    table = "\n".join(lines)
    print(table)
    (arguments.out / "table.txt").write_text(table + "\n")
    result = {"command": "python -m gpt2_numba.train " + " ".join(arguments.flags), "date": datetime.date.today().isoformat()}
    result |= {"gpu": gpus(), "versions": versions(), "runs": runs}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0 if right else 1


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(compare, argv)


if __name__ == "__main__":
    main_program(main)
