"""Token shards from text files.

    python -m dev.data.tokenize_text book.txt --tokenizer bytes --out data

writes data/book_train_000000.bin and data/book_val_000000.bin, in the format of `gpt2_numba.data.token_shards`. Each text file is one
document, or several with --split-on-blank-lines; each begins with end-of-text. The first tokens are for validation.

llm.c's own Tiny Shakespeare (32,768 and 305,260 tokens) is

    python -m dev.data.tokenize_text tinyshakespeare.txt --split-on-blank-lines --val-tokens 32768 --out data
"""

import argparse
import glob
import os
import shlex
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.data.tokenizers import byte_encoding, encode, gpt2_encoding
from gpt2_numba.errors import UserError
from gpt2_numba.integers import ceil_div

ENCODINGS = {"bytes": byte_encoding, "gpt2": gpt2_encoding}


def parse_arguments(argv):
    parser = Parser(prog="python -m dev.data.tokenize_text", description="Make token shards for training from UTF-8 text files.")
    parser.add_argument("texts", nargs="+", type=user_path, metavar="TEXT", help="text file, UTF-8")
    parser.add_argument(
        "--tokenizer", choices=sorted(ENCODINGS), default="gpt2", help="bytes: 257 tokens, gpt2: 50,257 tokens (default: gpt2)"
    )
    parser.add_argument(
        "--split-on-blank-lines", action="store_true", help="a new document begins after each blank line (default: a file is one document)"
    )
    parser.add_argument("--val-fraction", type=float, default=0.1, help="fraction of tokens for validation, the first ones (default: 0.1)")
    parser.add_argument("--val-tokens", type=int, help="number of tokens for validation, instead of a fraction")
    parser.add_argument(
        "--shard-size",
        type=int,
        default=100_000_000,
        help="largest number of tokens in a shard; shards get nearly equal sizes (default: 100000000)",
    )
    parser.add_argument("--out", type=user_path, default=Path("."), help="directory for the shards (default: this one)")
    parser.add_argument("--name", type=file_name, help="beginning of the shards' names (default: the first text's name)")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.val_fraction < 1:
        raise UserError(f"--val-fraction must be between 0 and 1, got {arguments.val_fraction}; try 0.1")
    if arguments.shard_size < 1:
        raise UserError(f"--shard-size must be at least 1 token, got {arguments.shard_size}; omit it for 100 M")
    return arguments


def file_name(name):
    """`name`, if it can begin the name of a file; for argparse."""
    if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise argparse.ArgumentTypeError(f"must be a file name without a directory, got {name!r}")
    return name


def read_text(path):
    """The text of a UTF-8 file, with "\\n" line ends."""
    try:
        with open_regular(path, "r", encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: a text must be a readable file: {error.strerror}. Check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: a text must be UTF-8, byte number {error.start} is not. Convert the file, for example with iconv -t UTF-8"
        ) from error


def split_on_blank_lines(text):
    """Split after each blank line, which stays with the document before it, as in llm.c's Tiny Shakespeare."""
    *before, last = text.split("\n\n")
    return [section + "\n\n" for section in before] + [last]


def tokenize(documents, encoding):
    """Return the tokens of all documents, uint16, end-of-text before each."""
    tokens = []
    for document in documents:
        tokens.append(encoding.eot_token)
        tokens.extend(encode(encoding, document))
    return np.array(tokens, dtype=np.uint16)


def split_tokens(tokens, val_fraction, val_tokens=None):
    """Return (validation, train): validation is the first `val_tokens` if given, else the first `val_fraction`."""
    split = round(val_fraction * len(tokens)) if val_tokens is None else val_tokens
    if not 0 < split < len(tokens):
        raise UserError(
            f"validation and training need at least one token each: {split} of {len(tokens)} tokens for "
            f"validation leaves none for one of them. Choose another --val-tokens or --val-fraction"
        )
    return tokens[:split], tokens[split:]


def write_shards(tokens, stem, shard_size):
    """Write `tokens` to STEM_000000.bin and so on, at most `shard_size` tokens each; return the paths.

    The sizes are nearly equal, because a short last shard might not hold a batch. If one cannot be written, all are removed, because some
    of them could be taken for the whole, and OSError is raised.
    """
    paths = []
    try:
        for index, part in enumerate(np.array_split(tokens, ceil_div(len(tokens), shard_size))):
            paths.append(stem.with_name(f"{stem.name}_{index:06d}.bin"))
            write_shard(paths[-1], part)
            print(f"{paths[-1]}: {len(part):,} tokens")
    except OSError:
        for path in paths:
            with suppress(OSError):
                path.unlink()
        raise
    return paths


def prepare_output(directory, name):
    """Make the directory; return the paths of the (validation, train) shards without the numbers at their ends.

    Raises UserError if files cannot be written there, or if shards of this name exist: those of a longer text would be read as part of this
    one.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            files = sorted(os.listdir(directory))
    except (OSError, ValueError) as error:
        raise cannot_write(directory, error) from error
    stems = directory / f"{name}_val", directory / f"{name}_train"
    for old in files:
        if old.endswith(".bin") and old.startswith(tuple(f"{stem.name}_" for stem in stems)):
            raise UserError(f"{directory / old}: shards of this name exist already. Delete them, or choose another --out or --name")
    return stems


def cannot_write(directory, error):
    """The UserError for an output directory with which the system, or Python, has raised `error`."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"--out {directory}: must be a directory in which the files can be written: {reason}. Choose another --out or --name")


def shell_pattern(stem):
    """The pattern that matches the shards of `stem` and nothing else, quoted for the shell."""
    return shlex.quote(f"{glob.escape(str(stem))}_*.bin")


def run(argv):
    arguments = parse_arguments(argv)
    name = arguments.name or arguments.texts[0].stem
    val_stem, train_stem = prepare_output(arguments.out, name)
    encoding = ENCODINGS[arguments.tokenizer]()
    documents = []
    for path in arguments.texts:
        text = read_text(path)
        documents += split_on_blank_lines(text) if arguments.split_on_blank_lines else [text]
    val, train = split_tokens(tokenize(documents, encoding), arguments.val_fraction, arguments.val_tokens)

    written = []
    try:
        for tokens, stem in ((val, val_stem), (train, train_stem)):
            written += write_shards(tokens, stem, arguments.shard_size)
    except OSError as error:
        for path in written:  # half of the data would only be in the way of the next attempt
            with suppress(OSError):
                path.unlink()
        raise cannot_write(arguments.out, error) from error
    print(f"train with: python -m gpt2_numba.train -i {shell_pattern(train_stem)} -j {shell_pattern(val_stem)}")


def main(argv=None):
    """The command line. Returns the exit code: 0, or 2 for a user error."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
