"""A process that dies, fails, is stopped or hangs is named, and all the others end; an orderly end is none of these.

First single watches, whose peers the tests play: what they send decides what is printed. Then real processes, under mpirun.
"""

import json
import re
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe

import pytest

from gpt2_numba.parallel import watch as watching
from gpt2_numba.parallel.watch import Watch
from tests.mpi import process_environment, run_together

TIMEOUT = 1.0  # seconds; in the first half of the tests a watch sends 20 reports a second
MAX_WAIT = 10  # seconds that anything may take here


class Played:
    """A rank that a test plays: the other end of a watch's line."""

    def __init__(self, line):
        self.line = line

    def send(self, **message):
        self.line.send_bytes(json.dumps(message).encode())

    def report(self, what="step 1", ago=0.0, collectives=0, **more):
        self.send(doing=what, ago=ago, collectives=collectives, **more)

    def receives(self, key):
        """Whether a message with this key arrives before the line ends."""
        try:
            while self.line.poll(MAX_WAIT):
                if key in json.loads(self.line.recv_bytes()):
                    return True
        except (EOFError, OSError):
            pass
        return False

    def keep_reporting(self, **report):
        """Report at every interval, until the line ends or the test does."""

        def run():
            try:
                while True:
                    began = time.monotonic()
                    self.report(**report)
                    time.sleep(watching.INTERVAL)
                    report["ago"] = report.get("ago", 0) + time.monotonic() - began
            except OSError:
                pass

        threading.Thread(target=run, daemon=True).start()


@pytest.fixture
def rank_0(monkeypatch):
    """Function (ranks, timeout) -> (watch of rank 0, {rank: Played})."""
    yield from _one_watch(monkeypatch, lambda ranks: (0, {rank: Pipe() for rank in range(1, ranks)}))


@pytest.fixture
def rank_1(monkeypatch):
    """Function (ranks, timeout) -> (watch of rank 1, {0: Played})."""
    yield from _one_watch(monkeypatch, lambda ranks: (1, {0: Pipe()}))


def _one_watch(monkeypatch, choose):
    for name, seconds in {"INTERVAL": 0.05, "SETTLE": 0.2, "GRACE": 0.3, "MIN_TIMEOUT": 0.15}.items():
        monkeypatch.setattr(watching, name, seconds)
    made = []

    def make(ranks, timeout=TIMEOUT):
        rank, pipes = choose(ranks)
        codes = []
        names = [f"rank {r} on host a17, GPU {r} (NVIDIA H200)" for r in range(ranks)]
        watch = Watch({other: here for other, (here, _) in pipes.items()}, rank, names, timeout, codes.append)
        watch.codes = codes
        played = {other: Played(there) for other, (_, there) in pipes.items()}
        made.append((watch, played))
        return watch, played

    yield make
    for watch, played in made:
        for rank in played.values():
            rank.line.close()
        watch.close()


def ended(watch):
    """Wait for the watch to end its process. Returns whether it did, once, with code 1."""
    until = time.monotonic() + MAX_WAIT
    while not watch.codes and time.monotonic() < until:
        time.sleep(0.01)
    return watch.codes == [1]


def messages(capsys):
    """The lines on stderr, without `error: ` and the last sentence, which are always the same."""
    lines = capsys.readouterr().err.splitlines()
    advice = " The newest checkpoint is untouched: resume with -y 1"
    assert all(line.startswith("error: ") and line.endswith(advice) for line in lines), lines
    return [line[len("error: ") : -len(advice)] for line in lines]


def test_a_rank_that_dies(rank_0, capsys):
    watch, played = rank_0(4)
    played[2].report("step 17: gradients", ago=3.0)
    time.sleep(0.1)
    played[2].line.close()
    assert played[1].receives("end") and played[3].receives("end") and ended(watch)
    (message,) = messages(capsys)
    assert re.fullmatch(
        r"rank 2 on host a17, GPU 2 \(NVIDIA H200\) died during step 17: gradients \(for 3\.\d s; last heard from 0\.\d s ago\); "
        r"the other processes stop\.", message
    )  # fmt: skip


def test_only_some_ranks_of_a_lost_host_are_named(rank_0, capsys):
    watch, played = rank_0(8)
    played[1].report(failed="RankLost: rank 2 is gone")  # makes the watch wait SETTLE: so all deaths are reported together
    for rank in range(2, 8):
        played[rank].line.close()
    assert ended(watch)
    (message,) = messages(capsys)
    assert message.count(" died ") == 4 and "rank 5 on" in message and "; 2 more likewise; the other" in message


def test_a_rank_that_fails(rank_0, capsys):
    watch, played = rank_0(3)
    played[1].report("the model", failed="MemoryError: 80 GB")
    assert played[2].receives("end") and played[1].receives("end") and ended(watch)
    (message,) = messages(capsys)
    assert message.startswith("rank 1 on host a17, GPU 1 (NVIDIA H200) failed during the model (for 0.")
    assert message.endswith(" s): MemoryError: 80 GB; the other processes stop.")


def test_a_rank_that_fails_because_another_died_is_not_blamed(rank_0, capsys):
    watch, played = rank_0(4)
    played[1].report(failed="RankLost: rank 2 is gone")
    played[3].report(failed="RankLost: rank 2 is gone")
    time.sleep(0.05)
    played[2].line.close()
    assert ended(watch)
    (message,) = messages(capsys)
    assert message.startswith("rank 2 on host a17, GPU 2 (NVIDIA H200) died") and "rank 1" not in message and "rank 3" not in message


def test_the_first_rank_that_fails_is_blamed_even_if_it_ends_soon_after(rank_0, capsys):
    watch, played = rank_0(3)
    played[2].report(failed="ValueError: x")
    played[2].line.close()
    time.sleep(0.05)
    played[1].report(failed="RankLost: rank 2 is gone")
    assert ended(watch)
    (message,) = messages(capsys)
    assert message.startswith("rank 2 ") and "failed" in message and "died" not in message and "rank 1" not in message


def test_rank_0_itself_fails(rank_0, capsys):
    """It reports the failure, and its main thread continues, to end in its own way."""
    watch, played = rank_0(2)
    watch.doing("reading the data")
    other = threading.Thread(target=lambda: played[1].receives("end") and played[1].line.close(), daemon=True)
    other.start()
    watch.failed("OSError: no disk")
    other.join(MAX_WAIT)
    assert not other.is_alive() and watch.codes == []
    (message,) = messages(capsys)
    assert "rank 0 on host a17" in message and "failed during reading the data" in message and "OSError: no disk" in message


def test_a_silent_rank(rank_0, capsys):
    watch, played = rank_0(3)
    played[1].keep_reporting()
    played[2].report("step 5", ago=2.0)
    began = time.monotonic()
    assert ended(watch) and time.monotonic() - began >= 0.9 * TIMEOUT
    (message,) = messages(capsys)
    assert re.fullmatch(
        r"rank 2 .* is silent \(stopped\? host gone\?\) during step 5 \(for 3\.\d s; last heard from 1\.\d s ago\); "
        r"the other processes stop \(--hang-timeout 1\)\.", message
    )  # fmt: skip


def test_reports_do_not_pile_up_at_rank_0(rank_1):
    """A line that fills up would block the writer."""
    watch, played = rank_1(2, timeout=0)
    for _ in range(2):
        assert played[0].receives("doing")
        time.sleep(10 * watching.INTERVAL)
        assert not played[0].line.poll() and watch.codes == []
        played[0].report(last=1)
    assert played[0].receives("doing")


def test_rank_0_answers_every_report(rank_0):
    watch, played = rank_0(3)
    watch.doing("step 2")
    for _ in range(3):
        played[1].report()
        assert played[1].receives("doing")
    assert not played[2].line.poll()


def test_the_rank_that_entered_fewer_collectives_hangs(rank_0, capsys):
    """The others have waited longer than it has been hanging: by time alone they would be blamed."""
    watch, played = rank_0(3, timeout=2.0)
    watch.doing("step 9: sum")
    for _ in range(4):
        watch.entering_collective()
    played[1].keep_reporting(what="step 9: sum", ago=1.5, collectives=4)
    played[2].keep_reporting(what="step 9: gradients", ago=0.5, collectives=3)
    assert ended(watch)
    (message,) = messages(capsys)
    assert re.fullmatch(r"rank 2 [^;]* hangs during step 9: gradients \(for 2\.\d s\); the other processes stop \(.*2\)\.", message)


def test_of_equal_ranks_the_one_that_stopped_first_hangs(rank_0, capsys):
    watch, played = rank_0(3)
    played[1].keep_reporting(what="step 9", ago=0.5)
    played[2].keep_reporting(what="step 8", ago=0.8)
    assert ended(watch)
    (message,) = messages(capsys)
    assert message.startswith("rank 2 ") and "hangs during step 8" in message and "rank 1" not in message


def test_ranks_that_stopped_together_are_all_named(rank_0, capsys):
    watch, played = rank_0(3)
    played[1].keep_reporting(what="step 9", ago=0.50)
    played[2].keep_reporting(what="step 9", ago=0.52)
    assert ended(watch)
    (message,) = messages(capsys)
    assert "rank 1 on" in message and "rank 2 on" in message and "rank 0 on" not in message


def test_no_rank_hangs_while_one_makes_progress(rank_0):
    watch, played = rank_0(3)
    played[1].keep_reporting(ago=5.0, collectives=1)
    played[2].keep_reporting(ago=5.0)
    until = time.monotonic() + 2.5 * TIMEOUT
    while time.monotonic() < until:
        watch.doing("a long sample")
        time.sleep(0.05)
    assert watch.codes == []


def test_without_a_timeout_only_death_and_failure_end(rank_0, capsys):
    watch, played = rank_0(3, timeout=0)
    played[1].report(ago=1e6)
    played[2].keep_reporting(ago=1e6)
    time.sleep(0.5)
    assert watch.codes == []
    played[1].line.close()
    assert ended(watch) and "rank 1" in messages(capsys)[0]


def test_a_timeout_shorter_than_the_interval_of_reports_is_raised(rank_0):
    watch, played = rank_0(2, timeout=0.01)
    played[1].keep_reporting()
    time.sleep(0.1)
    assert watch.codes == []


def test_rank_0_dies(rank_1, capsys):
    watch, played = rank_1(2)
    played[0].report("step 3: update", last=1)
    time.sleep(0.1)
    played[0].line.close()
    assert ended(watch)
    (message,) = messages(capsys)
    assert message.startswith("rank 0 on host a17, GPU 0 (NVIDIA H200) died during step 3: update (for 0.")


def test_rank_0_is_silent(rank_1, capsys):
    watch, played = rank_1(2)
    assert ended(watch) and "rank 0 on host a17, GPU 0 (NVIDIA H200) is silent" in messages(capsys)[0]
    assert played[0].receives("end"), "if rank 0 wakes up, it must not blame the others"


@pytest.mark.parametrize("last, speaks", [(None, False), (3, False), (1, True)])
def test_without_rank_0_only_the_last_rank_prints_the_message(rank_1, capsys, last, speaks):
    """Rank 1 of 4: the last only if rank 0 has reported that the others have said goodbye."""
    watch, played = rank_1(4)
    if last:
        played[0].report(last=last)
        time.sleep(0.1)
    began = time.monotonic()
    played[0].line.close()
    assert ended(watch) and len(messages(capsys)) == speaks
    assert speaks or time.monotonic() - began >= watching.GRACE, "if it ends before the message is out, the launcher kills the speaker"


def test_a_rank_that_is_ordered_to_end_prints_nothing(rank_1, capsys):
    watch, played = rank_1(2)
    played[0].send(end=True)
    assert ended(watch) and messages(capsys) == []


def test_another_rank_fails(rank_1, capsys):
    """`failed` returns when rank 0 knows, so that the end of this process does not look like a death."""
    watch, played = rank_1(2)
    watch.doing("step 4")
    failing = threading.Thread(target=watch.failed, args=["ValueError: x"])
    failing.start()
    assert played[0].receives("failed") and failing.is_alive()
    played[0].send(end=True)
    failing.join(MAX_WAIT)
    assert not failing.is_alive() and watch.codes == [] and messages(capsys) == []


def test_orderly_end_of_another_rank(rank_1, capsys):
    watch, played = rank_1(2)
    closing = threading.Thread(target=watch.close)
    closing.start()
    assert played[0].receives("goodbye") and closing.is_alive()
    played[0].send(goodbye=True)
    closing.join(MAX_WAIT)
    assert not closing.is_alive() and watch.codes == [] and messages(capsys) == []


def test_orderly_end_of_rank_0(rank_0, capsys):
    """It stays until all others have gone, and does not count as hanging."""
    watch, played = rank_0(3, timeout=0.3)
    closing = threading.Thread(target=watch.close)
    closing.start()
    for rank in (2, 1):
        assert closing.is_alive()
        played[rank].report()
        played[rank].send(goodbye=True)
        assert played[rank].receives("goodbye")
        played[rank].line.close()
    closing.join(MAX_WAIT)
    assert not closing.is_alive() and watch.codes == [] and messages(capsys) == []


def test_the_last_goodbye_may_come_when_a_look_is_due(rank_0, monkeypatch):
    monkeypatch.setattr(watching, "INTERVAL", 0.0)
    watch, played = rank_0(2)
    closing = threading.Thread(target=watch.close)
    closing.start()
    played[1].send(goodbye=True)
    closing.join(MAX_WAIT)
    assert not closing.is_alive() and watch.codes == []


def test_a_rank_that_hangs_at_the_end_while_rank_0_waits_for_goodbyes(rank_0, capsys):
    watch, played = rank_0(2)
    closing = threading.Thread(target=watch.close)
    closing.start()
    played[1].keep_reporting(what="leaving", collectives=7)
    assert ended(watch)
    (message,) = messages(capsys)
    assert message.startswith("rank 1 ") and "hangs during leaving" in message and "rank 0" not in message


BUFFERED = {"PYTHONUNBUFFERED": ""}  # whatever the environment of the tests: printed text may still be in the process's buffer

STUCK = """
import sys, threading, time
from gpt2_numba.parallel import watch
watch.GRACE = 0.5
threading.Timer(1.0, watch.end_process, [3]).start()
while True:
    sys.stdout.write("x" * 100000)
"""


def test_a_process_ends_even_if_its_output_is_not_read():
    """Its main thread is inside write, and holds the stream's lock: flushing would block for ever."""
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, env=process_environment(**BUFFERED))
    try:
        assert process.wait(20) == 3
    finally:
        process.kill()
        process.stdout.close()


# ---------------------------------------------------------------------------------------------------- real processes

PROGRAM = """
import os, signal, sys, time
from dataclasses import replace
import numpy as np
from gpt2_numba.parallel.start import join
from gpt2_numba.parallel.watch import INTERVAL, end_process
from gpt2_numba.training.settings import SHARD_DEFAULTS
from gpt2_numba.training.stop_request import StopRequest

def suffer(fate):
    time.sleep(1.5 * INTERVAL)  # so that the others know what it is doing
    print("printed before")  # not flushed, since it goes to a pipe
    if fate == "killed":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "stopped":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSTOP)
    if fate == "asleep":
        time.sleep(1000)
    if fate == "raises":
        raise RuntimeError("no more memory")

fate, victim, timeout = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
group = join(replace(SHARD_DEFAULTS, hang_timeout=timeout), "cpu")
try:
    with StopRequest():  # as in the trainer: SIGTERM, which mpirun sends when one process has ended, does not end the others
        for step in range(4):
            group.doing(f"step {step}: gradients")
            if step == 3 and group.rank == victim:
                suffer(fate)
            group.doing(f"step {step}: sum")
            group.all_reduce([np.ones(1000, np.float32)])
            group.sum([1.0])
    group.close()
except Exception as error:
    group.fail(f"{type(error).__name__}: {error}")
    end_process(1)
"""


MESSAGES = {
    "killed": r"died during step 3: gradients \(for \S+ s; last heard from \S+ s ago\); the other processes stop\.",
    "stopped": r"is silent .* during step 3: gradients \(for .*\); the other processes stop \(--hang-timeout 4\)\.",
    "asleep": r"hangs during step 3: gradients \(for \S+ s\); the other processes stop \(--hang-timeout 4\)\.",
    "raises": r"failed during step 3: gradients \(for \S+ s\): RuntimeError: no more memory; the other processes stop\.",
}


@pytest.mark.parametrize("fate, ranks, victim", [
    ("killed", 4, 2), ("killed", 4, 0), ("stopped", 4, 0), ("stopped", 2, 1),
    ("asleep", 4, 2), ("asleep", 2, 0), ("raises", 4, 2), ("raises", 4, 0),
])  # fmt: skip
def test_all_processes_end_and_the_right_one_is_named(fate, ranks, victim):
    began = time.monotonic()
    done = run_together(ranks, ["-c", PROGRAM], fate, victim, 4, timeout=60, check=False, **BUFFERED)
    assert done.returncode != 0 and time.monotonic() - began < 30
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    advice = r" The newest checkpoint is untouched: resume with -y 1"
    assert len(errors) == 1 and re.fullmatch(rf"error: rank {victim} on host \S+, CPU {MESSAGES[fate]}{advice}", errors[0]), errors
    assert "printed before" in done.stdout


@pytest.mark.parametrize("ranks, late", [(4, 0), (2, 1)])
def test_an_orderly_end_is_none_of_these(ranks, late):
    """One rank arrives later than the others, but within the limit."""
    done = run_together(ranks, ["-c", PROGRAM], "late", late, 4, timeout=60)
    assert "error" not in done.stderr and "printed before" in done.stdout
