"""Verifies all checkpoints in a directory, as `python -m gpt2_numba.doctor --verify DIR` does. A run may be writing to it at the same time."""

import contextlib
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.training.checkpoint import checkpoint_files, done_checkpoints, unfinished_checkpoints, verify_checkpoint
from gpt2_numba.training.resume import open_checkpoint


def verify_all(directory):
    """Print a line for each checkpoint in a directory, newest first, when it is known. Returns True if none is damaged.

    Checks sizes and checksums, where they are recorded, and that every number is finite.
    Raises UserError if the directory cannot be listed, or if there is no checkpoint.
    """
    verdicts = {}
    for step in done_checkpoints(directory):
        sizes, verdicts[step] = _sizes(directory, step), _verdict(Path(directory), step)
        print(f"{sizes}  {verdicts[step]}", flush=True)
    for step in unfinished_checkpoints(directory):
        print(f"{_sizes(directory, step)}  incomplete: there is no DONE, so it does not count")
    if not verdicts:
        raise UserError(f"{directory} must hold a complete checkpoint, with DONE, to verify, and there is none. Check the directory")
    return not any(verdict.startswith("damaged") for verdict in verdicts.values())


def _verdict(directory, step):
    try:
        done = verify_checkpoint(directory, step)
        open_checkpoint(directory, step)
    except UserError as error:
        return f"damaged: {error}" if step in done_checkpoints(directory) else "deleted, or being written again, meanwhile"
    return "ok" if done else "ok: no checksums are recorded, as by llm.c; sizes and headers fit, and all numbers are finite"


def _sizes(directory, step):
    sizes = []
    for path in checkpoint_files(directory, step):
        with contextlib.suppress(FileNotFoundError):  # a run has just deleted it
            sizes.append(path.stat().st_size)
    return f"step {step:8d}  {len(sizes):3d} file{'' if len(sizes) == 1 else 's'}  {sum(sizes):15,d} bytes"
