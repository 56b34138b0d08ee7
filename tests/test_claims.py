"""Claims on files: one process makes a file, the others wait for it, but not for a process that has died."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from gpt2_numba.gpu import claims

pytestmark = pytest.mark.skipif(claims.fcntl is None, reason="this system has no flock")
fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "cache" / "thing"
    claims.release(tmp_path / "cache" / "thing")


def hold(path, connection):
    """The program of another process: claim, report, and release when asked to."""
    connection.send(claims.claim(path))
    connection.recv()
    path.write_text("made")
    claims.release(path)


@pytest.fixture
def holder(path):
    """Another process that has claimed the path, and the connection by which it is asked to release it."""
    connection, theirs = fork.Pipe()
    process = fork.Process(target=hold, args=(path, theirs), daemon=True)
    process.start()
    assert connection.recv()
    yield process, connection
    process.kill()
    process.join()


def test_a_claim_is_taken_and_given_back(path):
    assert claims.claim(path) and claims.claim(path), "it may be taken again by the process that has it"
    claims.release(path)
    assert list(path.parent.iterdir()) == [] and path not in claims._held
    claims.release(path)  # not held: nothing happens


def test_another_process_has_it(path, holder):
    assert not claims.claim(path, wait=False)


def test_whoever_waits_has_it_after_the_file_is_made(path, holder):
    _, connection = holder
    threading.Timer(0.2, connection.send, [None]).start()
    assert claims.claim(path) and path.read_text() == "made"


def test_a_process_that_is_killed_gives_its_claim_back(path, holder):
    process, _ = holder
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert claims.claim(path, wait=False)


def test_a_wait_has_an_end(path, holder, monkeypatch):
    monkeypatch.setattr(claims, "LONGEST_WAIT", 0.05)
    assert not claims.claim(path)


def test_a_forked_child_does_not_keep_its_parents_claims(path, monkeypatch):
    monkeypatch.setattr(claims.os, "unlink", lambda path: None)  # as if the parent had died, and its file remained
    assert claims.claim(path)
    child = fork.Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    claims.release(path)
    other, theirs = fork.Pipe()
    process = fork.Process(target=lambda: theirs.send(claims.claim(path, wait=False)))
    process.start()
    assert other.recv(), "the lock is still in the first child"
    process.join()
    child.kill()


def test_without_locks_nobody_has_a_claim_and_nobody_waits(path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claims.fcntl, "flock", no_locks)
    assert not claims.claim(path) and not claims.claim(path, wait=False)
    monkeypatch.setattr(claims, "fcntl", None)
    assert not claims.claim(path)


def test_where_nothing_can_be_written_nobody_has_a_claim(tmp_path):
    (tmp_path / "file").touch()
    assert not claims.claim(tmp_path / "file" / "thing")
