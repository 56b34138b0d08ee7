"""Processes played by threads: groups for quick tests of what processes tell each other. Only the way that it goes is another."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from gpt2_numba.parallel.group import Group


class Table(threading.Barrier):
    """Where the threads lay down what they have for the others. Who waits there longer than a test may take gets BrokenBarrierError."""

    def __init__(self, ranks):
        super().__init__(ranks, timeout=20)
        self.things = [None] * ranks


class ThreadMeeting:
    """In the place of parallel/meeting.py's Meeting."""

    def __init__(self, rank, table):
        self.rank, self.ranks, self._table = rank, table.parties, table

    def gather(self, thing):
        self._table.things[self.rank] = json.loads(json.dumps(thing))
        self._table.wait()
        things = list(self._table.things)
        self._table.wait()  # nobody lays down the next thing before all have seen these
        return things


def in_threads(ranks, work):
    """Call work(group) for each rank, all at once. Returns what they return, by rank; where one raised an exception, that."""
    table = Table(ranks)

    def at(rank):
        try:
            return work(Group(ThreadMeeting(rank, table), "CPU"))
        except Exception as error:
            return error

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(at, range(ranks)))
