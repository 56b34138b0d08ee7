"""Write a model as a Hugging Face folder, which transformers and whatever builds on it can load.

    python -m gpt2_numba.export LOGDIR|MODEL.bin|DONE DIR [--dtype float32|bfloat16]

DIR gets config.json, generation_config.json, model.safetensors and the tokenizer's files. It appears when all of them are on the disk.
"""

import json
import math
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import ml_dtypes
import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import GPT2_VOCAB_SIZE
from gpt2_numba.data.tokenizers import BYTE_VOCAB_SIZE, byte_encoding, encoding_for_vocab, gpt2_encoding
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS
from gpt2_numba.huggingface.config_json import config_fields, generation_fields
from gpt2_numba.huggingface.folder import CONFIG_FILE, PREFIX, TRANSPOSED, WEIGHTS, their_names
from gpt2_numba.huggingface.safetensors_file import DTYPES, safetensors_header
from gpt2_numba.huggingface.tokenizer_files import tokenizer_files
from gpt2_numba.parallel.shards import segments_of
from gpt2_numba.progress import Progress
from gpt2_numba.training.saved_model import read_saved_model

PIECE = 1 << 22  # numbers converted and written at a time
TYPES = {"float32": "F32", "bfloat16": "BF16"}  # --dtype -> safetensors' name
SMALL_FILES = 16 << 20  # bytes: more than those of the tokenizer


def export(config, flat, directory, dtype=None, encoding=None):
    """Write a GPT2LMHeadModel.

    config, flat  as read_model_file returns them        directory  does not exist yet, or is empty
    dtype         of the weights, "float32" or "bfloat16", rounded to nearest; None: that of `flat`
    encoding      tiktoken.Encoding whose files are written, too, or None
    At no time is there a directory with only part of the files, except under a hidden name. Raises UserError if it cannot be written.
    """
    dtype = dtype or ("bfloat16" if flat.dtype == BFLOAT16_BITS else "float32")
    end_of_text = encoding.eot_token if encoding else config.V - 1 if config.V in (BYTE_VOCAB_SIZE, GPT2_VOCAB_SIZE) else None
    texts = {
        CONFIG_FILE: json.dumps(config_fields(config, dtype, end_of_text), indent=2) + "\n",
        "generation_config.json": json.dumps(generation_fields(end_of_text), indent=2) + "\n",
        **(tokenizer_files(encoding, config.max_T) if encoding else {}),
    }
    shapes = {PREFIX + theirs: shape for theirs, shape in their_names(config).values()}
    size = sum(map(math.prod, shapes.values())) * DTYPES[TYPES[dtype]].itemsize
    with _appears_at_once(Path(directory), size + SMALL_FILES) as hidden:
        with open(hidden / WEIGHTS[0], "wb") as file, Progress("exporting", size, "B") as progress:
            file.write(safetensors_header(shapes, TYPES[dtype]))
            for piece in _pieces(config, flat, DTYPES[TYPES[dtype]]):
                file.write(memoryview(piece.view(np.uint8)))
                progress.advance(piece.nbytes)
            _flush(file)
        for name, text in texts.items():
            with open(hidden / name, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                _flush(file)


def _pieces(config, flat, dtype):
    """Yield the tensors as they follow in model.safetensors, in pieces of some rows: contiguous arrays of `dtype`."""
    values = flat.view(ml_dtypes.bfloat16) if flat.dtype == BFLOAT16_BITS else flat
    for segment, (_, shape) in zip(segments_of(config), their_names(config).values()):
        tensor = values[segment.start : segment.stop]
        if segment.name in TRANSPOSED:
            tensor = tensor.reshape(shape[::-1]).T
        elif len(shape) == 2:
            tensor = tensor.reshape(-1, config.C)[: shape[0]]  # without the padding of the vocabulary
        rows = max(1, PIECE // math.prod(shape[1:]))
        for row in range(0, shape[0], rows):
            yield np.ascontiguousarray(tensor[row : row + rows], dtype)


@contextmanager
def _appears_at_once(directory, size):
    """A hidden directory beside `directory`, which gets that name at the end; after an exception it is removed. size: bytes to be written."""
    hidden = directory.parent / f".{directory.name}.part"
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(f"{directory} must be a new or an empty directory, and is not: name another one, or delete it")
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)  # left by an export that was killed
        free = shutil.disk_usage(directory.parent).free
        if free < size:
            raise UserError(
                f"{directory} needs {size / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left: make room, or name another one"
            )
        hidden.mkdir()
        try:
            yield hidden
            _flush_directory(hidden)
            if directory.exists():
                directory.rmdir()
            os.rename(hidden, directory)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        _flush_directory(directory.parent)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror or error}): make room, or name another directory") from error


def _flush(file):
    file.flush()
    os.fsync(file.fileno())


def _flush_directory(path):
    with suppress(OSError):  # some file systems, and Windows, have no way to do that
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _tokenizer(name, V):
    """The tiktoken.Encoding of --tokenizer, or None."""
    try:
        encoding = {"auto": lambda: encoding_for_vocab(V), "gpt2": gpt2_encoding, "bytes": byte_encoding, "none": lambda: None}[name]()
    except UserError as error:
        raise UserError(f"{error}; or export without it: --tokenizer none") from error
    if encoding and encoding.n_vocab > V:
        raise UserError(f"the tokenizer must have at most the model's {V} tokens, and {name} has {encoding.n_vocab}: use --tokenizer none")
    return encoding


def run(argv):
    """Write the folder that the command line asks for."""
    parser = Parser(prog="python -m gpt2_numba.export", doc=__doc__, allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL", type=user_path, help="a run's log directory (its newest checkpoint), a model file, or a DONE file"
    )
    parser.add_argument("directory", metavar="DIR", type=user_path, help="the folder to write; it must not exist yet, or be empty")
    parser.add_argument("--dtype", choices=tuple(TYPES), help="type of the weights (default: the model file's)")
    parser.add_argument(
        "--tokenizer", choices=("auto", "gpt2", "bytes", "none"), default="auto",
        help="whose files to write (default auto: by the size of the vocabulary, 257 bytes, 50257 gpt2, otherwise none)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    config, flat, path = read_saved_model(arguments.model)
    encoding = _tokenizer(arguments.tokenizer, config.V)
    export(config, flat, arguments.directory, arguments.dtype, encoding)
    tokenizer = f"the tokenizer {encoding.name}" if encoding else f"no tokenizer: there is none for a vocabulary of {config.V}"
    if arguments.tokenizer == "none":
        tokenizer = "no tokenizer"
    print(f"wrote {arguments.directory}: {path.name}, {config}, with {tokenizer}")


def main(argv):
    """Run the command line. Returns the exit code: 0, or 2 for a mistake of the user's, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
