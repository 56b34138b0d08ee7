"""Finds the process that died, failed or hangs, says which one it is, and ends all of them.

Without it a job whose rank 2 is gone would stand still for ever: the others wait in a collective for numbers that will not come. So in
every process a thread tells rank 0 each second what the main thread is doing, and how long ago it made progress; rank 0 answers with its
own. From that rank 0 knows of each other rank, and each other rank of rank 0:

    died      its line ended without a goodbye
    failed    it says so itself: an exception in its main thread
    silent    nothing was heard of it for `timeout` seconds: it is stopped, its host is gone, or its main thread holds Python's global lock
    hangs     no rank has made progress for `timeout` seconds, and this is the one that the others wait for

Which one that is, time does not tell: who comes early to a collective waits longest. But all ranks come to the same collectives in the same
order, so it is the one that has come to the fewest.

Death and failure are noticed at once, the others within `timeout` and some seconds more.
"""

import contextlib
import os
import selectors
import sys
import threading
import time
from typing import NamedTuple

from gpt2_numba.parallel.meeting import receive, send

INTERVAL = 1.0  # seconds between two reports
SETTLE = 0.5  # seconds between a failure and the verdict: who fails may be a victim of one whose death becomes known in this time
GRACE = 2.0  # seconds that a message to the others, or on stderr, may take before the process ends all the same
TIE = 0.1  # seconds: who stopped that little later than another cannot be told from it
LEAST_TIMEOUT = 3 * INTERVAL  # reports can come that late on a busy machine
MOST_NAMED = 4  # ranks in one message; a host that is gone takes many with it

DIED, FAILED, SILENT, HANGS = "died", "failed", "is silent (stopped? host gone?)", "hangs"  # as messages call it


class Doing(NamedTuple):
    """What a rank is about to do, since when (time.monotonic() of the process that keeps it), and how many collectives it has come to."""

    what: str
    since: float
    collectives: int


def end_process(code):
    """End this process now, whatever its main thread is doing.

    os._exit, because the main thread may be inside of a library that waits for a rank which is gone (MPI, NCCL, the CUDA driver): it would
    see neither an exception nor sys.exit, and an orderly exit would wait as well, in MPI_Finalize.
    """
    try:
        _at_most(GRACE, _flush)
    finally:
        os._exit(code)


class Watch:
    """The watch of one process. Make it when the processes have met; then call `doing` wherever something begins that may take long.

    lines        {rank: multiprocessing.connection.Connection}: at rank 0 to every other rank, at the others to rank 0
    rank         this process
    names        what messages call the ranks: a list, by rank
    timeout      seconds: the limit for silence and for a hang, at least LEAST_TIMEOUT; 0: none, then only death and failure are noticed
    end_process  function of an exit code, for tests
    """

    def __init__(self, lines, rank, names, timeout, end_process=end_process):
        self._lines, self._rank, self._names = dict(lines), rank, names
        self._timeout = timeout and max(timeout, LEAST_TIMEOUT)
        self._end_process = end_process
        self._sending = threading.RLock()  # both threads send
        self._own = Doing("start", time.monotonic(), 0)
        self._known = {other: self._own for other in self._lines}  # of the others, as far as heard
        self._heard = {other: self._own.since for other in self._lines}  # when
        self._answered = True  # whether rank 0 has answered the last report of this process
        self._died, self._failed = [], {}  # {rank: its message}, in the order in which they came
        self._failing = self._closing = self._told_to_end = False
        self._tells = rank in (0, len(names) - 1)  # without rank 0 it is the last rank that tells: the likeliest to be on another host
        self._selector = selectors.DefaultSelector()
        for other, line in self._lines.items():
            self._selector.register(line, selectors.EVENT_READ, other)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------------------------------- for the main thread

    def doing(self, what):
        """The main thread made progress, and is about to do `what` (text)."""
        self._own = Doing(what, time.monotonic(), self._own.collectives)  # one write: the other thread never sees half of it

    def entering_collective(self):
        """The main thread made progress, and comes to where it may wait for all other ranks: the same places in the same order for all."""
        what, _, collectives = self._own
        self._own = Doing(what, time.monotonic(), collectives + 1)

    def failed(self, message):
        """This process failed, `message` (one line) says how: tell the others, which end. Returns when they know, or after some seconds.

        The caller has told its user all it wants to, and should now call `end_process`.
        """
        self._failing = True
        if self._rank == 0:
            self._failed.setdefault(0, message)
        else:
            self._send(0, {**self._report(), "failed": message})
        self._thread.join(INTERVAL + SETTLE + 2 * GRACE)

    def close(self):
        """Goodbye: from here on this process may end without being missed. Rank 0 stays until all others have said so."""
        with self._sending:
            if self._rank != 0:
                self._send(0, {"goodbye": True})
            self._closing = True
        self._thread.join()

    # ---------------------------------------------------------------------------------------- the thread

    def _run(self):
        next_look = time.monotonic()
        while self._lines:
            self._listen(next_look - time.monotonic())
            if self._told_to_end:
                break
            faults = self._find_losses()
            if not faults and time.monotonic() >= next_look:
                next_look = time.monotonic() + INTERVAL
                faults = self._find_delays()
                self._report_to_rank_0()
            if faults:
                self._end_all(faults)
                break
        else:
            return  # all have said goodbye
        if not self._failing:
            self._end_process(1)

    def _report(self):
        what, since, collectives = self._own
        return {"doing": what, "ago": time.monotonic() - since, "collectives": collectives}

    def _report_to_rank_0(self):
        """Not before it has answered the last one: so the line never fills up, and sending never waits, however long rank 0 is stopped."""
        if self._rank != 0 and self._answered:
            self._answered = False
            self._send(0, self._report())

    def _send(self, other, message):
        with self._sending, contextlib.suppress(OSError):  # if the line has ended, reading it will tell
            said_goodbye = self._closing and other == 0
            if other in self._lines and not said_goodbye:
                send(self._lines[other], message)

    def _listen(self, seconds):
        """Wait for messages, at most so long, then take all that are there: after a stop of this process they explain the long silence."""
        self._read(seconds)
        while self._read(0):
            pass

    def _read(self, seconds):
        """Wait for messages, at most so long, and take one of each line that has some. Returns whether there were any."""
        ready = self._selector.select(max(0, seconds))
        for key, _ in ready:
            try:
                self._take(key.data, receive(key.fileobj))
            except (EOFError, OSError):
                self._drop(key.data)
                self._died.append(key.data)
        return bool(ready)

    def _take(self, other, message):
        now = time.monotonic()
        self._heard[other] = now
        if "goodbye" in message:
            self._send(other, message)  # who says it waits for the answer: a line that is closed with something on its way counts as broken
            self._drop(other)
        elif "end" in message:
            self._told_to_end = True
        else:
            self._known[other] = Doing(message["doing"], now - message["ago"], message["collectives"])
            if self._rank != 0:
                self._answered, self._tells = True, message["last"] == self._rank
            elif "failed" in message:
                self._failed.setdefault(other, message["failed"])
            else:
                self._send(other, {**self._report(), "last": max(self._lines)})

    def _drop(self, other):
        with self._sending:
            line = self._lines.pop(other)
            self._selector.unregister(line)
            line.close()

    def _find_losses(self):
        """{rank: its fault, in words} of those that died, else of the first that failed; it made others fail. Empty if there are none."""
        if self._failed:
            time.sleep(SETTLE)
            self._listen(0)
        died = [rank for rank in self._died if rank not in self._failed]
        return dict.fromkeys(died, DIED) or dict.fromkeys(list(self._failed)[:1], FAILED)

    def _find_delays(self):
        """{rank: its fault, in words} of those that are silent, else, at rank 0, of those that hang. Empty if there are none."""
        if not self._timeout:
            return {}
        now = time.monotonic()
        silent = [other for other in self._lines if now - self._heard[other] > self._timeout]
        if silent or self._rank != 0:
            return dict.fromkeys(silent, SILENT)
        return dict.fromkeys(self._who_hangs(now), HANGS)

    def _who_hangs(self, now):
        """Rank 0: the ranks that the others wait for, if nobody has made progress for too long."""
        ranks = {other: (self._known[other], self._heard[other]) for other in self._lines}
        if not self._closing:
            ranks[0] = self._own, now
        if any(known_at - doing.since <= self._timeout for doing, known_at in ranks.values()):
            return []
        fewest = min(doing.collectives for doing, _ in ranks.values())
        behind = {rank: doing.since for rank, (doing, _) in ranks.items() if doing.collectives == fewest}
        return sorted(rank for rank, since in behind.items() if since <= min(behind.values()) + TIE)

    def _end_all(self, faults):
        """Say what is wrong, pass it on, and give those who hear of it a moment: a launcher kills all when the first one ends."""
        if self._tells:
            _at_most(GRACE, print, self._message(faults), file=sys.stderr, flush=True)
        for other in list(self._lines):
            self._send(other, {"end": True})
        until = time.monotonic() + GRACE
        if self._rank != 0 and not self._tells:
            time.sleep(GRACE)
        while set(self._lines) - set(faults) and time.monotonic() < until:
            self._read(until - time.monotonic())

    def _message(self, faults):
        told = [self._sentence(rank, fault) for rank, fault in sorted(faults.items())[:MOST_NAMED]]
        if len(faults) > MOST_NAMED:
            told.append(f"{len(faults) - MOST_NAMED} more likewise")
        limit = f" (--hang-timeout {self._timeout:g})" if {SILENT, HANGS} & set(faults.values()) else ""
        return f"error: {'; '.join(told)}; the other processes stop{limit}. The newest checkpoint is untouched: resume with -y 1"

    def _sentence(self, rank, fault):
        now = time.monotonic()
        doing = self._own if rank == self._rank else self._known[rank]
        known = f"; last heard of {now - self._heard[rank]:.1f} s ago" if fault in (DIED, SILENT) else ""
        why = f": {self._failed[rank]}" if fault == FAILED else ""
        return f"{self._names[rank]} {fault} while doing {doing.what} (for {now - doing.since:.1f} s{known}){why}"


def _flush():
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _at_most(seconds, function, *arguments, **named):
    """Call a function, but wait for it so long at most: writing waits for ever where nobody reads, or while the main thread is writing."""
    thread = threading.Thread(target=function, args=arguments, kwargs=named, daemon=True)
    thread.start()
    thread.join(seconds)
