"""Checkpoints: a run that writes them can be killed at any moment and still be resumed.

A checkpoint of step S consists of these files, named as in llm.c, so that either program finds the other's:

    model_SSSSSSSS.bin          the parameters
    state_SSSSSSSS_RRRRR.bin    the rest of the run's state, one file for each rank R
    outliers_SSSSSSSS.json      the windows of the outlier detectors, which llm.c does not keep
    DONE_SSSSSSSS               written last: without it the others do not count. It holds the checksums of the others (done_file.py);
                                llm.c leaves it empty

Before a checkpoint is loaded, its files are compared with the checksums, so that none is used that was altered, cut off or mixed with
another. All files are first written under hidden names and flushed to disk, then renamed, DONE last. So a checkpoint is either complete or
ignored, and a full disk costs no older one. The disk must have room for one checkpoint more than are kept.

Several processes write to one directory, which all of them must be able to access. Each writes its own files under hidden names. When all
have done so, rank 0 alone renames all files; so it does not matter which process is killed, or when. Two runs must not write to one
directory: see run_lock.py.
"""

import errno
import itertools
import json
import math
import os
import re
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.agreement import together
from gpt2_numba.parallel.group import Alone
from gpt2_numba.training.checksums import checksums_of, verify_files
from gpt2_numba.training.done_file import read_done_file, read_small_file, write_done_file
from gpt2_numba.training.finite import NotFinite
from gpt2_numba.training.state_file import MAGIC as STATE_MAGIC

MAX_OUTLIERS_BYTES = 1 << 20  # a window of 128 numbers takes 3 KB
MAX_WINDOW = 1 << 10  # numbers
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_FLUSH_DIRECTORIES = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}  # some network and WSL mounts
FLOAT32_MAX = float(np.finfo(np.float32).max)
_HIDDEN_SUFFIX = ".aside"  # suffix of the hidden name of a file that is being written


class OldCheckpointsRemain(UserError):
    """A checkpoint was written, but older ones could not be deleted."""


class CheckpointFailed(UserError):
    """A checkpoint could not be written. The older ones are unchanged, and the run can continue."""


def model_file_name(step):
    """Name of a checkpoint's parameter file."""
    return f"model_{step:08d}.bin"


def state_file_name(step, rank):
    """Name of a checkpoint's state file for one rank."""
    return f"state_{step:08d}_{rank:05d}.bin"


def outliers_file_name(step):
    """Name of a checkpoint's file with the outlier detectors' windows."""
    return f"outliers_{step:08d}.json"


def done_file_name(step):
    """Name of the file that marks a checkpoint as complete."""
    return f"DONE_{step:08d}"


def save_checkpoint(directory, step, write_files, group, keep=0, major_every=0, facts=None):
    """Write the checkpoint of `step`, all or nothing, then delete old ones. All processes of a run call it together.

    directory    created if absent; the same one for all processes
    write_files  this process's files: name -> function that writes the file to the path it is given, such as
                 {model_file_name(step): lambda path: write_model_file(path, config, flat)}
    group        the processes (parallel/group.py)
    keep         number of newest complete checkpoints to keep, including this one; 0 keeps all
    major_every  checkpoints whose step is a multiple of this are never deleted; 0 makes none major
    facts        JSON-serialisable dictionary about the run, kept in DONE; rank 0's counts
    Raises CheckpointFailed, in all processes, if one of them cannot write a file or has numbers that are not finite; the hidden files are
    then removed and the checkpoints of other steps are unchanged. Raises OldCheckpointsRemain, in all processes, if old ones cannot be
    deleted. Other errors of the functions propagate where they occur.
    """
    directory = Path(directory)
    failure = _try(
        directory, step, write_files, group, lambda checksums_by_rank: _complete(directory, step, checksums_by_rank, group, facts)
    )
    if failure:
        reason, advice = failure
        raise CheckpointFailed(
            f"the checkpoint of step {step} could not be written to {directory} ({reason}); the older ones are unchanged{advice}"
        )
    failure = _by_rank_0(group, lambda: _delete_old(directory, step, keep, major_every))
    if failure:
        raise OldCheckpointsRemain(
            f"the checkpoint of step {step} was written to {directory}, but older ones could not be deleted ({failure[0]}). Delete them by hand"
        )


def rehearse_checkpoint(directory, step, write_files, group):
    """Write all files of a checkpoint under their hidden names, then remove them: is there space, may they be written, are they right?

    Parameters as for save_checkpoint. Raises CheckpointFailed, in all processes, where that does.
    """
    directory = Path(directory)

    def finish(checksums_by_rank):
        _write_hidden_done(directory, step, checksums_by_rank, group, facts=None)
        _flush_directory(directory)

    failure = _try(directory, step, write_files, group, finish)
    if failure:
        reason, advice = failure
        raise CheckpointFailed(f"checkpoints cannot be written to {directory} ({reason}), as a rehearsal has shown{advice}")


def _try(directory, step, write_files, group, finish):
    """Write all files under their hidden names, and let rank 0 `finish` with their checksums by rank; then remove the hidden files.

    Returns, in all processes, [reason, advice] of the first that failed, or None.
    """
    checksums = {}
    own_names = [*write_files, *([done_file_name(step)] if group.rank == 0 else [])]
    try:
        # Each stage starts when all processes have finished the one before; the reason of a failure is known to all of them.
        failure = (
            _by_rank_0(group, lambda: _remove_hidden_files(directory))  # left by a killed run: they take up space
            or _first_failure(group, lambda: checksums.update(_write_hidden(directory, write_files, group)))
        )
        if failure:
            return failure
        checksums_by_rank = group.gather(checksums)
        return _by_rank_0(group, lambda: finish(checksums_by_rank))
    finally:
        for name in own_names:
            with suppress(OSError):  # usually there is none left; what cannot be removed now, the next checkpoint removes
                _hidden_path(directory, name).unlink()


def complete_checkpoints(directory):
    """Steps of the complete checkpoints in `directory`, newest first; empty if the directory does not exist.

    Complete means that DONE, the model file and the state files of all processes exist. Their contents are not checked.
    Raises UserError if the directory cannot be listed.
    """
    return _listed(directory, lambda names: _complete_steps(Path(directory), names))


def done_checkpoints(directory):
    """Steps of the checkpoints in `directory` that have DONE, newest first: all that were once complete.

    Raises UserError if the directory cannot be listed.
    """
    return _listed(directory, _done_steps)


def unfinished_checkpoints(directory):
    """Steps, newest first, of which there are model or state files without DONE: they do not count. Raises UserError as done_checkpoints."""
    return _listed(directory, _unfinished_steps)


def checkpoint_files(directory, step):
    """Paths of the existing files of a checkpoint, except DONE. Raises OSError."""
    directory = Path(directory)
    others = {model_file_name(step), outliers_file_name(step)}
    return [
        directory / name
        for name in sorted(_names(directory))
        if name in others or re.fullmatch(rf"state_{step:08d}_[0-9]{{5,}}\.bin", name)
    ]


def agreed_checkpoints(directory, group):
    """done_checkpoints as rank 0 finds them, at every rank. All processes call it; if one cannot list the directory, all raise SharedError."""
    return group.gather(together(group, lambda: done_checkpoints(directory)))[0]


def read_done(directory, step):
    """The Done (done_file.py) of a checkpoint, with its facts; None if nothing is recorded, as by llm.c. Raises UserError if it is damaged."""
    path = Path(directory) / done_file_name(step)
    try:
        return read_done_file(path, step)
    except FileNotFoundError as error:
        raise UserError(f"{path}: a checkpoint must have this file, and it is missing. Use an older checkpoint") from error


def verify_checkpoint(directory, step, share=(0, 1), progress=lambda path: None):
    """Raise UserError if files of a checkpoint are missing or differ from their checksums. Returns its Done, or None (see read_done).

    share, progress: see verify_files (checksums.py)
    """
    directory = Path(directory)
    missing = _missing_file(directory, step, _names(directory))
    if missing:
        raise UserError(f"{directory / missing}: a checkpoint must have all its files, but this one is missing. Use an older checkpoint")
    done = read_done(directory, step)
    if done:
        verify_files(directory, done, share, progress)
    return done


def load_newest(directory, load, group=None):
    """Return load(step, done) for the newest complete checkpoint that is intact. All processes of the group call it; all get the same one.

    load   function of a step and its Done (None if nothing is recorded); called when the files have been compared with their checksums.
           Raises UserError if the checkpoint is damaged or does not fit
    group  the processes, which divide the work of comparing; None: this one alone
    A checkpoint that is damaged, or that `load` refuses in any process, is skipped, with a warning by rank 0, and the one before it tried.
    Raises UserError if none can be loaded; the message has the newest one's reason.
    """
    group = group or Alone()
    steps = agreed_checkpoints(directory, group)
    reasons = []
    for step in steps:
        try:
            return _load(directory, step, load, group)
        except UserError as error:
            if group.rank == 0:
                print(f"warning: the checkpoint of step {step} cannot be used: {error}", file=sys.stderr)
            reasons.append(str(error))
    if not steps:
        raise UserError(
            f"{directory}: resuming needs a complete checkpoint, with DONE, model and state files, and there is none. "
            f"Check the directory (-o), or start without -y 1"
        )
    raise UserError(
        f"{directory}: resuming needs a complete checkpoint that fits this run, and none of {len(steps)} does. The newest: {reasons[0]}"
    )


def _load(directory, step, load, group):
    """Nothing is loaded anywhere before all processes have compared their shares. Between the processes only `together` is called."""
    share = group.rank, group.ranks

    def verify():
        return verify_checkpoint(directory, step, share, lambda path: group.doing(f"comparing {path} with its checksums"))

    done = together(group, verify)
    return together(group, lambda: load(step, done))


def write_outliers(path, loss_values, norm_values):
    """Write the windows of the two outlier detectors, oldest value first, exact to the bit."""
    windows = {"loss": loss_values, "norm": norm_values}
    Path(path).write_text(json.dumps({name: [float(x).hex() for x in values] for name, values in windows.items()}))


def read_outliers(path):
    """Return (loss_values, norm_values), the lists of floats that write_outliers wrote, without those that are not finite.

    Both are empty if the file does not exist, as in llm.c's checkpoints. Raises UserError if it is anything else.
    """
    try:
        windows = json.loads(read_small_file(path, MAX_OUTLIERS_BYTES))
        loss_values, norm_values = ([float.fromhex(x) for x in windows[name]] for name in ("loss", "norm"))
        if max(len(loss_values), len(norm_values)) > MAX_WINDOW:
            raise ValueError("too long")
        if any(FLOAT32_MAX < abs(x) < math.inf for x in (*loss_values, *norm_values)):
            raise ValueError("not a float32")
    except FileNotFoundError:
        return [], []
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: the windows of the outlier detectors must be two lists of at most {MAX_WINDOW} numbers; this file was cut off or altered "
            f"({type(error).__name__}). Use an older checkpoint"
        ) from error
    return tuple([x for x in values if math.isfinite(x)] for values in (loss_values, norm_values))


def _first_failure(group, work):
    """Call `work` in every process. Returns, to all of them, [reason, advice] of the first that could not write its files, or None."""
    failure = None
    try:
        work()
    except OSError as error:
        advice = ". Free some space, or name another directory with -o" if error.errno in NO_SPACE else ""
        failure = [error.strerror or type(error).__name__, advice]
    except NotFinite as error:
        failure = [str(error), ". Resume from one of them (-y 1), with a smaller learning rate (-l)"]
    failures = [(name, *failure) for name, failure in zip(group.names, group.gather(failure)) if failure]
    if not failures:
        return None
    name, reason, advice = failures[0]
    return [reason if group.ranks == 1 else f"{name}: {reason}", advice]


def _by_rank_0(group, work):
    """Like _first_failure, but only rank 0 calls `work`; the others wait for its result."""
    return _first_failure(group, work if group.rank == 0 else lambda: None)


def _write_hidden(directory, write_files, group):
    """Write this process's files under their hidden names and flush them to disk. Returns name -> checksums."""
    directory.mkdir(parents=True, exist_ok=True)  # by each process: a host may be slow to see what another has created
    for name, write in write_files.items():
        group.doing(f"writing {directory / name}")
        write(_hidden_path(directory, name))
        _flush_file(_hidden_path(directory, name))
    paths = [_hidden_path(directory, name) for name in write_files]
    return dict(zip(write_files, checksums_of(paths, lambda path: group.doing(f"computing checksums of {path}"))))


def _complete(directory, step, checksums_by_rank, group, facts):
    """Write DONE under its hidden name, then rename the hidden files of all processes, which makes them the checkpoint."""
    _rename_files(directory, step, _write_hidden_done(directory, step, checksums_by_rank, group, facts))


def _write_hidden_done(directory, step, checksums_by_rank, group, facts):
    """Write DONE under its hidden name. Returns the checksums of all files by name."""
    for process, files in zip(group.names, checksums_by_rank):
        if not all(_hidden_path(directory, name).exists() for name in files):
            raise OSError(errno.ENOENT, f"the files written by {process} are not there: all processes must share one directory (-o)")
    all_files = {name: recorded for files in checksums_by_rank for name, recorded in files.items()}
    done = _hidden_path(directory, done_file_name(step))
    write_done_file(done, step, all_files, facts)
    _flush_file(done)
    return all_files


def _rename_files(directory, step, names):
    """Rename the hidden files, DONE last. No more space is needed for that."""
    done = done_file_name(step)

    # If a run repeats a step, its old files are replaced one by one: meanwhile the checkpoint must not count.
    (directory / done).unlink(missing_ok=True)
    _flush_directory(directory)
    for path in checkpoint_files(directory, step):
        if path.name not in names:  # the earlier run had more processes
            path.unlink()
    for name in names:
        os.replace(_hidden_path(directory, name), directory / name)
    _flush_directory(directory)  # the other names before DONE, even if the power fails
    os.replace(_hidden_path(directory, done), directory / done)
    _flush_directory(directory)


def _delete_old(directory, newest, keep, major_every):
    """Delete all but the `keep` newest of the complete checkpoints up to step `newest`, except major ones; none if `keep` is 0.

    With them go the files without DONE of older steps, which a run that was killed here has left. Later steps do not count: a run that was
    resumed from an older checkpoint leaves a damaged one ahead of it.
    """
    if not keep:
        return
    names = _names(directory)
    old = [step for step in _complete_steps(directory, names) if step <= newest][keep:]
    for step in [step for step in old if not (major_every and step % major_every == 0)]:
        (directory / done_file_name(step)).unlink()  # first: a half-deleted checkpoint must not count
        _flush_directory(directory)
        _delete_files(directory, step)
    for step in [step for step in _unfinished_steps(names) if step < newest]:
        _delete_files(directory, step)


def _delete_files(directory, step):
    for path in checkpoint_files(directory, step):
        path.unlink()


def _names(directory):
    """The names of all files in a directory; empty if it does not exist. Raises OSError."""
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()


def _listed(directory, choose):
    """choose(names of all files in the directory). Raises UserError if it cannot be listed."""
    try:
        return choose(_names(directory))
    except OSError as error:
        raise UserError(
            f"{directory} must be a directory that can be listed, to look for checkpoints, and cannot be listed: {error.strerror}. "
            "Name another one (-o), or change its permissions"
        ) from error


def _steps(names, pattern):
    matches = (re.fullmatch(pattern, name) for name in names)
    return {int(match[1]) for match in matches if match}


def _done(names):
    return _steps(names, r"DONE_([0-9]{8,})")


def _done_steps(names):
    return sorted(_done(names), reverse=True)


def _unfinished_steps(names):
    return sorted(_steps(names, r"(?:model|state)_([0-9]{8,})(?:_[0-9]{5,})?\.bin") - _done(names), reverse=True)


def _complete_steps(directory, names):
    return [step for step in _done_steps(names) if _missing_file(directory, step, names) is None]


def _missing_file(directory, step, names):
    """The name of a file that the checkpoint lacks; None if it is complete. names: of all files in the directory."""
    processes = _process_count(directory / state_file_name(step, 0))
    needed = itertools.chain([model_file_name(step)], (state_file_name(step, rank) for rank in range(processes)))
    return next((name for name in needed if name not in names), None)


def _process_count(path):
    """The number of processes in the header of rank 0's state file; 1 if it is damaged, which loading it then reports."""
    try:
        with open_regular(path, "rb") as file:
            magic, _, processes = struct.unpack("<3i", file.read(12))
    except (OSError, struct.error):
        return 1
    return processes if magic == STATE_MAGIC else 1


def _hidden_path(directory, name):
    return directory / f".{name}{_HIDDEN_SUFFIX}"


def _remove_hidden_files(directory):
    for name in _names(directory):
        if name.startswith(".") and name.endswith(_HIDDEN_SUFFIX):
            (directory / name).unlink(missing_ok=True)


def _flush_file(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_directory(directory):
    """Flush the directory's entries to disk, where the file system has a way to do that. Windows has no call for it."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:  # files can be written in a directory that cannot be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH_DIRECTORIES:
            raise
    finally:
        os.close(descriptor)
