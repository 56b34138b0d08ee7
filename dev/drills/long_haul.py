"""The long haul: what leaks, and does a run that is stopped a hundred times end with the same bits?

    python -m dev.drills.long_haul                                      5,000 steps, then 100 rounds of saving and resuming, on the CPU
    python -m dev.drills.long_haul --minutes 9 --rounds 0 -- --device gpu -e d12 -b 64 -t 1024 -r 0
    python -m dev.drills.long_haul --pid 1234 --minutes 9                   one that already runs, whatever its flags
    python -m dev.drills.long_haul --steps 300 --rounds 3               a short one

The training validates, samples and writes checkpoints all the time. Its memory, open files and threads are read once a second from /proc,
and the memory in use on a GPU. The median of the last third of the samples may be larger than that of the middle third by MAY_GROW, no
more. Flags after -- are added to those of every training.
"""

import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import dev.drills.one_thread  # noqa: F401, before anything that imports NumPy
from dev.bench.process_memory import MemoryWatch
from dev.drills import training
from dev.drills.checkpoints import differences, last_checkpoint
from dev.drills.training import Training, train
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError
from gpt2_numba.training.endings import STOPPED

# What may grow between the medians of the middle and the last third of a training. Python's allocator keeps some freed memory.
MAY_GROW = {"host memory, MiB": 1.0, "open files": 0, "threads": 0, "GPU memory, MiB": 0}
STEPS_PER_ROUND = 3
CHANGES = {"-x": 5000, "-k": "constant", "-u": 0, "-v": 50, "-s": 100, "-g": 20, "-n": 100, "-nk": 2, "-sl": 0, "-sg": 0}
SHORTEST = 9  # samples: below that there are no thirds to compare


def sample(pid, watch):
    """name -> value now, of a process; None if it has ended."""
    try:
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        values = {
            "host memory, MiB": int(status["VmRSS"].split()[0]) / 1024,
            "open files": len(os.listdir(process / "fd")),
            "threads": int(status["Threads"]),
        }
    except (OSError, KeyError):  # it has ended meanwhile
        return None
    return values | ({"GPU memory, MiB": watch.used()} if watch and watch.used() is not None else {})


def watch_process(pid, seconds, every, watch):
    """Sample a process every so many seconds, for so many, or until it ends. Returns the samples."""
    samples, begin = [], time.monotonic()
    while (values := sample(pid, watch)) and time.monotonic() - begin < seconds:
        samples.append(values)
        time.sleep(every)
    return samples


def watch_training(directory, changes, seconds, every, watch):
    """Train until the end, or for so many seconds, and sample every so many. Returns (samples, Ended). The first samples are the start."""
    run, samples, begin = Training(directory, changes), [], time.monotonic()
    while run.poll() is None:
        time.sleep(every)
        if values := sample(run.pid, watch):
            samples.append(values)
        if seconds and time.monotonic() - begin > seconds:
            run.send(signal.SIGINT)
            break
    return samples, run.wait(timeout=600)


def growth(samples):
    """[(name, median of the middle third, median of the last third, is it flat?)]"""
    third = len(samples) // 3
    rows = []
    for name in samples[-1]:
        middle, last = (statistics.median(values[name] for values in part) for part in (samples[third : 2 * third], samples[2 * third :]))
        rows.append((name, middle, last, last <= middle + MAY_GROW[name]))
    return rows


def print_growth(samples, every):
    """Print the medians of the thirds. Returns whether everything is flat."""
    if len(samples) < SHORTEST:
        raise UserError(
            f"the training must take at least {SHORTEST} samples, {SHORTEST * every:.0f} s, it took {len(samples)}: use more --steps"
        )
    print(f"{len(samples)} samples\n\n| {'':<18} | middle third | last third |      |\n| {'-' * 18} | -----------: | ---------: | ---- |")
    rows = growth(samples)
    for name, middle, last, flat in rows:
        print(f"| {name:<18} | {middle:12.1f} | {last:10.1f} | {'flat' if flat else 'GROWS'} |")
    return all(flat for *_, flat in rows)


def long_training(directory, steps, minutes, watch, every=1.0):
    """Print the table of a long training. Returns whether everything is flat."""
    changes = {**CHANGES, "-x": steps} if not minutes else {**CHANGES, "-x": 10**8, "-v": 1000, "-s": 1000, "-n": 2000}
    samples, ended = watch_training(directory, changes, 60 * minutes, every, watch)
    if ended.code != (STOPPED if minutes else 0):
        print(f"FAILED: {ended}")
        return False
    print(f"{sum(line.startswith('step ') for line in ended.out.splitlines()):,} steps")
    return print_growth(samples, every)


def save_and_resume(directory, rounds):
    """Stop and resume a training so many times. Returns whether it ends with the bits of one that was never stopped."""
    changes = {**CHANGES, "-v": 0, "-s": 2, "-g": 3, "-n": STEPS_PER_ROUND}
    begin = time.monotonic()
    (directory / "once").mkdir()
    (directory / "rounds").mkdir()
    straight = train(directory / "once", {**changes, "-x": rounds * STEPS_PER_ROUND}, timeout=600)
    for number in range(1, rounds + 1):
        ended = train(directory / "rounds", {**changes, "-x": number * STEPS_PER_ROUND, "-y": 1}, timeout=600)
        if ended.code or straight.code:
            print(f"FAILED: round {number}: {straight if straight.code else ended}")
            return False
    unequal = differences(last_checkpoint(directory / "once" / "log"), last_checkpoint(directory / "rounds" / "log"))
    print(f"\n{rounds} rounds of {STEPS_PER_ROUND} steps, {time.monotonic() - begin:.0f} s: {'; '.join(unequal) or 'the same bits'}")
    return not unequal


def run(argv):
    """Run both. Returns the exit code: 1 if anything grows or differs."""
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = Parser(prog="python -m dev.drills.long_haul", description="What leaks, and do a hundred resumptions give the same bits?")
    parser.add_argument("--steps", type=int, default=5000, help="steps of the long training, 0: none (default: 5000)")
    parser.add_argument("--minutes", type=float, default=0, help="train for so long instead of a number of steps")
    parser.add_argument("--rounds", type=int, default=100, help="how often to save and resume, 0: never (default: 100)")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two samples (default: 1)")
    parser.add_argument("--pid", type=int, help="watch this process for --minutes, and do nothing else")
    arguments = parser.parse_args(own)
    if not sys.platform.startswith("linux"):
        raise UserError("the long haul reads /proc, which only Linux has")
    if arguments.pid is not None:
        return int(not print_growth(watch_process(arguments.pid, 60 * arguments.minutes, arguments.every, MemoryWatch()), arguments.every))
    training.extra_flags[:] = extra
    good = True
    with tempfile.TemporaryDirectory(prefix="long_haul_") as directory:
        if arguments.steps or arguments.minutes:
            (Path(directory) / "long").mkdir()
            watch = MemoryWatch() if "gpu" in extra else None
            good = long_training(Path(directory) / "long", arguments.steps, arguments.minutes, watch, arguments.every)
        if arguments.rounds:
            good = save_and_resume(Path(directory), arguments.rounds) and good
    return int(not good)


def main(argv):
    """The command line. Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
