"""A drill for resuming: a training that is killed again and again must end with the bits of an undisturbed one.

    python -m dev.kill_drill                  20 kills, on the CPU, one to two minutes
    python -m dev.kill_drill --kills 100 --seed 7 -- --device gpu --precision bf16

A small training runs once undisturbed. Then the same training runs in another directory and is killed with SIGKILL at random moments: while
it starts, during a step, while it writes a checkpoint. Each time it is resumed with -y 1. If it ends before there were enough kills,
another run starts. At the end all files of the last checkpoint (parameters, AdamW's averages, position in the data, outlier windows) are
compared byte by byte. Flags after -- are added to those of the training. Exit code: 0 if all bits are equal, 1 if not or if a training
failed.
"""

import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.training.checkpoint import complete_checkpoints

V = 101
# Two shards of 6 and 8 samples: a new epoch, with a new order, every 7 steps of two micro-batches. A checkpoint every other step, so that
# many kills interrupt the writing of one.
FLAGS = [
    "-e", f"L=2,NH=2,C=32,T=16,V={V}", "-b", "4", "-t", "16", "-d", "128", "-x", "400", "-u", "20", "-q", "0.1", "-c", "0.1",
    "-sl", "2.5", "-sg", "2.5", "-v", "25", "-m", "2", "-s", "0", "-n", "2", "-nk", "2", "--device", "cpu",
]  # fmt: skip
KILLS_WHILE_STARTING = 0.2  # fraction of the kills before the first step
POLL_SECONDS = 0.002  # a step takes 10 ms and more


class TrainingFailed(Exception):
    """The training ended with an error."""


def write_data(directory):
    """Write token shards with a text that can be learnt to some extent. Returns the flags that name them."""
    rng = np.random.default_rng(3)
    phrases = rng.integers(0, V, (5, 13))
    for name, samples in (("train_0", 6), ("train_1", 8), ("val", 2)):
        tokens = phrases[rng.integers(0, len(phrases), samples * 10)].reshape(-1)
        write_shard(directory / f"{name}.bin", tokens[: samples * 64 + 1])
    return ["-i", str(directory / "train_*.bin"), "-j", str(directory / "val.bin")]


def steps_reached(output):
    """The last step in the output of a training; None if there is none yet."""
    steps = re.findall(r"^step +(\d+)/", output.read_text(errors="replace"), re.MULTILINE)
    return int(steps[-1]) if steps else None


def run_training(command, output, seconds=None, while_starting=False):
    """Run a training to its end, or kill it `seconds` after its start or after its first step.

    Returns (killed, seconds from start to end, seconds from the first step to the end or None).
    Raises TrainingFailed if it ends with an error.
    """
    started, first_step = time.monotonic(), None
    with open(output, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    killed = False
    try:
        while process.poll() is None and not killed:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if first_step is None and steps_reached(output) is not None:
                first_step = now
            since = started if while_starting else first_step
            killed = seconds is not None and since is not None and now - since >= seconds
    finally:
        process.kill()
        process.wait()
    ended = time.monotonic()
    if process.returncode == 0:  # it ended before it was killed
        killed = False
    elif not killed:
        raise TrainingFailed(f"the training ended with code {process.returncode}:\n{output.read_text(errors='replace')[-2000:]}")
    return killed, ended - started, None if first_step is None else ended - first_step


def last_checkpoint(directory):
    """Name -> bytes of the files of the newest complete checkpoint, without main.log and the plot."""
    newest = complete_checkpoints(directory)[0]
    return {path.name: path.read_bytes() for path in sorted(directory.glob(f"*_{newest:08d}*"))}


def differences(expected, found):
    """One line for each file that differs."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        a, b = expected.get(name), found.get(name)
        if a is None or b is None:
            lines.append(f"{name}: only in the {'killed' if a is None else 'undisturbed'} training")
        elif len(a) != len(b):
            lines.append(f"{name}: {len(a)} bytes undisturbed, {len(b)} killed")
        elif a != b:
            unequal = np.flatnonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8))
            lines.append(f"{name}: {len(unequal)} of {len(a)} bytes differ, the first at {unequal[0]}")
    return lines


def drill(directory, kills, rng, extra_flags):
    """Do the drill in `directory`, which must be empty. Returns True if all bits are equal."""
    command = [sys.executable, "-u", "-m", "gpt2_numba.train", *FLAGS, *write_data(directory), *extra_flags, "-o"]
    output = directory / "output.txt"

    _, seconds, training_seconds = run_training([*command, str(directory / "undisturbed")], output)
    expected = last_checkpoint(directory / "undisturbed")
    starting_seconds = seconds - training_seconds
    print(f"undisturbed: {steps_reached(output)} steps in {seconds:.1f} s, of which {starting_seconds:.1f} s to start", flush=True)

    done, run, all_equal = 0, 0, True
    while done < kills or run == 0:
        run += 1
        killed_directory = directory / f"killed_{run}"
        ended = False
        while not ended:
            if done == kills:
                killed, seconds, _ = run_training([*command, str(killed_directory), "-y", "1"], output)
            else:
                while_starting = rng.random() < KILLS_WHILE_STARTING
                # On average three quarters of an even interval: the kills spread over the training, which rarely ends before the last.
                moment = rng.uniform(0, starting_seconds if while_starting else 1.5 * training_seconds / kills)
                killed, seconds, _ = run_training([*command, str(killed_directory), "-y", "1"], output, moment, while_starting)
            ended = not killed
            if killed:
                done += 1
                print(f"kill {done:3d}: after {seconds:5.2f} s, {progress(output, killed_directory)}", flush=True)
        unequal = differences(expected, last_checkpoint(killed_directory))
        all_equal = all_equal and not unequal
        print(f"run {run} ended after {done} kills: {'; '.join(unequal) or 'all bits are equal'}", flush=True)
    return all_equal


def progress(output, directory):
    """How far a training had come when it was killed, in words."""
    step, checkpoints = steps_reached(output), complete_checkpoints(directory)
    reached = "still starting" if step is None else f"step {step} reached"
    kept = f"checkpoint of step {checkpoints[0]}" if checkpoints else "no checkpoint yet"
    writing = ", one was being written" if list(directory.glob(".*.aside")) else ""
    return f"{reached}, {kept}{writing}"


def run(argv):
    """Do what the command line asks. Returns the exit code."""
    own, extra_flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = Parser(prog="python -m dev.kill_drill", description="Kill and resume a training; compare the bits.")
    parser.add_argument("--kills", type=int, default=20, help="minimum number of kills (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments (default: 1)")
    arguments = parser.parse_args(own)
    with tempfile.TemporaryDirectory() as directory:
        try:
            equal = drill(Path(directory), arguments.kills, random.Random(arguments.seed), extra_flags)
        except TrainingFailed as failed:
            print(failed)
            return 1
    print(f"{'equal' if equal else 'UNEQUAL'} bits after {arguments.kills} kills")
    return 0 if equal else 1


def main(argv):
    """The command line. Returns the exit code: that of `run`, or 2 for a user's mistake, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
