"""Replays on a GPU: a short run with a planted spike, its steps made again to the bit, each layer against other kernels, and a NaN.

    python -m dev.bench.replaying [--model d12] [-b 8] [-t 1024] [--precision bf16] [--against reference,plain,fp32] [--work DIR]

Each part is a command of its own, whose time and last lines are printed. The data are the bytes of the built-in text, as tokens, but for
two rows of noise in the batch of step 9. Exit code 1 if a part does not find what it should. Without a GPU it takes a minute with
--device cpu --precision fp32 -e L=2,NH=2,C=32,V=999 -b 4 -t 16 -l 0.01 --against reference.
"""

import shutil
import subprocess
import sys
import time

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import write_shard

STEPS, SPIKE, MICRO_STEPS = 14, 9, 2
FIRST_OF_NOISE = 257  # noise is of tokens that are no bytes, so that it is unusual after a few steps
SHOWN = 14  # last lines of a part


def parse(argv):
    """The arguments of the command line."""
    parser = Parser(prog="python -m dev.bench.replaying", doc=__doc__)
    parser.add_argument("-e", "--model", default="d12")
    parser.add_argument("-b", type=int, default=8, help="micro-batch (default 8)")
    parser.add_argument("-t", type=int, default=1024, help="tokens of a row (default 1024)")
    parser.add_argument("-l", default="0.001", help="learning rate (default 0.001)")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--against", default="reference,plain,fp32", help="sets of kernels, separated by commas")
    parser.add_argument("--work", type=user_path, default="replaying", help="directory for data and logs (default replaying)")
    return parser.parse_args(argv)


def write_data(arguments):
    """Write shards with noise in rows 1 and 2 of the first micro-batch of step SPIKE."""
    B, T = arguments.b, arguments.t
    train, val = builtin_corpus()
    tokens = np.array(np.resize(train, max(2 * STEPS * MICRO_STEPS * B * T, 1 << 16) + 1), np.uint16)
    loader = DataLoader([tokens], B, T, shuffle=True)
    loader.skip((SPIKE - 1) * MICRO_STEPS + 1)
    first = int(loader.sample_order[loader.current_sample - 1]) * B * T + T
    V = parse_descriptor(arguments.model).V
    tokens[first : first + 2 * T] = np.random.default_rng(1).integers(FIRST_OF_NOISE, V, 2 * T)
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_shard(arguments.work / "train.bin", tokens)
    write_shard(arguments.work / "val.bin", np.array(np.resize(val, 2 * B * T + 1), np.uint16))


class Parts:
    """Runs commands, one after the other. wrong: what they have not found."""

    def __init__(self):
        self.wrong = []

    def run(self, name, *arguments, code=0, expected=()):
        """Run python -m gpt2_numba.`arguments`; its exit code and the texts in its output are checked."""
        begun = time.perf_counter()
        command = [sys.executable, "-m", *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seconds = time.perf_counter() - begun
        print(f"\n== {name}: {seconds:.1f} s, exit code {done.returncode}\n   {' '.join(command[1:])}")
        lines = done.stdout.splitlines()
        print("\n".join(lines if "replay" in arguments[0] else lines[-SHOWN:]), flush=True)
        missing = [text for text in expected if text not in done.stdout]
        if done.returncode != code or missing:
            self.wrong.append(f"{name}: exit code {done.returncode}, expected {code}; missing {missing}")


def run(argv):
    """Run all parts. Returns the exit code."""
    arguments, parts = parse(argv), Parts()
    write_data(arguments)
    work, B, T = arguments.work, arguments.b, arguments.t
    log, nan_log = work / "log", work / "log_nan"
    for directory in (log, nan_log):  # of an earlier time
        shutil.rmtree(directory, ignore_errors=True)
    common = [
        "-i", work / "train.bin", "-j", work / "val.bin", "-e", arguments.model, "-b", B, "-t", T, "-d", MICRO_STEPS * B * T, "-v", 0,
        "-s", 0, "--device", arguments.device, "--precision", arguments.precision,
    ]  # fmt: skip
    parts.run("train", "gpt2_numba.train", *common, "-x", STEPS, "-n", 6, "-u", 2, "-l", arguments.l, "-o", log)
    same_bits = "digit for digit; the last one to the bit"
    parts.run("statistics", "gpt2_numba.replay", log, "--step", SPIKE, expected=[same_bits, " *    0/1 ", " *    0/2 ", "without these"])
    for against in arguments.against.split(","):
        walk = ["--accumulated"] if against == "fp32" else []
        parts.run(
            f"against {against}",
            "gpt2_numba.replay",
            log,
            "--step",
            SPIKE,
            "--against",
            against,
            *walk,
            expected=[same_bits, "within their bounds"],
        )
    parts.run("picture", "gpt2_numba.replay", log, "--steps", f"7:{STEPS}", expected=["wrote "])
    parts.run("train to a NaN", "gpt2_numba.train", *common, "-x", 5, "-u", 0, "-l", "1e13", "-o", nan_log, code=1, expected=["diverged"])
    parts.run(
        "birth of the NaN",
        "gpt2_numba.replay",
        nan_log,
        "--step",
        2,
        expected=["step 2: the first number that is not finite: ", "from finite"],
    )
    print("\n" + ("\n".join(f"WRONG {wrong}" for wrong in parts.wrong) or "all parts have found what they should"))
    return 1 if parts.wrong else 0


def main(argv):
    """The command line. Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
