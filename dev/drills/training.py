"""A small training, started in a forked process: all modules are imported once, so that a start costs little.

Two shards of 6 and 8 samples: a new epoch, with a new order, every 7 steps of two micro-batches.
"""

import functools
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401, imported for all forks
import matplotlib.figure  # noqa: F401
import numpy as np

import gpt2_numba.train  # noqa: F401
from dev.drills.fork import SHOW_STACKS, be_the_trainer
from dev.drills.report import Lost
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2

ROOT = Path(__file__).resolve().parents[2]
V, B, T = 257, 2, 8  # V: samples are printed as bytes
SAMPLES = {"train_0": 6, "train_1": 8, "val": 2}
STEPS = 12
FLAGS = {
    "-e": f"L=1,NH=2,C=16,T={T},V={V}", "-b": B, "-t": T, "-d": 2 * B * T, "-x": STEPS, "-u": 4, "-q": 0.1, "-c": 0.1, "-l": 0.001,
    "-sl": 2.5, "-sg": 2.5, "-v": 0, "-m": 1, "-s": 0, "-n": 2, "-nk": 2, "-o": "log", "--device": "cpu",
}  # fmt: skip
TIMEOUT = 60  # seconds after which a training hangs; it takes less than one
extra_flags = []  # added to those of every training, the last on its command line


@dataclass(frozen=True)
class Ended:
    """A training that has ended."""

    code: int  # its exit code; -9 if a signal 9 killed it
    out: str
    err: str

    def __str__(self):
        return f"exit code {self.code}, stdout ends with {self.out[-200:]!r}, stderr with {self.err[-800:]!r}"


def write_data(directory):
    """Write the shards data/train_*.bin and data/val.bin with a text that can be learnt to some extent."""
    (directory / "data").mkdir()
    rng = np.random.default_rng(3)
    phrases = rng.integers(0, V, (5, 13))
    for name, samples in SAMPLES.items():
        tokens = phrases[rng.integers(0, len(phrases), samples * 10)].reshape(-1)
        write_shard(directory / "data" / f"{name}.bin", tokens[: samples * B * T + 1])


def command_line(changes=()):
    """The flags of a training. changes: flag -> value, None leaves it out."""
    flags = {"-i": "data/train_*.bin", "-j": "data/val.bin", **FLAGS, **dict(changes)}
    return [str(word) for flag, value in flags.items() if value is not None for word in (flag, value)] + extra_flags


class Training:
    """A training in a process of its own, whose working directory is `directory`, with the shards of write_data.

    changes  flags that differ from FLAGS
    prepare  called in the process before the trainer's main program, to plant faults
    picture  whether it draws its losses, which takes longer than all of its steps
    streams  (stdout, stderr): file descriptors; None: a file, which `wait` reads
    """

    def __init__(self, directory, changes=(), prepare=None, picture=False, streams=(None, None)):
        self.directory = directory
        if not (directory / "data").exists():
            write_data(directory)
        self._files = [directory / f".{name}.txt" for name in ("out", "err")]
        descriptors = [open_to_write(file) if given is None else given for file, given in zip(self._files, streams)]
        argv = command_line(changes)
        _load_compiled_functions()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, about forks beside threads: BLAS's end before
            self.pid = os.fork()
        if self.pid == 0:
            be_the_trainer(directory, argv, descriptors, prepare, picture)
        for descriptor, given in zip(descriptors, streams):
            if given is None:
                os.close(descriptor)
        self._code = None

    def poll(self):
        """The exit code; None while the training runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def send(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def output(self):
        """What it has written so far: (stdout, stderr)."""
        return tuple(file.read_text(errors="replace") if file.exists() else "" for file in self._files)

    def wait(self, timeout=TIMEOUT):
        """Wait until it has ended. Returns Ended. Raises Lost if it hangs."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.send(SHOW_STACKS)
                time.sleep(0.2)
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self._code = -signal.SIGKILL
                raise Lost(f"the training hangs, for {timeout} s: {Ended(-9, *self.output())}")
            time.sleep(0.001)
        return Ended(self._code, *self.output())

    def wait_for(self, text, timeout=TIMEOUT):
        """Wait until `text` is in its stdout, or it has ended. Returns whether it is."""
        until = time.monotonic() + timeout
        while text not in self.output()[0]:
            if self.poll() is not None or time.monotonic() > until:
                return text in self.output()[0]
            time.sleep(0.001)
        return True


def train(directory, changes=(), prepare=None, timeout=TIMEOUT, **more):
    """Train from start to end. Returns Ended."""
    return Training(directory, changes, prepare, **more).wait(timeout)


def start(directory, command, **popen):
    """A subprocess.Popen of a command, for tries of which starting Python is a part. popen: see subprocess.Popen; env is added."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **popen.pop("env", {})}
    environment.pop("PYTHONUNBUFFERED", None)  # hides what is buffered
    return subprocess.Popen(command, cwd=directory, env=environment, **popen)


@functools.cache
def _load_compiled_functions():
    """Draw weights and update them, so that every fork has the functions that Numba has compiled for the CPU."""
    config = parse_descriptor(FLAGS["-e"])
    model = GPT2(config, B, T)
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config), 42))
    model.update(0, learning_rate=0.0, weight_decay=0.0, rounding_seed=1)


def open_to_write(path):
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
