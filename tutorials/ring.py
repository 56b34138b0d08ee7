"""A process of chapter 12, which adds up arrays with its neighbours by functions of the chapter:  python -m tutorials.ring TASK

The chapter starts one for each rank. TASK is JSON:

    {"meet": directory, the same for all, "rank": 0, "ranks": 2, "hang_timeout": seconds,
     "functions": the text of functions, ring_reduce_scatter and ring_all_gather among them,
     "exchange": the name of the one by which neighbours exchange arrays,
     "calls": [[name of one of them, {argument: value}], ...]}

Each is called with the Ring, and what it returns is printed, a line of JSON. The functions may use the public names of gpt2_numba and a few
modules (NAMES).
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Client, Listener

import numpy as np

import gpt2_numba
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.parallel.group import Group
from gpt2_numba.parallel.start import meet_without_mpi
from gpt2_numba.parallel.watch import Watch
from gpt2_numba.training.settings import SHARD_DEFAULTS

MEETING_SECONDS = 120  # within which all processes must have come; a busy laptop takes long to start them
NAMES = {"np": np, "hashlib": hashlib, "os": os, "time": time, "builtin_corpus": builtin_corpus, "initial_weights": initial_weights}
NAMES |= {name: getattr(gpt2_numba, name) for name in gpt2_numba.__all__}


class Line:
    """The connections of a rank to its neighbours: it sends to the right, to the next rank, and receives from the left. Ranks form a ring."""

    def __init__(self, meeting, exchange):
        """meeting: a Meeting (gpt2_numba/parallel/meeting.py). exchange: a function of (values, line). All ranks must call it."""
        self.rank, self.ranks, self.bytes_sent = meeting.rank, meeting.ranks, 0
        self._exchange = exchange
        with Listener(("127.0.0.1", 0)) as door:  # port 0: any free one
            addresses = meeting.gather(door.address)
            self._to_right = Client(tuple(addresses[(self.rank + 1) % self.ranks]))
            self._from_left = door.accept()

    def exchange(self, values):
        """Send an array to the right, and return the one that comes from the left."""
        return self._exchange(values, self)

    def send(self, values):
        """Send a 1-D array of float32 to the right. Returns when it is on its way, which may not be before the neighbour reads."""
        with wait_for_the_watch():
            self._to_right.send_bytes(values.tobytes())
        self.bytes_sent += values.nbytes

    def receive(self):
        """Wait for the array that comes from the left."""
        with wait_for_the_watch():
            return np.frombuffer(self._from_left.recv_bytes(), np.float32)


@contextlib.contextmanager
def wait_for_the_watch():
    """In this context the loss of a neighbour stops this process: the watch, in another thread, finds out who is lost, and ends it."""
    try:
        yield
    except (EOFError, OSError):
        threading.Event().wait()


class Ring(Group):
    """A Group of the package, like those that use MPI and NCCL; it needs neither. NumPy arrays, 1-D, float32."""

    def __init__(self, meeting, hang_timeout, functions):
        """functions: name -> function; exchange of (values, line), the other two of (parts, line): the parts of an array by rank, as views"""
        super().__init__(meeting, "CPU")
        self.names = meeting.names = [f"rank {rank}" for rank in range(self.ranks)]
        self.watch = Watch(meeting.watch_lines, self.rank, self.names, hang_timeout)
        self.line = Line(meeting, functions["exchange"])
        self._reduce_scatter, self._all_gather = functions["ring_reduce_scatter"], functions["ring_all_gather"]

    def all_reduce(self, arrays):
        pieces = [(array, [array.size * rank // self.ranks for rank in range(self.ranks + 1)]) for array in arrays]
        self.reduce_scatter(pieces)
        self.all_gather(pieces)

    def reduce_scatter(self, pieces):
        self._enter_collective()
        for array, bounds in pieces:
            self._reduce_scatter(parts_of(array, bounds), self.line)

    def all_gather(self, pieces):
        self._enter_collective()
        for array, bounds in pieces:
            self._all_gather(parts_of(array, bounds), self.line)


def parts_of(array, bounds):
    """The parts of an array by rank, as views. bounds: ranks + 1 ascending positions."""
    return [array[start:stop] for start, stop in zip(bounds, bounds[1:])]


def main(task):
    """Meet the others, call the functions, say goodbye."""
    names = dict(NAMES)
    exec(compile(task["functions"], "the chapter's functions", "exec"), names)
    names["exchange"] = names[task["exchange"]]
    by_a_file = {"init_method": "fs", "shared_path": task["meet"], "processes": task["ranks"], "rank": task["rank"]}
    settings = replace(SHARD_DEFAULTS, **by_a_file, hang_timeout=MEETING_SECONDS)
    meeting = meet_without_mpi(settings, on_gpus=True)  # it would refuse CPUs, since there the package's own sums go through MPI
    group = Ring(meeting, task["hang_timeout"], names)
    try:
        for name, arguments in task["calls"]:
            print(json.dumps(names[name](group, **arguments)), flush=True)
    except Exception as error:
        group.fail(f"{type(error).__name__}: {error}")  # otherwise the others would wait for this process
        raise
    group.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
