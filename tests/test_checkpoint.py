"""Checkpoints: complete or ignored, whatever happens while they are written; old ones are deleted, the others stay."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import stat
import struct
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2_numba.errors import UserError
from gpt2_numba.parallel.group import Alone, Group
from gpt2_numba.training.checkpoint import (
    CheckpointFailed,
    OldCheckpointsRemain,
    complete_checkpoints,
    done_checkpoints,
    done_file_name,
    load_newest,
    model_file_name,
    outliers_file_name,
    read_done,
    read_outliers,
    save_checkpoint,
    state_file_name,
    unfinished_checkpoints,
    verify_checkpoint,
    write_outliers,
)
from gpt2_numba.training.finite import NotFinite
from tests.thread_group import in_threads


def contents(step, generation=0, processes=1):
    """The files of a test checkpoint, name -> bytes. All that is needed of a state file is the start of its header."""
    text = f"step {step}, generation {generation}".encode()
    state = struct.pack("<3i", 20240527, 1, processes) + text
    return {
        model_file_name(step): text,
        outliers_file_name(step): text,
        **{state_file_name(step, rank): state for rank in range(processes)},
    }


def done_content(step, files, facts=None):
    """What DONE holds for a checkpoint whose files are smaller than a block, written independently."""
    recorded = {name: {"bytes": len(content), "sha256": [hashlib.sha256(content).hexdigest()]} for name, content in files.items()}
    line = json.dumps({"version": 1, "step": step, "block_bytes": 1 << 26, "files": recorded, "facts": facts or {}})
    return f'{line}\n{{"sha256": "{hashlib.sha256(line.encode()).hexdigest()}"}}\n'.encode()


def with_done(step, files):
    """The files of a checkpoint, and DONE: name -> bytes."""
    return files | {done_file_name(step): done_content(step, files)}


def writers(step, generation=0, processes=1):
    return {
        name: lambda path, content=content: path.write_bytes(content) for name, content in contents(step, generation, processes).items()
    }


def files_of_rank(rank, files):
    """The entries of `files`, name -> anything, that a rank writes."""
    return {name: value for name, value in files.items() if (name[15:20] if name.startswith("state") else "00000") == f"{rank:05d}"}


def save(directory, *steps, keep=0, major_every=0):
    for step in steps:
        save_checkpoint(directory, step, writers(step), Alone(), keep, major_every)


def save_in_processes(directory, step, processes, generation=0, keep=0, changes=()):
    """Save with several processes. Returns the result of each: None or its exception. changes: other writers, by file name."""
    files = writers(step, generation, processes) | dict(changes)

    def save_own(group):
        save_checkpoint(directory, step, files_of_rank(group.rank, files), group, keep)

    return in_threads(processes, save_own)


def names(directory):
    return sorted(os.listdir(directory))


def test_names_are_those_of_llmc():
    assert model_file_name(20) == "model_00000020.bin" and state_file_name(20, 3) == "state_00000020_00003.bin"
    assert done_file_name(123456789) == "DONE_123456789"


def test_a_checkpoint_consists_of_its_files(tmp_path):
    save(tmp_path / "new" / "run", 20)
    expected = with_done(20, contents(20))
    assert {name: (tmp_path / "new/run" / name).read_bytes() for name in names(tmp_path / "new/run")} == expected


def test_done_is_renamed_last(tmp_path, monkeypatch):
    seen, replace = [], os.replace

    def watch(old, new):
        assert Path(old).name.startswith(".") and Path(old).parent == Path(new).parent == tmp_path
        seen.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(os, "replace", watch)
    save(tmp_path, 20)
    assert seen == [*contents(20), "DONE_00000020"]


def test_files_are_flushed_before_they_are_renamed(tmp_path, monkeypatch):
    events, replace, fsync = [], os.replace, os.fsync

    def watch_fsync(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def watch_replace(old, new):
        assert os.stat(old).st_ino in events
        events.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    save(tmp_path, 20)
    directory = os.stat(tmp_path).st_ino
    assert events[-6:] == [*contents(20), directory, "DONE_00000020", directory]


def test_hidden_files_of_a_killed_run_are_removed_first(tmp_path):
    (tmp_path / ".model_00000010.bin.aside").write_bytes(b"half of it")

    def write(path):
        assert names(tmp_path) == []
        path.touch()

    save_checkpoint(tmp_path, 20, {model_file_name(20): write}, Alone())


def test_complete_checkpoints(tmp_path):
    assert complete_checkpoints(tmp_path / "none") == []
    save(tmp_path, 9, 100, 20, 30, 40, 123456789)
    (tmp_path / done_file_name(20)).unlink()
    (tmp_path / model_file_name(30)).unlink()
    (tmp_path / state_file_name(40, 0)).unlink()
    (tmp_path / outliers_file_name(9)).unlink()  # llm.c writes none
    (tmp_path / "DONE_notes").touch()
    assert complete_checkpoints(tmp_path) == [123456789, 100, 9]


def test_complete_checkpoints_of_several_processes(tmp_path):
    for step in (10, 20):
        save_in_processes(tmp_path, step, processes=3)
    (tmp_path / state_file_name(20, 2)).unlink()
    assert complete_checkpoints(tmp_path) == [10]


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"cut",
        struct.pack("<3i", 20240527, 1, -4),
        struct.pack("<3i", 7, 1, 2**31 - 1),
    ],
)
def test_a_checkpoint_with_a_damaged_state_file_still_counts_as_complete(tmp_path, state):
    save(tmp_path, 10)
    (tmp_path / state_file_name(10, 0)).write_bytes(state)
    assert complete_checkpoints(tmp_path) == [10]


def test_a_state_file_of_billions_of_processes(tmp_path):
    save(tmp_path, 10)
    (tmp_path / state_file_name(10, 0)).write_bytes(struct.pack("<3i", 20240527, 1, 2**31 - 1))
    assert complete_checkpoints(tmp_path) == []


def test_unfinished_checkpoints(tmp_path):
    assert unfinished_checkpoints(tmp_path / "none") == []
    save(tmp_path, 10, 20)
    assert unfinished_checkpoints(tmp_path) == []
    (tmp_path / model_file_name(30)).touch()
    (tmp_path / state_file_name(123456789, 1)).touch()
    (tmp_path / done_file_name(10)).unlink()
    for name in (".model_00000040.bin.aside", "model_0000050.bin", "my_model_00000060.bin", outliers_file_name(70)):
        (tmp_path / name).touch()
    assert unfinished_checkpoints(tmp_path) == [123456789, 30, 10]


@pytest.mark.parametrize("find", [done_checkpoints, complete_checkpoints, unfinished_checkpoints])
def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch, find):
    def refusal(directory):
        with pytest.raises(UserError, match="cannot be listed") as raised:
            find(directory)
        assert str(directory) in str(raised.value) and "\n" not in str(raised.value)
        return str(raised.value)

    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(tmp_path / "file") and "Not a directory" in refusal(tmp_path / "file" / "run")
    assert "name too long" in refusal(tmp_path / ("x" * 300))

    def fail(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "listdir", fail)  # as in a directory with the permissions 0333
    assert "Permission denied" in refusal(tmp_path)


@pytest.mark.parametrize(
    "keep, major_every, left",
    [
        (0, 0, [60, 50, 40, 30, 20, 10]),
        (9, 0, [60, 50, 40, 30, 20, 10]),
        (0, 20, [60, 50, 40, 30, 20, 10]),
        (1, 0, [60]),
        (2, 0, [60, 50]),
        (2, 30, [60, 50, 30]),
        (1, 20, [60, 40, 20]),
    ],
)
def test_old_checkpoints_are_deleted(tmp_path, keep, major_every, left):
    save(tmp_path, 10, 20, 30, 40, 50, 60, keep=keep, major_every=major_every)
    assert complete_checkpoints(tmp_path) == left
    assert names(tmp_path) == sorted(name for step in left for name in [*contents(step), done_file_name(step)])


def test_all_states_of_an_old_checkpoint_are_deleted(tmp_path):
    for step in (10, 20):
        save_in_processes(tmp_path, step, processes=3, keep=1)
    assert names(tmp_path) == sorted([*contents(20, processes=3), done_file_name(20)])


def test_incomplete_checkpoints_are_not_counted(tmp_path):
    save(tmp_path, 10, 20)
    (tmp_path / model_file_name(20)).unlink()
    save(tmp_path, 30, keep=2)
    assert complete_checkpoints(tmp_path) == [30, 10]


def test_the_new_checkpoint_is_not_deleted_in_favour_of_later_ones(tmp_path):
    save(tmp_path, 10, 50)  # 50 may be damaged, and the run resumed from 10
    save(tmp_path, 20, keep=1)
    assert complete_checkpoints(tmp_path) == [50, 20]


def full_disk(path):
    path.write_bytes(b"as far as there was room")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", [model_file_name(20), state_file_name(20, 0), outliers_file_name(20)])
def test_a_full_disk(tmp_path, name):
    save(tmp_path, 10)
    before = names(tmp_path)
    with pytest.raises(CheckpointFailed) as raised:
        save_checkpoint(tmp_path, 20, writers(20) | {name: full_disk}, Alone(), keep=1)
    message = str(raised.value)
    assert "step 20" in message and "No space left" in message and str(tmp_path) in message and "\n" not in message
    assert isinstance(raised.value, UserError)
    assert names(tmp_path) == before
    save(tmp_path, 20, keep=1)  # now there is space
    assert complete_checkpoints(tmp_path) == [20]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO, errno.ENAMETOOLONG])
def test_advice_fits_the_reason(tmp_path, number):
    def write(_):
        raise OSError(number, os.strerror(number))

    with pytest.raises(CheckpointFailed) as raised:
        save_checkpoint(tmp_path, 20, {model_file_name(20): write}, Alone())
    assert os.strerror(number) in str(raised.value)
    assert ("Free some space" in str(raised.value)) == (number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_real_full_disk(tmp_path):
    def write(path):
        path.symlink_to("/dev/full")
        path.write_bytes(b"something")

    with pytest.raises(CheckpointFailed, match="No space left"):
        save_checkpoint(tmp_path, 20, writers(20) | {state_file_name(20, 0): write}, Alone())
    assert names(tmp_path) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_fails_after_writing(tmp_path, monkeypatch, function):
    save(tmp_path, 10)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(CheckpointFailed, match="Input/output error"):
        save(tmp_path, 20, keep=1)
    assert complete_checkpoints(tmp_path) == [10] and not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_that_cannot_flush_directories(tmp_path, monkeypatch, number):
    """Some network file systems; a file that cannot be flushed is an error there, too."""
    fsync, failing = os.fsync, [stat.S_ISDIR]

    def fail(descriptor):
        if failing[0](os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    save(tmp_path, 10, 20, keep=1)
    assert complete_checkpoints(tmp_path) == [20]
    failing[0] = stat.S_ISREG
    with pytest.raises(CheckpointFailed, match=os.strerror(number)):
        save(tmp_path, 30, keep=1)
    assert complete_checkpoints(tmp_path) == [20]


def test_a_directory_that_cannot_be_opened_is_not_flushed(tmp_path, monkeypatch):
    """With the permissions 0333, files can be written in it. (It cannot be listed, which other tests are about.)"""
    open_file = os.open

    def fail(path, *rest, **options):
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_file(path, *rest, **options)

    monkeypatch.setattr(os, "open", fail)
    save(tmp_path, 10)
    assert complete_checkpoints(tmp_path) == [10]


def test_a_directory_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointFailed, match="Not a directory|exists"):
        save(tmp_path / "file" / "run", 10)


def test_old_checkpoints_that_cannot_be_deleted(tmp_path, monkeypatch):
    save(tmp_path, 10)
    (tmp_path / model_file_name(10)).unlink()
    (tmp_path / model_file_name(10)).mkdir()  # unlink refuses a directory
    with pytest.raises(OldCheckpointsRemain, match="step 20 was written to .*older ones could not be deleted"):
        save(tmp_path, 20, keep=1)
    assert complete_checkpoints(tmp_path) == [20]


def test_what_a_killed_deletion_has_left_is_deleted_by_the_next(tmp_path):
    save(tmp_path, 10, 20, 30)
    for step in (10, 30):
        (tmp_path / done_file_name(step)).unlink()  # as far as a run came that was killed while it deleted, or completed, a checkpoint
    save(tmp_path, 25)
    assert unfinished_checkpoints(tmp_path) == [30, 10]  # nothing is deleted unless asked for
    save(tmp_path, 26, keep=1)
    assert complete_checkpoints(tmp_path) == [26] and unfinished_checkpoints(tmp_path) == [30]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_in_place_of_a_state_file_does_not_hang(tmp_path):
    save(tmp_path, 10, 20)
    (tmp_path / state_file_name(20, 0)).unlink()
    os.mkfifo(tmp_path / state_file_name(20, 0))
    assert load_newest(tmp_path, lambda step, done: step) == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, UserError])
def test_other_errors_propagate(tmp_path, error):
    def write(path):
        path.touch()
        raise error("stop")

    with pytest.raises(error) as raised:
        save_checkpoint(tmp_path, 20, writers(20) | {outliers_file_name(20): write}, Alone())
    assert not isinstance(raised.value, CheckpointFailed) and names(tmp_path) == []


# --- Several processes ---


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_a_checkpoint_of_several_processes(tmp_path, processes):
    assert save_in_processes(tmp_path / "new" / "run", 20, processes) == [None] * processes
    found = {name: (tmp_path / "new/run" / name).read_bytes() for name in names(tmp_path / "new/run")}
    assert found == with_done(20, contents(20, processes=processes))


def test_nothing_is_renamed_before_all_have_written(tmp_path, monkeypatch):
    seen, replace = [], os.replace

    def watch(old, new):
        if not seen:
            assert set(names(tmp_path)) == {f".{name}.aside" for name in [*contents(20, processes=3), "DONE_00000020"]}
        seen.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(os, "replace", watch)
    save_in_processes(tmp_path, 20, 3)
    assert sorted(seen) == sorted([*contents(20, processes=3), "DONE_00000020"]) and seen[-1] == "DONE_00000020"


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_disk_full_for_one_process_fails_for_all(tmp_path, rank):
    save_in_processes(tmp_path, 10, 3)
    before = names(tmp_path)
    errors = save_in_processes(tmp_path, 20, 3, keep=1, changes={state_file_name(20, rank): full_disk})
    (message,) = {str(error) for error in errors}
    assert all(isinstance(error, CheckpointFailed) for error in errors)
    assert f"(rank {rank} on host {socket.gethostname()}, CPU: No space left" in message and "step 20" in message and "\n" not in message
    assert names(tmp_path) == before
    assert save_in_processes(tmp_path, 20, 3, keep=1) == [None] * 3  # now there is space
    assert complete_checkpoints(tmp_path) == [20]


@pytest.mark.parametrize("operation", ["fsync", "replace", "unlink"])
def test_a_disk_that_fails_after_writing_fails_for_all(tmp_path, monkeypatch, operation):
    save_in_processes(tmp_path, 10, 2)

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((Path, "unlink") if operation == "unlink" else (os, operation)), fail)
    errors = save_in_processes(tmp_path, 20, 2, keep=1)
    assert all(isinstance(error, CheckpointFailed) and ", CPU: Input/output error" in str(error) for error in errors)
    monkeypatch.undo()
    assert 10 in complete_checkpoints(tmp_path)


def test_processes_without_a_shared_directory(tmp_path):
    """Rank 1's host has a disk of its own under the same name."""
    errors = in_threads(
        2, lambda group: save_checkpoint(tmp_path / f"host{group.rank}", 20, files_of_rank(group.rank, writers(20, processes=2)), group)
    )
    assert all(isinstance(error, CheckpointFailed) for error in errors)
    for error in errors:
        message = str(error)
        assert "the files written by rank 1 on host " in message and "are not there: all processes must share one directory" in message
        assert "-o" in message and "\n" not in message
    assert names(tmp_path / "host0") == names(tmp_path / "host1") == []


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_numbers_that_are_not_finite_in_one_process_fail_for_all(tmp_path, rank):
    save_in_processes(tmp_path, 10, 3)
    before = names(tmp_path)

    def write(path):
        path.touch()
        raise NotFinite("there is nan in wte")

    errors = save_in_processes(tmp_path, 20, 3, keep=1, changes={state_file_name(20, rank): write})
    (message,) = {str(error) for error in errors}
    assert all(isinstance(error, CheckpointFailed) for error in errors)
    assert (
        f"(rank {rank} on host {socket.gethostname()}, CPU: there is nan in wte)" in message
        and "(-l)" in message
        and "space" not in message
    )
    assert names(tmp_path) == before


@pytest.mark.parametrize("before, after", [(4, 2), (2, 4), (3, 1)])
def test_a_step_repeated_by_another_number_of_processes(tmp_path, before, after):
    save_in_processes(tmp_path, 20, before)
    save_in_processes(tmp_path, 20, after, generation=1)
    found = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert found == with_done(20, contents(20, 1, after))


def test_each_file_is_reported_to_the_watch(tmp_path):
    reported = [[], []]

    def save_watched(group):
        group.watch = SimpleNamespace(doing=reported[group.rank].append, entering_collective=lambda: None)
        save_checkpoint(tmp_path, 20, files_of_rank(group.rank, writers(20, processes=2)), group)

    in_threads(2, save_watched)
    for rank in (0, 1):
        own = files_of_rank(rank, contents(20, processes=2))
        writing = [f"writing {tmp_path / name}" for name in own]
        assert reported[rank] == writing + [f"computing checksums of {tmp_path / f'.{name}.aside'}" for name in own]


# --- Killed ---


class ForkedMeeting:
    """Stands in for parallel/meeting.py's Meeting: one or two forked processes with a socket between them."""

    def __init__(self, rank, ranks, sockets):
        self.rank, self.ranks = rank, ranks
        self._socket, other = sockets[rank], sockets[1 - rank]
        other.close()  # so that the death of the other process closes the last copy of its end
        self._answers = self._socket.makefile()

    def gather(self, thing):
        if self.ranks == 1:
            return [thing]
        try:
            self._socket.sendall(json.dumps(thing).encode() + b"\n")
            answer = json.loads(self._answers.readline() or "dead")
        except (OSError, ValueError):
            os._exit(1)  # the other process is dead: the watch would end this one
        return [thing, answer] if self.rank == 0 else [answer, thing]


def fork_and_kill(directory, step, generation, keep, at, *meeting):
    """Save a checkpoint in a forked process, which is killed before its file system operation number `at` (None: never).

    meeting: the arguments of its ForkedMeeting. Returns the process's id.
    """
    child = os.fork()
    if child:
        return child
    signal.alarm(60)  # rather than hang
    count = 0

    def kill_at(event, args):
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(directory) in str(args[0]):
            count += 1
            if at is not None and count > at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        group = Group(ForkedMeeting(*meeting), "CPU")
        sys.addaudithook(kill_at)
        files = writers(step, generation, group.ranks)
        save_checkpoint(directory, step, files_of_rank(group.rank, files), group, keep)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(2)


def save_and_kill(directory, step, generation, keep, at, processes, victim):
    """Save a checkpoint with one or two processes, killing the victim before its operation number `at`. Returns whether it was killed."""
    sockets = socket.socketpair()
    children = [
        fork_and_kill(directory, step, generation, keep, at if rank == victim else None, rank, processes, sockets)
        for rank in range(processes)
    ]
    for end in sockets:
        end.close()
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert os.WIFSIGNALED(statuses[victim]) or statuses == [0] * processes
    return os.WIFSIGNALED(statuses[victim])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork and threads: harmless, since the child only writes files
@pytest.mark.parametrize("processes, victim", [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("step, newest", [(30, {20, 30}), (20, {10, 20})])  # a new step, and a repeated one
def test_killed_at_any_moment(tmp_path, step, newest, processes, victim):
    for at in range(100):
        directory = tmp_path / str(at)
        for before in (10, 20):
            save_in_processes(directory, before, processes)
        killed = save_and_kill(directory, step, 1, keep=2, at=at, processes=processes, victim=victim)
        steps = complete_checkpoints(directory)
        assert steps and steps[0] in newest
        for complete in steps:  # all files of one generation
            found = {name: (directory / name).read_bytes() for name in contents(complete, 0, processes)}
            generations = (0, 1) if complete == step else (0,)
            assert found in [contents(complete, generation, processes) for generation in generations]
        if not killed:
            break
        save_in_processes(directory, 40, processes)  # the next checkpoint cleans up
        assert complete_checkpoints(directory)[0] == 40
        assert not [name for name in names(directory) if name.startswith(".")]
    assert at >= (10 if victim == 0 else 3) and steps[0] == step  # killed at enough moments, and the last time not at all
    assert (directory / model_file_name(step)).read_bytes() == contents(step, 1, processes)[model_file_name(step)]


def test_load_newest(tmp_path, capsys):
    save(tmp_path, 10, 20, 30)
    assert load_newest(tmp_path, lambda step, done: f"loaded {step} of {len(done.files)} files") == "loaded 30 of 3 files"
    assert capsys.readouterr() == ("", "")


def test_load_newest_skips_damaged_checkpoints(tmp_path, capsys):
    save(tmp_path, 10, 20, 30)

    def load(step, _):
        if step > 10:
            raise UserError(f"{step} is cut off")
        return step

    assert load_newest(tmp_path, load) == 10
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: the checkpoint of step ") for line in lines)
    assert "30 is cut off" in lines[0] and "20 is cut off" in lines[1]


def test_load_newest_without_a_checkpoint_that_fits(tmp_path, capsys):
    with pytest.raises(UserError, match="and there is none"):
        load_newest(tmp_path, lambda step, _: step)
    save(tmp_path, 10, 20)

    def load(step, _):
        raise UserError(f"{step} is another model's")

    with pytest.raises(UserError, match="and none of 2 does. The newest: 20 is another model's"):
        load_newest(tmp_path, load)


def test_load_newest_hides_no_bug(tmp_path):
    save(tmp_path, 10, 20)
    with pytest.raises(ZeroDivisionError):
        load_newest(tmp_path, lambda step, _: 1 / 0)


# --- Damaged ---


def flip_bit(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def swap_in(path):
    """Replace a file of checkpoint 20 by that of 10, which has the same size."""
    shutil.copy(path.with_name(path.name.replace("00000020", "00000010")), path)


DAMAGES = {
    "a bit of the model": (model_file_name(20), flip_bit),
    "a bit of a state": (state_file_name(20, 1), flip_bit),
    "the first bit of a state": (state_file_name(20, 0), lambda path: flip_bit(path, 0)),
    "a bit of the windows": (outliers_file_name(20), flip_bit),
    "a bit of DONE": (done_file_name(20), lambda path: flip_bit(path, 30)),
    "the model of another step": (model_file_name(20), swap_in),
    "the windows of another step": (outliers_file_name(20), swap_in),
    "DONE of another step": (done_file_name(20), swap_in),
    "no windows": (outliers_file_name(20), Path.unlink),
    "no state": (state_file_name(20, 2), Path.unlink),
    "a state cut off": (state_file_name(20, 2), lambda path: os.truncate(path, 20)),
    "DONE cut off": (done_file_name(20), lambda path: os.truncate(path, 100)),
    "junk in DONE": (done_file_name(20), lambda path: path.write_bytes(os.urandom(100))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_found_before_it_is_loaded(tmp_path, capsys, damage):
    """Each process compares a part of the blocks, and all of them take the older checkpoint."""
    for step in (10, 20):
        save_in_processes(tmp_path, step, 3)
    name, spoil = DAMAGES[damage]
    spoil(tmp_path / name)
    with pytest.raises(UserError, match=re.escape(name)):
        verify_checkpoint(tmp_path, 20)
    loaded = []
    assert in_threads(3, lambda group: load_newest(tmp_path, lambda step, _: loaded.append(step) or step, group)) == [10] * 3
    assert loaded == [10] * 3
    warning = capsys.readouterr().err
    assert warning.startswith("warning: the checkpoint of step 20 cannot be used: ") and warning.count("\n") == 1 and name in warning


def test_if_one_process_cannot_load_a_checkpoint_all_take_the_older_one(tmp_path, capsys):
    save(tmp_path, 10, 20)

    def load_in(group):
        def load(step, _):
            if (group.rank, step) == (1, 20):
                raise UserError("too large for this GPU")
            return step

        return load_newest(tmp_path, load, group)

    assert in_threads(3, load_in) == [10] * 3
    assert capsys.readouterr().err == "warning: the checkpoint of step 20 cannot be used: rank 1: too large for this GPU\n"


def test_if_one_process_cannot_list_the_directory_all_say_so(tmp_path):
    save(tmp_path / "run", 10)
    (tmp_path / "file").touch()
    directories = [tmp_path / "run", tmp_path / "file", tmp_path / "run"]
    errors = in_threads(3, lambda group: load_newest(directories[group.rank], lambda *_: 1, group))
    (message,) = {str(error) for error in errors}
    assert isinstance(errors[0], UserError) and message.startswith("rank 1: ") and "cannot be listed" in message


def test_a_checkpoint_without_checksums_is_loaded(tmp_path, capsys):
    """DONE of llm.c is empty."""
    save(tmp_path, 10)
    (tmp_path / done_file_name(10)).write_bytes(b"")
    flip_bit(tmp_path / model_file_name(10))
    assert load_newest(tmp_path, lambda step, done: (step, done)) == (10, None)
    assert capsys.readouterr() == ("", "")


def test_facts_are_kept_in_done(tmp_path):
    facts = [{"data": [rank, "x", None]} for rank in range(2)]

    def save_own(group):
        files = files_of_rank(group.rank, writers(10, processes=2))
        save_checkpoint(tmp_path, 10, files, group, facts=facts[group.rank])

    assert in_threads(2, save_own) == [None, None]
    assert read_done(tmp_path, 10).facts == facts[0]
    assert (tmp_path / done_file_name(10)).read_bytes() == done_content(10, contents(10, processes=2), facts[0])
    (tmp_path / done_file_name(10)).unlink()
    with pytest.raises(UserError, match="DONE_00000010: .*missing"):
        read_done(tmp_path, 10)


# --- Outlier windows ---


def test_outliers_survive_bit_for_bit(tmp_path):
    losses, norms = [0.1 + 0.2, -0.0, 5e-324, math.pi], [1.5, 3e38]
    write_outliers(tmp_path / "o.json", losses, norms)
    found = read_outliers(tmp_path / "o.json")
    assert struct.pack("<6d", *found[0], *found[1]) == struct.pack("<6d", *losses, *norms)


def test_outliers_that_are_not_finite_are_left_out(tmp_path):
    """A window with infinity or NaN would give no scores until they have left it."""
    write_outliers(tmp_path / "o.json", [math.nan, 1.0, math.inf, 2.0], [-math.inf])
    assert read_outliers(tmp_path / "o.json") == ([1.0, 2.0], [])


def test_outliers_beyond_float32_are_damage(tmp_path):
    """No loss or norm is so large, and their squares would overflow."""
    write_outliers(tmp_path / "o.json", [1.0], [1e308])
    with pytest.raises(UserError, match="must be two lists"):
        read_outliers(tmp_path / "o.json")


def test_outliers_are_empty_in_a_checkpoint_of_llmc(tmp_path):
    assert read_outliers(tmp_path / "none.json") == ([], [])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"loss": ["0x1.0p+0"], "no',
        b'{"loss": []}',
        b'{"loss": [1], "norm": []}',
        b'{"loss": 1, "norm": []}',
        b'{"loss": ["x"], "norm": []}',
        b"[]",
        b"\xff\xfe",
        b'{"loss": ["0x1.0p+9999"], "norm": []}',
        b'{"loss": [null], "norm": []}',
        b'{"loss": {"0x1p0": 1}, "norm": 0}',
        b'{"loss": [], "norm": ' + b"[" * 100_000,
        b'{"loss": ' + b"9" * 5000 + b', "norm": []}',
        b'{"norm": [], "loss": [' + b'"0x1p0", ' * 2000 + b'"0x1p0"]}',
    ],
)
def test_damaged_outliers_are_refused(tmp_path, content):
    (tmp_path / "o.json").write_bytes(content)
    with pytest.raises(UserError, match="cut off or altered"):
        read_outliers(tmp_path / "o.json")


@pytest.mark.parametrize("spoil", [os.mkfifo, os.mkdir, lambda path: path.write_bytes(bytes(2 << 20))], ids=["pipe", "directory", "huge"])
def test_what_cannot_be_an_outliers_file_is_refused(tmp_path, spoil):
    spoil(tmp_path / "o.json")
    with pytest.raises(UserError, match=r"o\.json"):
        read_outliers(tmp_path / "o.json")
