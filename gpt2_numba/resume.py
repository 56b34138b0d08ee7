"""Checkpoints of a run: everything that decides its further course, written and read so that a resumed run gives the same bits.

That is: the parameters, AdamW's averages, the float32 copies of bfloat16 parameters, the place in the data, the generator of the
stochastic rounding, and the windows of the outlier detectors. The files are llm.c's (training/checkpoint.py), so that a
run can move between the two programs; only the windows lie in a file of their own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_numba.config import GPT2Config, count_parameters
from gpt2_numba.errors import UserError
from gpt2_numba.training.checkpoint import (
    load_newest,
    model_file_name,
    outliers_file_name,
    read_outliers,
    save_checkpoint,
    state_file_name,
    write_outliers,
)
from gpt2_numba.training.model_file import read_model_file, write_model_file
from gpt2_numba.training.outliers import OutlierDetector
from gpt2_numba.training.sampler import Xorshift64Star
from gpt2_numba.training.state_file import TrainingState, read_state_file, write_state_file

FIRST_ROUNDING_STATE = 13371337  # llm.c's, plus the rank


class Course:
    """What, besides model and data, decides how a run goes on."""

    def __init__(self, rank=0):
        self.loss_outliers, self.norm_outliers = OutlierDetector(), OutlierDetector()
        self.rounding = Xorshift64Star(FIRST_ROUNDING_STATE + rank)
        self.rounding_before_update = self.rounding.state

    def next_rounding_seed(self):
        """Seed of the next update's stochastic rounding."""
        self.rounding_before_update = self.rounding.state
        return self.rounding.next_u32()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been opened: large arrays are read-only memory maps. A model file alone is one without a state."""

    step: int
    config: GPT2Config
    params: np.ndarray
    state: TrainingState | None = None
    loss_window: tuple | list = ()
    norm_window: tuple | list = ()


def save(directory, step, model, loader, course, keep, major_every):
    """Write the checkpoint of `step`: `step` updates have been made. Raises CheckpointFailed if it cannot be written."""
    model.synchronize()
    master = model.raw("master")
    state = TrainingState(
        processes=1, rank=0, step=step,
        rounding_rng=course.rounding.state, rounding_rng_before_update=course.rounding_before_update, loader=loader.state(),
        # llm.c keeps float32 copies of float32 parameters as well, and will not resume without them.
        m=model.raw("m"), v=model.raw("v"), master=model.raw("params") if master is None and model.precision == "fp32" else master,
    )  # fmt: skip
    windows = course.loss_outliers.values(), course.norm_outliers.values()
    files = {
        model_file_name(step): lambda path: write_model_file(path, model.config, model.raw("params")),
        state_file_name(step, 0): lambda path: write_state_file(path, state),
        outliers_file_name(step): lambda path: write_outliers(path, *windows),
    }
    save_checkpoint(directory, step, files, keep, major_every)


def open_newest(directory):
    """The newest Checkpoint in a directory that is complete and sound. Raises UserError if there is none."""
    return load_newest(directory, lambda step: _open(Path(directory), step))


def _open(directory, step):
    config, params = read_model_file(directory / model_file_name(step))
    path = directory / state_file_name(step, 0)
    state = read_state_file(path, count_parameters(config))
    if state.processes != 1:
        raise UserError(
            f"{path}: this checkpoint is of {state.processes} processes, and a run of one process resumes only from one of its kind: "
            "resume with as many processes, or begin anew with the model file (-e)"
        )
    if state.step != step:
        raise UserError(f"{path}: the file's name says step {step}, its header {state.step}: it was altered. Use an older checkpoint")
    return Checkpoint(step, config, params, state, *read_outliers(directory / outliers_file_name(step)))


def restore(checkpoint, model, loader, course):
    """Set model, data and course to where the checkpoint was written. Raises UserError where they do not fit together."""
    state = checkpoint.state
    if state is None:
        for which in ("params", "master"):
            if model.raw(which) is not None:
                model.load_raw(which, checkpoint.params)
        return
    loader.load_state(state.loader)
    if model.precision == "fp32" and state.master is not None:
        model.load_raw("params", state.master)  # the most exact that there is
    else:
        model.load_raw("params", checkpoint.params)
    model.load_raw("m", state.m)
    model.load_raw("v", state.v)
    if model.raw("master") is not None:
        if state.master is None and checkpoint.params.dtype != np.float32:
            raise UserError("the checkpoint was written without master weights, and this run keeps them: resume with -w 0")
        model.load_raw("master", checkpoint.params if state.master is None else state.master)
    course.rounding.state = state.rounding_rng
    course.rounding_before_update = state.rounding_rng_before_update
    course.loss_outliers.load(checkpoint.loss_window)
    course.norm_outliers.load(checkpoint.norm_window)
