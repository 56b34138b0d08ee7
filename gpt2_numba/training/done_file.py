"""DONE files: what a complete checkpoint consists of. llm.c only looks at the name of this file, and leaves it empty.

    line 1    {"version": 1, "step": S, "block_bytes": ..., "files": {name: its checksums, see checksums.py}, "facts": {...}}
    line 2    {"sha256": that of line 1 without its line feed, hexadecimal}

The facts are about the run, such as which data it is trained on. An empty file is valid: nothing is recorded then, and nothing can be verified.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError
from gpt2_numba.training.checksums import BLOCK_BYTES, well_formed

VERSION = 1
MAX_BYTES = 1 << 28  # enough for the checksums of 250 TB; a larger file is not read


class Done(NamedTuple):
    """What a DONE file records.

    files        name -> checksums (checksums.py)
    block_bytes  the size of their blocks
    facts        JSON-serialisable dictionary
    """

    files: dict
    block_bytes: int
    facts: dict


def write_done_file(path, step, files, facts=None):
    """Write the DONE file of a checkpoint. files: name -> checksums. facts: JSON-serialisable dictionary. Raises OSError."""
    content = {"version": VERSION, "step": step, "block_bytes": BLOCK_BYTES, "files": files, "facts": facts or {}}
    line = json.dumps(content).encode()
    Path(path).write_bytes(line + b"\n" + json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode() + b"\n")


def read_done_file(path, step):
    """Return the Done in the DONE file of the checkpoint of `step`; None if the file is empty. Raises UserError if it is anything else."""
    content = read_small_file(path, MAX_BYTES)
    if not content:
        return None
    line, _, rest = content.partition(b"\n")
    try:
        if json.loads(rest) != {"sha256": hashlib.sha256(line).hexdigest()}:
            raise ValueError("other checksum")
        fields = json.loads(line)
        if fields["version"] != VERSION:
            raise UserError(
                f"{path}: it must have version {VERSION}, this one has {fields['version']}: resume with the program that wrote it"
            )
        done = Done(fields["files"], fields["block_bytes"], fields["facts"])
        if fields["step"] != step or not well_formed(done.files, done.block_bytes) or not isinstance(done.facts, dict):
            raise ValueError("other content")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"{path}: it must be empty or hold the checksums of the checkpoint of step {step}, and its own; this one was cut off or altered. "
            "Use an older checkpoint"
        ) from error
    return done


def read_small_file(path, max_bytes):
    """The bytes of a file. Raises FileNotFoundError, and UserError if it is larger, or cannot be read."""
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} must be a readable file: {error.strerror}. Use an older checkpoint") from error
    if len(content) > max_bytes:
        raise UserError(f"{path} must have at most {max_bytes} bytes, and has more: it was altered. Use an older checkpoint")
    return content
