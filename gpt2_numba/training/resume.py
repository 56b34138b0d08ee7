"""Checkpoints of a run: everything that decides its further course, written and read so that a resumed run gives the same bits.

That is: the parameters, AdamW's averages, the float32 copies of bfloat16 parameters, the place in the data, the generator of the
stochastic rounding, and the windows of the outlier detectors. The files are llm.c's (training/checkpoint.py), so that a
run can move between the two programs; only the windows lie in a file of their own.

Of N processes rank 0 writes what all have alike: the parameters and the windows. Each writes its parts of AdamW's averages and of the
float32 copies, and its own place in the data. A file's parts are parts of all tensors, as llm.c cuts them with ZeRO, whatever the process
keeps in memory: with -z 0 that is everything, and N files would say the same. From such files any number of processes goes on, with any -z:

    as many, and the same batch    with the bits of a run that never stopped
    another number                 with the same parameters, averages and copies, cut into other parts; the data go on where they
                                   were, see DataLoader.load_states
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_numba.config import GPT2Config
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.reshard import WholeArray
from gpt2_numba.parallel.shards import Shards
from gpt2_numba.training.checkpoint import (
    CheckpointFailed,
    load_newest,
    model_file_name,
    outliers_file_name,
    read_outliers,
    save_checkpoint,
    state_file_name,
    write_outliers,
)
from gpt2_numba.training.model_file import PIECE, read_model_file, write_model_file
from gpt2_numba.training.outliers import OutlierDetector
from gpt2_numba.training.sampler import Xorshift64Star
from gpt2_numba.training.state_file import TrainingState, read_state_file, write_state_file

FIRST_ROUNDING_STATE = 13371337  # llm.c's of rank 0. All ranks have the same: a parameter's rounding must not depend on who keeps it


class RunState:
    """What, besides model and data, decides how a run goes on."""

    def __init__(self):
        self.loss_outliers, self.norm_outliers = OutlierDetector(), OutlierDetector()
        self.rounding = Xorshift64Star(FIRST_ROUNDING_STATE)
        self.rounding_before_update = self.rounding.state

    def next_rounding_seed(self):
        """Seed of the next update's stochastic rounding."""
        self.rounding_before_update = self.rounding.state
        return self.rounding.next_u32()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been opened: large arrays are read-only memory maps. A model file alone is one without states."""

    step: int
    config: GPT2Config
    params: np.ndarray
    states: tuple = ()  # one TrainingState for each process that wrote it, by rank
    loss_window: tuple | list = ()
    norm_window: tuple | list = ()


def save(directory, step, model, loader, run_state, keep, major_every, group):
    """Write the checkpoint of `step`: `step` updates have been made. All processes of the group call it.

    Raises CheckpointFailed, at all of them, if it cannot be written.
    """
    model.synchronize()
    master = model.raw("master")
    state = TrainingState(
        Shards(model.config, group.rank, group.ranks), step,
        rounding_rng=run_state.rounding.state, rounding_rng_before_update=run_state.rounding_before_update, loader=loader.state(),
        # llm.c keeps float32 copies of float32 parameters as well, and will not resume without them.
        m=model.raw("m"), v=model.raw("v"), master=model.raw("params") if master is None and model.options.precision == "fp32" else master,
    )  # fmt: skip
    files = {state_file_name(step, group.rank): lambda path: write_state_file(path, state, model.sharing.state)}
    if group.rank == 0:
        windows = run_state.loss_outliers.values(), run_state.norm_outliers.values()
        files[model_file_name(step)] = lambda path: write_model_file(path, model.config, model.raw("params"))
        files[outliers_file_name(step)] = lambda path: write_outliers(path, *windows)
    save_checkpoint(directory, step, files, group, keep, major_every)


def save_or_warn(settings, step, model, loader, run_state):
    """Save the checkpoint that the settings of the run ask for. If that fails, for lack of space for instance, the run goes on, with a warning."""
    group = model.group
    group.doing(f"writing the checkpoint of step {step}")
    try:
        save(
            settings.log_dir, step, model, loader, run_state,
            keep=settings.keep_checkpoints, major_every=settings.major_checkpoint_every, group=group,
        )  # fmt: skip
        print(f"wrote the checkpoint of step {step} to {settings.log_dir}")
    except CheckpointFailed as error:
        if group.rank == 0:
            print(f"warning: {error}", file=sys.stderr)


def open_newest(directory, warn=True):
    """The newest Checkpoint in a directory that is complete and sound; warn: of newer ones that are not. Raises UserError if there is none."""
    return load_newest(directory, lambda step: _open(Path(directory), step), warn)


def _open(directory, step):
    config, params = read_model_file(directory / model_file_name(step))
    first = read_state_file(directory / state_file_name(step, 0), config)
    others = [read_state_file(directory / state_file_name(step, rank), config) for rank in range(1, first.shards.ranks)]
    states = (first, *others)
    for rank, state in enumerate(states):
        _check_state(directory / state_file_name(step, rank), step, rank, state, first)
    return Checkpoint(step, config, params, states, *read_outliers(directory / outliers_file_name(step)))


def _check_state(path, step, rank, state, first):
    """Raise UserError if the state file of a rank is not what its name says, or does not go with rank 0's."""
    if (state.step, state.shards.rank) != (step, rank):
        raise UserError(
            f"{path}: the file's name says step {step} and rank {rank}, its header {state.step} and {state.shards.rank}: it was altered. "
            "Use an older checkpoint"
        )
    if _kind(state, rank) != _kind(first, rank):
        here, there = (_kind_in_words(one, rank) for one in (state, first))
        raise UserError(
            f"{path}: the state files of a checkpoint must go together, this one is {here}, and rank 0's {there}: it is another run's. "
            "Use an older checkpoint"
        )


def _kind(state, rank):
    """What all states of a checkpoint have alike; of the parts, how a rank's would be."""
    return state.shards.ranks, state.shards.parts(rank), state.master is None, state.loader.shuffle


def _kind_in_words(state, rank):
    shards = state.shards
    parts = "all of them" if shards.whole else f"{'equal' if shards.even else 'unequal'} parts, {shards.local_count(rank)} of them"
    return (
        f"one of {shards.ranks} processes, of {shards.global_count} parameters {parts}, {'without' if state.master is None else 'with'} "
        f"master weights, the data {'' if state.loader.shuffle else 'not '}shuffled"
    )


def restore(checkpoint, model, loader, run_state):
    """Set model, data and run_state to where the checkpoint was written. Raises UserError where they do not fit together.

    Each process calls it for itself; they may be of another number than those that wrote it. Of a model file alone, only the model is set.
    """
    states = checkpoint.states
    if not states:
        _load(model, "params", checkpoint.params)
        _load(model, "master", checkpoint.params)
        return
    master = None if states[0].master is None else _whole(states, "master")
    if master is None and model.raw("master") is not None and checkpoint.params.dtype != np.float32:
        raise UserError("the checkpoint was written without master weights, and this run keeps them: resume with -w 0")
    loader.load_states([state.loader for state in states])
    in_float32 = checkpoint.params if master is None else master  # the most exact that there is
    _load(model, "params", in_float32 if model.options.precision == "fp32" else checkpoint.params)
    _load(model, "master", in_float32)
    _load(model, "m", _whole(states, "m"))
    _load(model, "v", _whole(states, "v"))
    run_state.rounding.state = states[0].rounding_rng  # llm.c has one for each rank; ours is rank 0's
    run_state.rounding_before_update = states[0].rounding_rng_before_update
    run_state.loss_outliers.load(checkpoint.loss_window)
    run_state.norm_outliers.load(checkpoint.norm_window)


def _whole(states, name):
    """One of the arrays m, v and master of all parameters, from the parts in all processes' states."""
    return WholeArray(states[0].shards, [getattr(state, name) for state in states])


def _load(model, which, values):
    """Fill one of the model's arrays, if it has it, from an array of all parameters: this process's parts, or all of "params".

    In pieces, since the values lie in files of gigabytes.
    """
    if model.raw(which) is None:
        return
    shards = Shards(model.config) if which == "params" else model.sharing.state
    for local, start, length, _ in shards.parts():
        for offset in range(0, length, PIECE):
            model.group.doing(f"loading {which}")
            stop = min(offset + PIECE, length)
            model.load_part(which, local + offset, values[start + offset : start + stop])
