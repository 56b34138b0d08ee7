"""Checkpoints: a run that writes them can be killed at any moment and still be resumed.

A checkpoint of step S consists of these files, named as in llm.c, so that either program finds the other's:

    model_SSSSSSSS.bin          the parameters
    state_SSSSSSSS_RRRRR.bin    the rest of the run's state, one file for each rank R
    outliers_SSSSSSSS.json      the windows of the outlier detectors, which llm.c does not keep
    DONE_SSSSSSSS               empty, written last: without it the others do not count

All files are first written under hidden names and flushed to disk, then renamed, DONE last. So a checkpoint is either complete or ignored,
and a full disk costs no older one. The disk must have room for one checkpoint more than are kept.

Several processes write to one directory, which all of them must be able to access. Each writes its own files under hidden names. When all
have done so, rank 0 alone renames all files; so it does not matter which process is killed, or when.
"""

import errno
import itertools
import json
import os
import re
import struct
import sys
from contextlib import suppress
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.training.state_file import MAGIC as STATE_MAGIC

_HIDDEN_SUFFIX = ".aside"  # suffix of the hidden name of a file that is being written


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
    """Name of the empty file that marks a checkpoint as complete."""
    return f"DONE_{step:08d}"


def save_checkpoint(directory, step, write_files, group, keep=0, major_every=0):
    """Write the checkpoint of `step`, all or nothing, then delete old ones. All processes of a run call it together.

    directory    created if absent; the same one for all processes
    write_files  this process's files: name -> function that writes the file to the path it is given, such as
                 {model_file_name(step): lambda path: write_model_file(path, config, flat)}
    group        the processes (parallel/group.py)
    keep         number of newest complete checkpoints to keep, including this one; 0 keeps all
    major_every  checkpoints whose step is a multiple of this are never deleted; 0 makes none major
    Raises CheckpointFailed, in all processes, if one of them cannot write or delete a file. Other errors of the functions propagate where
    they occur. Either way the hidden files are removed and the older checkpoints are unchanged.
    """
    directory = Path(directory)
    if group.rank == 0:
        write_files = {**write_files, done_file_name(step): Path.touch}
    names = group.gather(list(write_files))
    try:
        # Each stage starts when all processes have finished the one before; the reason of a failure is known to all of them.
        reason = (
            _by_rank_0(group, lambda: _remove_hidden_files(directory))  # left by a killed run: they take up space
            or _together(group, lambda: _write_hidden(directory, write_files, group))
            or _by_rank_0(group, lambda: _rename_files(directory, step, names, group))
        )
    finally:
        for name in write_files:
            with suppress(OSError):  # usually there is none left; what cannot be removed now, the next checkpoint removes
                _hidden_path(directory, name).unlink()
    if reason:
        raise CheckpointFailed(
            f"the checkpoint of step {step} could not be written to {directory} ({reason}); the older ones are "
            f"unchanged. Free some space, or name another directory with -o"
        )
    reason = _by_rank_0(group, lambda: _delete_old(directory, step, keep, major_every))
    if reason:
        raise CheckpointFailed(
            f"the checkpoint of step {step} was written to {directory}, but older ones could not be deleted ({reason}). Delete them by hand"
        )


def complete_checkpoints(directory):
    """Steps of the complete checkpoints in `directory`, newest first; empty if the directory does not exist.

    Complete means that DONE, the model file and the state files of all processes exist. Their contents are not checked.
    """
    return [step for step in done_checkpoints(directory) if _missing_file(Path(directory), step) is None]


def done_checkpoints(directory):
    """Steps of the checkpoints in `directory` that have DONE, newest first: all that were once complete."""
    matches = (re.fullmatch(r"DONE_(\d{8,})", path.name) for path in Path(directory).glob("DONE_*"))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def load_newest(directory, load, warn=True):
    """Return load(step) for the newest complete checkpoint that can be loaded.

    load  function of a step; raises UserError if the checkpoint is damaged or does not fit. The checkpoint is then skipped, with a warning,
          and the one before it is tried; likewise if DONE exists but another file is missing.
    warn  False suppresses the warnings
    Raises UserError if none can be loaded; the message has the newest one's reason.
    """
    steps = done_checkpoints(directory)
    reasons = []
    for step in steps:
        try:
            missing = _missing_file(Path(directory), step)
            if missing:
                raise UserError(
                    f"{Path(directory) / missing}: a checkpoint must have all its files, but this one is missing. Use an older checkpoint"
                )
            return load(step)
        except UserError as error:
            if warn:
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


def write_outliers(path, loss_values, norm_values):
    """Write the windows of the two outlier detectors, oldest value first, exact to the bit (including NaN and infinity)."""
    windows = {"loss": loss_values, "norm": norm_values}
    Path(path).write_text(json.dumps({name: [float(x).hex() for x in values] for name, values in windows.items()}))


def read_outliers(path):
    """Return (loss_values, norm_values), the lists of floats that write_outliers wrote.

    Both are empty if the file does not exist, as in llm.c's checkpoints. Raises UserError if it is anything else.
    """
    try:
        windows = json.loads(Path(path).read_text())
        return tuple([float.fromhex(x) for x in windows[name]] for name in ("loss", "norm"))
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: the windows of the outlier detectors must be two lists of numbers; this file was cut off or altered "
            f"({type(error).__name__}). Use an older checkpoint"
        ) from error


def _together(group, work):
    """Call `work` in every process. Returns, to all of them, the reason of the first that failed with an OSError, or None."""
    reason = None
    try:
        work()
    except OSError as error:
        reason = _reason(error)
    failures = [(name, reason) for name, reason in zip(group.names, group.gather(reason)) if reason]
    if not failures:
        return None
    name, reason = failures[0]
    return reason if group.ranks == 1 else f"{name}: {reason}"


def _by_rank_0(group, work):
    """Like _together, but only rank 0 calls `work`; the others wait for its result."""
    return _together(group, work if group.rank == 0 else lambda: None)


def _write_hidden(directory, write_files, group):
    """Write this process's files under their hidden names and flush them to disk."""
    directory.mkdir(parents=True, exist_ok=True)  # by each process: a host may be slow to see what another has created
    for name, write in write_files.items():
        group.doing(f"writing {directory / name}")
        write(_hidden_path(directory, name))
        _flush_file(_hidden_path(directory, name))


def _rename_files(directory, step, names_by_rank, group):
    """Rename the hidden files of all processes, which makes them the checkpoint. DONE is among them, so no more space is needed."""
    for process, names in zip(group.names, names_by_rank):
        if not all(_hidden_path(directory, name).exists() for name in names):
            raise OSError(errno.ENOENT, f"the files written by {process} are not there: all processes must share one directory")
    done = done_file_name(step)
    names = [name for names in names_by_rank for name in names if name != done]

    # If a run repeats a step, its old files are replaced one by one: meanwhile the checkpoint must not count.
    (directory / done).unlink(missing_ok=True)
    _flush_directory(directory)
    for path in _existing_files(directory, step):
        if path.name not in names:  # the earlier run had more processes
            path.unlink()
    for name in names:
        os.replace(_hidden_path(directory, name), directory / name)
    _flush_directory(directory)  # the other names before DONE, even if the power fails
    os.replace(_hidden_path(directory, done), directory / done)
    _flush_directory(directory)


def _delete_old(directory, newest, keep, major_every):
    """Delete all but the `keep` newest of the complete checkpoints up to step `newest`, except major ones.

    Later steps do not count: a run that was resumed from an older checkpoint leaves a damaged one ahead of it.
    """
    steps = [step for step in complete_checkpoints(directory) if step <= newest]
    for step in steps[keep:] if keep else []:
        if not (major_every and step % major_every == 0):
            (directory / done_file_name(step)).unlink()  # first: a half-deleted checkpoint must not count
            _flush_directory(directory)
            for path in _existing_files(directory, step):
                path.unlink()


def _existing_files(directory, step):
    """Paths of the existing files of a checkpoint, except DONE."""
    patterns = model_file_name(step), f"state_{step:08d}_*.bin", outliers_file_name(step)
    return [path for pattern in patterns for path in directory.glob(pattern)]


def _missing_file(directory, step):
    """The name of a file that the checkpoint lacks; None if it is complete."""
    processes = _process_count(directory / state_file_name(step, 0))
    names = itertools.chain([model_file_name(step)], (state_file_name(step, rank) for rank in range(processes)))
    return next((name for name in names if not (directory / name).exists()), None)


def _process_count(path):
    """The number of processes in the header of rank 0's state file; 1 if it is damaged, which loading it then reports."""
    try:
        with open(path, "rb") as file:
            magic, _, processes = struct.unpack("<3i", file.read(12))
    except (OSError, struct.error):
        return 1
    return processes if magic == STATE_MAGIC else 1


def _hidden_path(directory, name):
    return directory / f".{name}{_HIDDEN_SUFFIX}"


def _remove_hidden_files(directory):
    for path in directory.glob(f".*{_HIDDEN_SUFFIX}"):
        path.unlink(missing_ok=True)


def _flush_file(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_directory(directory):
    """Flush the directory's entries to disk. Windows has no call for it and does it on its own."""
    if os.name != "nt":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error):
    return error.strerror or type(error).__name__
