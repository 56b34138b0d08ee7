"""Detects a process that died, failed or hangs, names it, and ends all of them.

Without it a job that loses rank 2 would hang for ever: the others wait in a collective for data that will not come. So a thread in every
process reports to rank 0 once a second what the main thread is doing, and how long ago it made progress; rank 0 answers with its own
report. From these rank 0 judges each other rank, and each other rank judges rank 0:

    died      its line ended without a goodbye
    failed    it reported an exception in its main thread
    silent    it sent nothing for `timeout` seconds: it is stopped, its host is gone, or its main thread holds Python's global lock
    hangs     no rank has made progress for `timeout` seconds, and this is the one that the others wait for

Times do not show which one that is: the first to enter a collective waits longest. But all ranks enter the same collectives in the same
order, so it is the one that has entered the fewest.

Death and failure are noticed at once, silence and hangs within `timeout` plus a few seconds.
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
SETTLE = 0.5  # seconds between a failure and the verdict: it may be the consequence of a death that becomes known in this time
GRACE = 2.0  # seconds that a message to the others, or to stderr, may take before the process ends anyway
TIE = 0.1  # seconds: ranks that stopped within this time of each other count as simultaneous
MIN_TIMEOUT = 3 * INTERVAL  # reports can be this late on a busy machine
MAX_NAMED = 4  # ranks in one message; a lost host takes many with it

DIED, FAILED, SILENT, HANGS = "died", "failed", "is silent (stopped? host gone?)", "hangs"  # as they appear in messages


class Doing(NamedTuple):
    """What a rank is doing, since when (time.monotonic() of the process that stores it), and how many collectives it has entered."""

    what: str
    since: float
    collectives: int


def end_process(code):
    """End this process now, whatever its main thread is doing.

    By os._exit, because the main thread may be inside a library that waits for a lost rank (MPI, NCCL, the CUDA driver): neither an
    exception nor sys.exit would reach it, and an orderly exit would block too, in MPI_Finalize.
    """
    try:
        _at_most(GRACE, _flush)
    finally:
        os._exit(code)


class Watch:
    """The watch of one process. Create it once the processes have met; then call `doing` before anything that may take long.

    lines        {rank: multiprocessing.connection.Connection}: at rank 0 to every other rank, at the others to rank 0
    rank         this process
    names        the names of the ranks in messages: a list, by rank
    timeout      seconds: the limit for silence and for a hang, raised to MIN_TIMEOUT if shorter; 0: only death and failure are noticed
    end_process  function of an exit code, for tests
    """

    def __init__(self, lines, rank, names, timeout, end_process=end_process):
        self._lines, self._rank, self._names = dict(lines), rank, names
        self._timeout = timeout and max(timeout, MIN_TIMEOUT)
        self._end_process = end_process
        self._sending = threading.RLock()  # both threads send
        self._own = Doing("start", time.monotonic(), 0)
        self._known = {other: self._own for other in self._lines}  # the last report of each of the others
        self._heard = {other: self._own.since for other in self._lines}  # when it arrived
        self._answered = True  # whether rank 0 has answered the last report of this process
        self._died, self._failed = [], {}  # {rank: its message}, in the order in which they came
        self._failing = self._closing = self._must_end = False
        # Whether this rank prints what is wrong. If rank 0 is lost the last rank does: the likeliest to be on another host.
        self._is_speaker = rank in (0, len(names) - 1)
        self._selector = selectors.DefaultSelector()
        for other, line in self._lines.items():
            self._selector.register(line, selectors.EVENT_READ, other)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------------------------------- for the main thread

    def doing(self, what):
        """The main thread made progress, and does `what` (text) next."""
        self._own = Doing(what, time.monotonic(), self._own.collectives)  # one assignment: the other thread never sees half of it

    def entering_collective(self):
        """The main thread made progress, and may now wait for all other ranks. All ranks enter the same collectives in the same order."""
        what, _, collectives = self._own
        self._own = Doing(what, time.monotonic(), collectives + 1)

    def failed(self, message):
        """Report that this process failed, with a one-line message; the others end. Returns when they know, or after a few seconds.

        The caller should have printed its own messages before, and should now call `end_process`.
        """
        self._failing = True
        if self._rank == 0:
            self._failed.setdefault(0, message)
        else:
            self._send(0, {**self._report(), "failed": message})
        self._thread.join(INTERVAL + SETTLE + 2 * GRACE)

    def close(self):
        """Say goodbye: from here on this process may end without being reported. Rank 0 returns when all others have said goodbye."""
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
            if self._must_end:
                break
            faults = self._find_losses()
            if not faults and self._lines and time.monotonic() >= next_look:
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
        """Wait for an answer before each further report, so that the line never fills up and sending never blocks if rank 0 is stopped."""
        if self._rank != 0 and self._answered:
            self._answered = False
            self._send(0, self._report())

    def _send(self, other, message):
        with self._sending, contextlib.suppress(OSError):  # if the line has ended, reading it will show it
            said_goodbye = self._closing and other == 0
            if other in self._lines and not said_goodbye:
                send(self._lines[other], message)

    def _listen(self, seconds):
        """Wait up to `seconds` for messages, then handle all that have arrived: if this process was stopped, they explain the silence."""
        self._read(seconds)
        while self._read(0):
            pass

    def _read(self, seconds):
        """Wait up to `seconds` for messages, and handle one from each line that has any. Returns whether there were any."""
        ready = self._selector.select(max(0, seconds))
        for key, _ in ready:
            try:
                self._handle(key.data, receive(key.fileobj))
            except (EOFError, OSError):
                self._drop(key.data)
                self._died.append(key.data)
        return bool(ready)

    def _handle(self, other, message):
        now = time.monotonic()
        self._heard[other] = now
        if "goodbye" in message:
            self._send(other, message)  # the other rank waits for this: closing a line with data in flight would break it
            self._drop(other)
        elif "end" in message:
            self._must_end = True
        else:
            self._known[other] = Doing(message["doing"], now - message["ago"], message["collectives"])
            if self._rank != 0:
                self._answered, self._is_speaker = True, message["last"] == self._rank
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
        """{rank: its fault, as text} of the ranks that died, else of the first to fail: it made others fail. Empty if there are none."""
        if self._failed:
            time.sleep(SETTLE)
            self._listen(0)
        died = [rank for rank in self._died if rank not in self._failed]
        return dict.fromkeys(died, DIED) or dict.fromkeys(list(self._failed)[:1], FAILED)

    def _find_delays(self):
        """{rank: its fault, as text} of the silent ranks, else, at rank 0, of those that hang. Empty if there are none."""
        if not self._timeout:
            return {}
        now = time.monotonic()
        silent = [other for other in self._lines if now - self._heard[other] > self._timeout]
        if silent or self._rank != 0:
            return dict.fromkeys(silent, SILENT)
        return dict.fromkeys(self._find_hanging(now), HANGS)

    def _find_hanging(self, now):
        """Rank 0: the ranks that the others wait for, if no rank has made progress for too long."""
        ranks = {other: (self._known[other], self._heard[other]) for other in self._lines}
        if not self._closing:
            ranks[0] = self._own, now
        if any(known_at - doing.since <= self._timeout for doing, known_at in ranks.values()):
            return []
        fewest = min(doing.collectives for doing, _ in ranks.values())
        behind = {rank: doing.since for rank, (doing, _) in ranks.items() if doing.collectives == fewest}
        return sorted(rank for rank, since in behind.items() if since <= min(behind.values()) + TIE)

    def _end_all(self, faults):
        """Print what is wrong, make the others end, and give them a moment: a launcher kills all processes when the first one ends."""
        if self._is_speaker:
            _at_most(GRACE, print, self._message(faults), file=sys.stderr, flush=True)
        for other in list(self._lines):
            self._send(other, {"end": True})
        until = time.monotonic() + GRACE
        if self._rank != 0 and not self._is_speaker:
            time.sleep(GRACE)
        while set(self._lines) - set(faults) and time.monotonic() < until:
            self._read(until - time.monotonic())

    def _message(self, faults):
        parts = [self._sentence(rank, fault) for rank, fault in sorted(faults.items())[:MAX_NAMED]]
        if len(faults) > MAX_NAMED:
            parts.append(f"{len(faults) - MAX_NAMED} more likewise")
        limit = f" (--hang-timeout {self._timeout:g})" if {SILENT, HANGS} & set(faults.values()) else ""
        return f"error: {'; '.join(parts)}; the other processes stop{limit}. The newest checkpoint is untouched: resume with -y 1"

    def _sentence(self, rank, fault):
        now = time.monotonic()
        doing = self._own if rank == self._rank else self._known[rank]
        known = f"; last heard from {now - self._heard[rank]:.1f} s ago" if fault in (DIED, SILENT) else ""
        why = f": {self._failed[rank]}" if fault == FAILED else ""
        return f"{self._names[rank]} {fault} during {doing.what} (for {now - doing.since:.1f} s{known}){why}"


def _flush():
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _at_most(seconds, function, *args, **kwargs):
    """Call a function, and wait for it up to `seconds`: a write blocks if nothing reads the stream, or while the main thread is writing."""
    thread = threading.Thread(target=function, args=args, kwargs=kwargs, daemon=True)
    thread.start()
    thread.join(seconds)
