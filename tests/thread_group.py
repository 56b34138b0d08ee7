"""Groups whose processes are threads, for quick tests of what processes exchange: only the transport differs."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from gpt2_numba.parallel.group import Group


class Exchange(threading.Barrier):
    """Where the threads leave their values for the others. Waiting longer than a test may take raises BrokenBarrierError."""

    def __init__(self, ranks):
        super().__init__(ranks, timeout=20)
        self.values = [None] * ranks


class ThreadMeeting:
    """Replaces parallel/meeting.py's Meeting."""

    def __init__(self, rank, exchange):
        self.rank, self.ranks, self._exchange = rank, exchange.parties, exchange

    def gather(self, value):
        self._exchange.values[self.rank] = json.loads(json.dumps(value))
        self._exchange.wait()
        values = list(self._exchange.values)
        self._exchange.wait()  # no rank leaves its next value before all have read these
        return values


def in_threads(ranks, work):
    """Call work(group) for each rank, all at the same time. Returns a list by rank: what the call returned, or the exception it raised."""
    exchange = Exchange(ranks)

    def run(rank):
        try:
            return work(Group(ThreadMeeting(rank, exchange), "CPU"))
        except Exception as error:
            return error

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))
