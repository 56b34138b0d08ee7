"""Checkpoints: a directory in which a run can be killed at any moment and still be gone on with.

A checkpoint of step S is these files, named as llm.c does, so that either program finds the other's:

    model_SSSSSSSS.bin          the parameters
    state_SSSSSSSS_RRRRR.bin    what else a run must remember, one for each rank R
    outliers_SSSSSSSS.json      the windows of the outlier detectors, which llm.c does not keep
    DONE_SSSSSSSS               empty, and the last: without it the others do not count

All are first written aside, under hidden names, and brought to the disk; then they get their names, DONE after the
others. So a checkpoint is there as a whole or is ignored, and a full disk costs no older one. The disk must have room
for one checkpoint more than are kept.

Several processes write to one directory, which all of them must see. Each writes its own files aside. When rank 0 knows
that all have done so, it alone gives all the names; so it does not matter when which process is killed.
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

_ASIDE = ".aside"  # ends the hidden name of a file that is being written


class CheckpointFailed(UserError):
    """A checkpoint could not be written. The older ones are as they were, and the run can go on."""


def model_file_name(step):
    """Name of a checkpoint's file of parameters."""
    return f"model_{step:08d}.bin"


def state_file_name(step, rank):
    """Name of a checkpoint's state file of one rank."""
    return f"state_{step:08d}_{rank:05d}.bin"


def outliers_file_name(step):
    """Name of a checkpoint's file of the outlier detectors' windows."""
    return f"outliers_{step:08d}.json"


def done_file_name(step):
    """Name of the empty file that makes a checkpoint count."""
    return f"DONE_{step:08d}"


def save_checkpoint(directory, step, write_files, group, keep=0, major_every=0):
    """Write the checkpoint of `step` as a whole, then delete old ones. All processes of a run call it together.

    directory    made if absent; the same one for all processes
    write_files  this process's files: name -> function that writes the file at the path it is given, such as
                 {model_file_name(step): lambda path: write_model_file(path, config, flat)}
    group        the processes (parallel/group.py)
    keep         complete checkpoints to be left, this one included, the newest ones; 0 keeps all
    major_every  checkpoints whose step is a multiple of it are never deleted; 0 makes none major
    Raises CheckpointFailed, at all processes, if one cannot write or delete a file. Other errors of the functions come
    through where they occur. Either way the files written aside are removed and the older checkpoints are still there.
    """
    directory = Path(directory)
    if group.rank == 0:
        write_files = {**write_files, done_file_name(step): Path.touch}
    names = group.gather(list(write_files))
    try:
        # Each part begins when all processes have done the one before; a reason why one could not is known to all.
        reason = (
            _by_rank_0(group, lambda: _remove_files_aside(directory))  # of a run that was killed: they take up room
            or _together(group, lambda: _write_aside(directory, write_files, group))
            or _by_rank_0(group, lambda: _give_names(directory, step, names, group))
        )
    finally:
        for name in write_files:
            with suppress(OSError):  # most often there is none left; what cannot be removed now, the next checkpoint removes
                _aside(directory, name).unlink()
    if reason:
        raise CheckpointFailed(
            f"the checkpoint of step {step} could not be written to {directory} ({reason}); the older ones "
            f"are as they were. Free some space, or name another directory with -o"
        )
    reason = _by_rank_0(group, lambda: _delete_old(directory, step, keep, major_every))
    if reason:
        raise CheckpointFailed(
            f"the checkpoint of step {step} is written to {directory}, but older ones could not be deleted ({reason}). Delete them by hand"
        )


def complete_checkpoints(directory):
    """Steps of the complete checkpoints in `directory`, newest first; empty if there is no such directory.

    Complete: DONE, the model file and the state files of all processes are there. What is in them is not looked at.
    """
    return [step for step in done_checkpoints(directory) if _missing_file(Path(directory), step) is None]


def done_checkpoints(directory):
    """Steps of the checkpoints in `directory` that have DONE, newest first: those that were once complete."""
    matches = (re.fullmatch(r"DONE_(\d{8,})", path.name) for path in Path(directory).glob("DONE_*"))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def load_newest(directory, load, warn=True):
    """Return load(step) for the newest complete checkpoint that can be loaded.

    load  function of a step; raises UserError if the checkpoint is damaged or does not fit. Then a warning says so, and
          the one before it is tried; likewise where DONE is there and another file is missing.
    warn  False: without the warning
    Raises UserError if none can be loaded; the message has the newest one's reason.
    """
    steps = done_checkpoints(directory)
    reasons = []
    for step in steps:
        try:
            missing = _missing_file(Path(directory), step)
            if missing:
                raise UserError(
                    f"{Path(directory) / missing}: a checkpoint must have all its files, this one is missing. Use an older checkpoint"
                )
            return load(step)
        except UserError as error:
            if warn:
                print(f"warning: the checkpoint of step {step} cannot be used: {error}", file=sys.stderr)
            reasons.append(str(error))
    if not steps:
        raise UserError(
            f"{directory}: to resume, there must be a complete checkpoint, with DONE, model and state "
            f"files; there is none. Check the directory (-o), or start without -y 1"
        )
    raise UserError(
        f"{directory}: to resume, one complete checkpoint must fit this run, none of {len(steps)} does. The newest: {reasons[0]}"
    )


def write_outliers(path, loss_values, norm_values):
    """Write the windows of the two outlier detectors, oldest value first, bit for bit (NaN and infinity, too)."""
    windows = {"loss": loss_values, "norm": norm_values}
    Path(path).write_text(json.dumps({name: [float(x).hex() for x in values] for name, values in windows.items()}))


def read_outliers(path):
    """Return (loss_values, norm_values), lists of floats, as write_outliers got them.

    Both are empty if there is no such file: a checkpoint of llm.c has none.
    Raises UserError if the file is something else.
    """
    try:
        windows = json.loads(Path(path).read_text())
        return tuple([float.fromhex(x) for x in windows[name]] for name in ("loss", "norm"))
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: the windows of the outlier detectors must be two lists of numbers, this file was cut "
            f"off or altered ({type(error).__name__}). Use an older checkpoint"
        ) from error


def _together(group, work):
    """Call `work` at every process. Returns why one of them could not do it, if that was an OSError; else None. All get the same."""
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
    """As _together, but only rank 0 works; the others wait for what comes of it."""
    return _together(group, work if group.rank == 0 else lambda: None)


def _write_aside(directory, write_files, group):
    """Write this process's files under their hidden names, and bring them to the disk."""
    directory.mkdir(parents=True, exist_ok=True)  # by each process: a host may be late to see what another has made
    for name, write in write_files.items():
        group.doing(f"writing {directory / name}")
        write(_aside(directory, name))
        _flush_file(_aside(directory, name))


def _give_names(directory, step, names_by_rank, group):
    """Turn what all processes have written aside into the checkpoint. DONE, too, has been written: nothing needs space any more."""
    for process, names in zip(group.names, names_by_rank):
        if not all(_aside(directory, name).exists() for name in names):
            raise OSError(errno.ENOENT, f"what {process} has written is not there: all processes must see one directory")
    done = done_file_name(step)
    names = [name for names in names_by_rank for name in names if name != done]

    # Where a run repeats a step, its old files are replaced one by one: meanwhile the checkpoint must not count.
    (directory / done).unlink(missing_ok=True)
    _flush_directory(directory)
    for path in _files_of(directory, step):
        if path.name not in names:  # that run had more processes
            path.unlink()
    for name in names:
        os.replace(_aside(directory, name), directory / name)
    _flush_directory(directory)  # the names before DONE's, even if the power fails
    os.replace(_aside(directory, done), directory / done)
    _flush_directory(directory)


def _delete_old(directory, newest, keep, major_every):
    """Delete all but `keep` of the complete checkpoints up to step `newest`, major ones excepted.

    Later steps do not count: a run that had to go on from an older checkpoint leaves a damaged one ahead of it.
    """
    steps = [step for step in complete_checkpoints(directory) if step <= newest]
    for step in steps[keep:] if keep else []:
        if not (major_every and step % major_every == 0):
            (directory / done_file_name(step)).unlink()  # first: what is half deleted must not count
            _flush_directory(directory)
            for path in _files_of(directory, step):
                path.unlink()


def _files_of(directory, step):
    """Paths of the files of a checkpoint that are there, but for DONE."""
    patterns = model_file_name(step), f"state_{step:08d}_*.bin", outliers_file_name(step)
    return [path for pattern in patterns for path in directory.glob(pattern)]


def _missing_file(directory, step):
    """The name of a file that the checkpoint lacks to be complete; None if it lacks none."""
    processes = _processes(directory / state_file_name(step, 0))
    names = itertools.chain([model_file_name(step)], (state_file_name(step, rank) for rank in range(processes)))
    return next((name for name in names if not (directory / name).exists()), None)


def _processes(path):
    """How many processes the state file of rank 0 speaks of; 1 if it is damaged: loading it then tells the reason."""
    try:
        with open(path, "rb") as file:
            magic, _, processes = struct.unpack("<3i", file.read(12))
    except (OSError, struct.error):
        return 1
    return processes if magic == STATE_MAGIC else 1


def _aside(directory, name):
    return directory / f".{name}{_ASIDE}"


def _remove_files_aside(directory):
    for path in directory.glob(f".*{_ASIDE}"):
        path.unlink(missing_ok=True)


def _flush_file(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_directory(directory):
    """Bring the directory's names to the disk. Windows has no way to, and does so by itself."""
    if os.name != "nt":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error):
    return error.strerror or type(error).__name__
