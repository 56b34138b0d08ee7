"""One run per log directory: the second is refused in one line, and a run that has ended, however it ended, blocks no other."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt2_numba.errors import UserError
from gpt2_numba.training import run_lock
from gpt2_numba.training.run_lock import FILE_NAME, RunLock

pytestmark = pytest.mark.skipif(run_lock.fcntl is None, reason="nothing is locked on Windows")

HOLDER = """
import sys, time
from gpt2_numba.training.run_lock import FILE_NAME, RunLock
lock = RunLock(sys.argv[1])
exec(sys.argv[2])
print("locked", flush=True)
time.sleep(60)
"""


def holder(directory, then=""):
    """A process that has the lock of the directory and has run `then`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory), then], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def refusal(directory):
    """The message with which the lock is refused."""
    with pytest.raises(UserError) as raised:
        RunLock(directory)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_lock_is_free_again_after_the_run(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path / "new" / "run"):
            assert os.listdir(tmp_path / "new" / "run") == [".lock"]
        assert os.listdir(tmp_path / "new" / "run") == []


def test_without_a_directory_nothing_is_locked():
    with RunLock(None):
        pass


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
    with holder(tmp_path) as first:
        message = refusal(tmp_path)
        assert message.startswith(f"another run (host {socket.gethostname()}, process {first.pid}) is writing to {tmp_path}: ")
        assert "(-o)" in message
        first.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == [".lock"]  # which blocks nobody
    with RunLock(tmp_path):
        assert f"process {os.getpid()})" in refusal(tmp_path)


def test_another_directory_is_another_lock(tmp_path):
    with RunLock(tmp_path / "a"), RunLock(tmp_path / "b"):
        pass


@pytest.mark.parametrize(
    "start_child",
    [
        "import subprocess; subprocess.Popen(['sleep', '5'], close_fds=False)",
        "import os; r, w = os.pipe(); os.fork() or (os.write(w, b'up'), time.sleep(5), os._exit(0)); os.read(r, 2)",
    ],
    ids=["started", "forked"],
)
def test_a_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path, start_child):
    with holder(tmp_path, start_child) as first:
        first.kill()
    with RunLock(tmp_path):
        pass


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_leaves_the_with_statement_releases_nothing(tmp_path):
    with RunLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            try:
                lock.release()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert "another run" in refusal(tmp_path)
    with RunLock(tmp_path):
        pass


def test_of_many_that_start_and_end_at_once_one_at_a_time_has_it(tmp_path):
    holding, most = [], []

    def take(_):
        try:
            with RunLock(tmp_path):
                holding.append(1)
                most.append(len(holding))
                holding.pop()
                return True
        except UserError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(take, range(400)))
    assert max(most) == 1


def test_a_file_removed_between_opening_and_locking_is_opened_again(tmp_path, monkeypatch):
    """Otherwise this run would lock a file without a name, and the next run another one."""
    flock, calls = run_lock.fcntl.flock, []

    def remove_first(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(run_lock.fcntl, "flock", remove_first)
    with RunLock(tmp_path):
        assert len(calls) == 2
        assert "another run" in refusal(tmp_path)


def test_the_file_of_another_run_is_not_removed(tmp_path):
    """The directory was renamed, and another run has begun in a new one of the old name."""
    with RunLock(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "run.1")
        other = RunLock(tmp_path / "run")
    assert "another run" in refusal(tmp_path / "run")
    other.release()


@pytest.mark.parametrize("content", [b"", b"half a li", b"\xff\x00\n", b"host 123456789012345678901234567890\n", b"a b c\n", b"x" * 10_000])
def test_whatever_a_left_file_holds_it_is_replaced(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{socket.gethostname()} {os.getpid()}\n"
        (tmp_path / ".lock").write_bytes(content)
        assert "one that has just begun" in refusal(tmp_path)


def test_a_full_disk_does_not_prevent_the_lock(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fail)
    with RunLock(tmp_path):
        assert "another run (one that has just begun)" in refusal(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch, number):
    def fail(path, *_):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", fail)
    message = refusal(tmp_path)
    assert str(tmp_path) in message and os.strerror(number) in message and "(-o)" in message


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "it is a file" in refusal(tmp_path / "file")
    assert "Not a directory" in refusal(tmp_path / "file" / "run")
    assert "name too long" in refusal(tmp_path / ("x" * 300))


# --- File systems without flock ---


@pytest.fixture(params=[errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def no_flock(monkeypatch, request):
    def fail(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)


def left_lock(directory, host, process):
    (directory / ".lock").write_text(f"{host} {process}\n")


def test_without_flock_a_process_that_runs_here_has_the_lock(tmp_path, no_flock, capsys):
    with RunLock(tmp_path):
        assert re.match(rf"{re.escape(socket.gethostname())} {os.getpid()}\n", (tmp_path / ".lock").read_text())
    assert os.listdir(tmp_path) == []
    left_lock(tmp_path, socket.gethostname(), os.getppid())
    assert f"another run (host {socket.gethostname()}, process {os.getppid()})" in refusal(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_without_flock_a_process_of_another_user_has_the_lock(tmp_path, no_flock, monkeypatch):
    def refuse(*_):
        raise PermissionError

    left_lock(tmp_path, socket.gethostname(), 4321)
    monkeypatch.setattr(os, "kill", refuse)
    assert "process 4321" in refusal(tmp_path)


def test_without_flock_a_dead_process_has_no_lock(tmp_path, no_flock, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid(), 9999999999):  # in a container a new process can have the number of the old one
        left_lock(tmp_path, socket.gethostname(), process)
        with RunLock(tmp_path):
            pass
    assert capsys.readouterr() == ("", "")


def test_without_flock_a_lock_of_another_host_is_replaced_with_a_warning(tmp_path, no_flock, capsys):
    left_lock(tmp_path, "elsewhere", 17)
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{socket.gethostname()} ")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and "host elsewhere, process 17" in warning and warning.count("\n") == 1


def test_a_lock_that_somebody_has_removed_is_taken_again(tmp_path):
    with RunLock(tmp_path) as lock:
        (tmp_path / FILE_NAME).unlink()
        lock.renew()
        with pytest.raises(UserError, match="another run"):
            RunLock(tmp_path)


def test_a_run_whose_lock_was_removed_stops_if_another_has_begun(tmp_path):
    lock = RunLock(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    with RunLock(tmp_path):
        with pytest.raises(UserError, match="another run"):
            lock.renew()
        lock.release()  # not the other's
        with pytest.raises(UserError, match="another run"):
            RunLock(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_in_place_of_the_lock_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(UserError, match="not a regular file"):
        RunLock(tmp_path)


def test_a_directory_that_may_no_longer_be_searched_is_left_to_the_next_write(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with RunLock(tmp_path) as lock:
        monkeypatch.setattr(os.path, "samestat", refuse)
        lock.renew()
        monkeypatch.undo()
        with pytest.raises(UserError, match="another run"):
            RunLock(tmp_path)
