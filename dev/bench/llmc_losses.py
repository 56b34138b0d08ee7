"""The losses of a training beside those of llm.c, step by step: same weights, same data in the same order, on one GPU.

    python -m dev.bench.llmc_losses tinyshakespeare.txt --out DIR            d12 and d48 in bf16, fifteen steps each; two minutes

llm.c's figures were measured once (f1e2ace, one H200, with cuDNN's attention) and are below, in two ways: with a deterministic backward of
attention, as it ships, and with one that is not. The difference between the two is llm.c's own noise. The file is Tiny Shakespeare, 1.1 MB.
"""

import json
import re
import subprocess
import sys

from dev.bench.machine import gpus
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.data import __main__ as data
from gpt2_numba.errors import UserError

FLAGS = "-t 1024 -r 0 -ge 1 -l 0.0006 -u 700 -q 0.1 -c 0.1 -v 0 -s 0 -x 15"
SIZES = {"d12": "-b 64 -d 524288", "d48": "-b 16 -d 65536"}

# model -> the loss of each step from 1 on: as llm.c ships, and with a backward of attention that is not deterministic
LLMC = {
    "d12": (
        (10.991186, 10.916956, 10.771996, 10.572298, 10.353497, 10.146988, 9.965904, 9.810883, 9.679199, 9.568344, 9.470221, 9.384019,
         9.308596, 9.236208, 9.169533),
        (10.991186, 10.916937, 10.771985, 10.572319, 10.353496, 10.146992, 9.965891, 9.810886, 9.679194, 9.568333, 9.470219, 9.384011,
         9.308599, 9.236180, 9.169538),
    ),
    "d48": (
        (11.273589, 10.439054, 9.564305, 9.197010, 8.937980, 8.824731, 8.839705, 8.563349, 8.452837, 8.384636, 8.283506, 8.271421,
         8.179222, 8.016476, 8.001557),
        (11.273589, 10.439006, 9.564369, 9.196844, 8.937796, 8.824718, 8.839042, 8.563580, 8.453276, 8.383651),
    ),
}  # fmt: skip


def losses(model, shard):
    """The losses of the steps of our training."""
    flags = f"-i {shard} -j {shard} -e {model} {SIZES[model]} {FLAGS}".split()
    done = subprocess.run([sys.executable, "-m", "gpt2_numba.train", *flags], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the training of {model} ended with code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return [float(loss) for loss in re.findall(r"^step +\d+/\d+ \| loss +([\d.]+)", done.stdout, re.M)]


def table(model, ours):
    """The losses as rows of Markdown."""
    shipped, other = LLMC[model]
    rows = [f"| {model}, step | ours | llm.c | difference | llm.c, its two ways |", "| --- | --- | --- | --- | --- |"]
    for step, (mine, theirs) in enumerate(zip(ours, shipped), start=1):
        noise = f"{other[step - 1] - theirs:+.1e}" if step <= len(other) else ""
        rows.append(f"| {step} | {mine:.6f} | {theirs:.6f} | {mine - theirs:+.1e} | {noise} |")
    return "\n".join(rows)


def measure(argv):
    """Measure as the command line says."""
    parser = Parser(prog="python -m dev.bench.llmc_losses", doc=__doc__)
    parser.add_argument("text", type=user_path, help="Tiny Shakespeare")
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    parser.add_argument("--models", default="d12,d48", help="(default: d12,d48)")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    # The shard that llm.c's script for Tiny Shakespeare makes.
    tokens = "--tokenizer gpt2 --split blank-line --val-tokens 32768 --name ts".split()
    if data.main([str(arguments.text), "--out", str(arguments.out), *tokens]):
        return 2
    shard = arguments.out / "ts_train_000000.bin"
    results = {"gpu": gpus(), "flags": FLAGS}
    for model in arguments.models.split(","):
        if model not in SIZES:
            raise UserError(f"--models takes {' and '.join(SIZES)}, got {model}")
        results[model] = losses(model, shard)
        print(table(model, results[model]), flush=True)
    (arguments.out / "losses.json").write_text(json.dumps(results, indent=2) + "\n")


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
