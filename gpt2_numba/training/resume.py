"""Saving and restoring the whole state of a run, so that a resumed run gives the same bits as an uninterrupted one.

The state consists of the parameters, AdamW's averages, the master weights (float32 copies of bfloat16 parameters), the position in the
data, the generator of the stochastic rounding, and the windows of the outlier detectors. The files are llm.c's (training/checkpoint.py), so
that a run can move between the two programs; only the windows are in a file of our own.

With N processes, rank 0 writes what they have in common: the parameters and the windows. Each process writes its parts of AdamW's averages
and of the master weights, and its own position in the data. Every tensor is cut into N parts in the files, as in llm.c's with ZeRO,
whatever the processes keep in memory: with -z 0 each keeps everything, and N whole files would be identical. Any number of processes can
resume from these files, with any -z:

    the same number and batch    the bits are those of an uninterrupted run
    another number               parameters, averages and master weights are the same, cut into other parts; the data continue at the same
                                 position, see DataLoader.load_states
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2_numba.config import GPT2Config
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.reshard import WholeArray
from gpt2_numba.parallel.shards import Shards
from gpt2_numba.training.checkpoint import (
    CheckpointFailed,
    OldCheckpointsRemain,
    done_file_name,
    load_newest,
    model_file_name,
    outliers_file_name,
    read_outliers,
    rehearse_checkpoint,
    save_checkpoint,
    state_file_name,
    write_outliers,
)
from gpt2_numba.training.model_file import PIECE, read_model_file, write_model_file
from gpt2_numba.training.outliers import OutlierDetector
from gpt2_numba.training.sampler import Xorshift64Star
from gpt2_numba.training.state_file import TrainingState, read_state_file, write_state_file

FIRST_ROUNDING_STATE = 13371337  # llm.c's for rank 0, and ours for all ranks: rounding must not depend on which rank keeps a parameter


class RunState:
    """The state of a run that is in neither model nor data loader: outlier detectors and the generator of the stochastic rounding."""

    def __init__(self):
        self.loss_outliers, self.norm_outliers = OutlierDetector(), OutlierDetector()
        self.rounding = Xorshift64Star(FIRST_ROUNDING_STATE)
        self.rounding_before_update = self.rounding.state

    def next_rounding_seed(self):
        """Seed for the stochastic rounding of the next update."""
        self.rounding_before_update = self.rounding.state
        return self.rounding.next_u32()


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; its large arrays are read-only memory maps. A model file alone gives one without states.

    Of a model from elsewhere there are `pieces`, an iterator for GPT2.load_pieces, instead of `params`.
    """

    step: int
    config: GPT2Config
    params: np.ndarray | None
    states: tuple = ()  # a TrainingState for each rank that wrote it
    loss_window: tuple | list = ()
    norm_window: tuple | list = ()
    facts: dict = field(default_factory=dict)  # of the run that wrote it (run_facts.py); none in llm.c's
    pieces: object | None = None


def save(directory, step, model, position, run_state, keep=0, major_every=0, facts=None):
    """Write the checkpoint of `step`, after that many updates. All processes of the model's group call it.

    position                   LoaderState of the data loader
    keep, major_every, facts   see save_checkpoint
    Raises CheckpointFailed, in all of them, if it cannot be written.
    """
    files = _files(step, model, position, run_state)
    save_checkpoint(directory, step, files, model.group, keep, major_every, facts)


def rehearse_save(directory, step, model, position, run_state):
    """Write the files of a checkpoint and remove them. Parameters and errors are those of `save`."""
    rehearse_checkpoint(directory, step, _files(step, model, position, run_state), model.group)


def _files(step, model, position, run_state):
    """This process's files of a checkpoint: name -> function that writes the file to the path it is given."""
    model.synchronize()
    group, master = model.group, model.raw("master")
    state = TrainingState(
        Shards(model.config, group.rank, group.ranks), step,
        rounding_rng=run_state.rounding.state, rounding_rng_before_update=run_state.rounding_before_update, loader=position,
        # llm.c keeps master weights for float32 parameters too, and does not resume without them.
        m=model.raw("m"), v=model.raw("v"), master=model.raw("params") if master is None and model.options.precision == "fp32" else master,
    )  # fmt: skip
    files = {state_file_name(step, group.rank): lambda path: write_state_file(path, state, model.sharing.state)}
    if group.rank == 0:
        windows = run_state.loss_outliers.values(), run_state.norm_outliers.values()
        files[model_file_name(step)] = lambda path: write_model_file(path, model.config, model.raw("params"))
        files[outliers_file_name(step)] = lambda path: write_outliers(path, *windows)
    return files


def save_or_warn(settings, step, model, position, run_state, facts=None):
    """Save a checkpoint as the settings require. If that fails, for instance for lack of space, print a warning: the run continues.

    position, facts: see save. Returns whether it was written, the same at all processes.
    """
    group = model.group
    group.doing(f"writing the checkpoint of step {step}")
    try:
        save(
            settings.log_dir, step, model, position, run_state,
            keep=settings.keep_checkpoints, major_every=settings.major_checkpoint_every, facts=facts,
        )  # fmt: skip
        print(f"wrote the checkpoint of step {step} to {settings.log_dir}")
        return True
    except (CheckpointFailed, OldCheckpointsRemain) as error:
        if group.rank == 0:
            print(f"warning: {error}", file=sys.stderr)
        return isinstance(error, OldCheckpointsRemain)


def open_newest(directory, group=None):
    """The newest intact Checkpoint in a directory. All processes of the group call it and divide the work of checking the files.

    group  None: this process alone
    Rank 0 prints a warning for each newer, damaged one. Raises UserError, in all of them, if there is none.
    """
    group = group or Alone()

    def load(step, done):
        return open_checkpoint(Path(directory), step, done, share=(group.rank, group.ranks)), done

    checkpoint, done = load_newest(directory, load, group)
    windows, done_file = (Path(directory) / name(checkpoint.step) for name in (outliers_file_name, done_file_name))
    if done is None and group.rank == 0 and windows.exists():  # llm.c, which records no checksums, does not write that file
        print(f"warning: {done_file} has lost the checksums of the checkpoint: damage may go unnoticed", file=sys.stderr)
    return checkpoint


def open_checkpoint(directory, step, done=None, share=(0, 1)):
    """The Checkpoint of a step, whose files have been compared with their checksums (verify_checkpoint).

    done   its Done, None if nothing is recorded: then this process's share of the numbers is checked to be finite, see first_not_finite.
           Files that are as this program wrote them hold no others
    Raises UserError if it is damaged.
    """
    share = None if done else share
    config, params = read_model_file(directory / model_file_name(step), share)
    first = read_state_file(directory / state_file_name(step, 0), config, share)
    others = [read_state_file(directory / state_file_name(step, rank), config, share) for rank in range(1, first.shards.ranks)]
    states = (first, *others)
    for rank, state in enumerate(states):
        _check_state(directory / state_file_name(step, rank), step, rank, state, first)
    windows = read_outliers(directory / outliers_file_name(step))
    return Checkpoint(step, config, params, states, *windows, facts=done.facts if done else {})


def _check_state(path, step, rank, state, first):
    """Raise UserError if a rank's state file is not what its name says, or is from another run than rank 0's."""
    if (state.step, state.shards.rank) != (step, rank):
        raise UserError(
            f"{path}: its name says step {step} and rank {rank}, its header step {state.step} and rank {state.shards.rank}: "
            "it was altered. Use an older checkpoint"
        )
    if _kind(state, rank) != _kind(first, rank):
        this, rank_0 = (_describe_kind(one, rank) for one in (state, first))
        raise UserError(
            f"{path}: the state files of a checkpoint must be from one run, but this one is {this}, and rank 0's is {rank_0}. "
            "Use an older checkpoint"
        )


def _kind(state, rank):
    """What all states of a checkpoint have in common. Of the parts, those that a given rank would have."""
    return state.shards.ranks, state.shards.parts(rank), state.master is None, state.loader.shuffle


def _describe_kind(state, rank):
    shards = state.shards
    parts = "all of them" if shards.whole else f"{'equal' if shards.even else 'unequal'} parts, {shards.local_count(rank)} of them"
    return (
        f"one of {shards.ranks} processes, of {shards.global_count} parameters {parts}, {'without' if state.master is None else 'with'} "
        f"master weights, the data {'' if state.loader.shuffle else 'not '}shuffled"
    )


def restore(checkpoint, model, loader, run_state):
    """Set model, loader and run_state to the state in the checkpoint. Raises UserError if they do not fit it.

    Each process calls it separately; their number may differ from that of the processes that wrote it. From a model file alone, only the
    model is set. loader: None if the data start over.
    """
    states = checkpoint.states
    if checkpoint.pieces:
        model.load_pieces(checkpoint.pieces)
        return
    if not states:
        _load(model, "params", checkpoint.params)
        _load(model, "master", checkpoint.params)
        return
    master = None if states[0].master is None else _whole(states, "master")
    if master is None and model.raw("master") is not None and checkpoint.params.dtype != np.float32:
        raise UserError("the checkpoint was written without master weights, and this run keeps them: resume with -w 0")
    if loader:
        loader.load_states([state.loader for state in states])
    most_exact = checkpoint.params if master is None else master
    _load(model, "params", most_exact if model.options.precision == "fp32" else checkpoint.params)
    _load(model, "master", most_exact)
    _load(model, "m", _whole(states, "m"))
    _load(model, "v", _whole(states, "v"))
    run_state.rounding.state = states[0].rounding_rng  # llm.c has one per rank; we take rank 0's
    run_state.rounding_before_update = states[0].rounding_rng_before_update
    run_state.loss_outliers.load(checkpoint.loss_window)
    run_state.norm_outliers.load(checkpoint.norm_window)


def _whole(states, name):
    """One of the arrays m, v and master for all parameters, assembled from the parts in all states."""
    return WholeArray(states[0].shards, [getattr(state, name) for state in states])


def _load(model, which, values):
    """Fill one of the model's arrays, if it exists, from an array of all parameters: with this process's parts, or all of "params".

    Done in pieces, since the values are in files of gigabytes.
    """
    if model.raw(which) is None:
        return
    shards = Shards(model.config) if which == "params" else model.sharing.state
    for local, start, length, _ in shards.parts():
        for offset in range(0, length, PIECE):
            model.group.doing(f"loading {which}")
            stop = min(offset + PIECE, length)
            model.load_part(which, local + offset, values[start + offset : start + stop])
