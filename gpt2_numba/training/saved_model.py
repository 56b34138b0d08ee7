"""The parameters that a run has saved, for programs that only use the model: not the rest of the checkpoint, nor its size."""

import re
import sys
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.training.checkpoint import done_checkpoints, done_file_name, model_file_name, read_done
from gpt2_numba.training.checksums import verify_files
from gpt2_numba.training.model_file import read_model_file


def read_saved_model(path):
    """Return (GPT2Config, flat, the Path of the model file).

    path  a model file; a checkpoint, by the path of its DONE file; or a run's log directory, for its newest checkpoint
    flat  as read_model_file returns it: read-only memory map (parameters,), float32, or uint16 with the bits of bfloat16
    What belongs to a checkpoint is compared with its checksums. In a log directory a checkpoint that is damaged is skipped, with a warning.
    Raises UserError if there is no such model, or if it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _newest(path)
    found = re.fullmatch(r"DONE_([0-9]{8,})|model_([0-9]{8,})\.bin", path.name)
    if found and (path.name.startswith("DONE") or path.with_name(done_file_name(int(found[2]))).exists()):
        return _of_checkpoint(path.parent, int(found[1] or found[2]))
    return *read_model_file(path), path


def _newest(directory):
    steps = done_checkpoints(directory)
    reasons = []
    for step in steps:
        try:
            return _of_checkpoint(directory, step)
        except UserError as error:
            print(f"warning: the checkpoint of step {step} cannot be used: {error}", file=sys.stderr)
            reasons.append(str(error))
    if steps:
        raise UserError(f"{directory}: none of its {len(steps)} checkpoints can be read. The newest: {reasons[0]}")
    raise UserError(
        f"{directory} must have a complete checkpoint, with DONE and model file, and has none: give a log directory (-o) of a run that has "
        "written one, or a model file"
    )


def _of_checkpoint(directory, step):
    done, name = read_done(directory, step), model_file_name(step)
    if done:
        if name not in done.files:
            raise UserError(f"{directory / done_file_name(step)} must have the checksums of {name}, and has not. Use an older checkpoint")
        verify_files(directory, done._replace(files={name: done.files[name]}))
    return *read_model_file(directory / name, share=None if done else (0, 1)), directory / name
