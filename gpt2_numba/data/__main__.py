"""Data for training: text to token shards, in llm.c's format.

    python -m gpt2_numba.data SOURCE... [--tokenizer gpt2|bytes] [--out DIR] [--name NAME]

A source is a text file, a .jsonl or .parquet file, a folder of such files, or one of the names that --help lists. `python` are the Python
sources on this machine: 100 million tokens and more, without a network.

Written are DIR/NAME_val_000000.bin and DIR/NAME_train_000000.bin, ... of 100 million tokens each, and DIR/NAME_tokenizer.json. A document
begins with the end-of-text token; the first tokens are for validation. A job that was stopped goes on when its command is given again.
Tokenizing and writing are in making/, downloads in fetching/, the named sources in sources.py.
"""

import argparse
import difflib
from pathlib import Path

from gpt2_numba.command_line import Parser, exit_code, file_name, main_program, user_path
from gpt2_numba.data.fetching.hub_sources import HUB_OPTIONS, add_hub_options
from gpt2_numba.data.making.shard_making import DEFAULT_VAL_FRACTION, SMALLEST_SPLIT, make_shards
from gpt2_numba.data.making.source import SHARD_OPTIONS, TEXT_OPTIONS
from gpt2_numba.data.making.text_parts import TextOptions, parse_split, parts_of_paths
from gpt2_numba.data.making.tokenizing import default_processes
from gpt2_numba.data.sources import sources
from gpt2_numba.data.token_shards import LARGEST_COUNT
from gpt2_numba.data.tokenizers import ENCODINGS
from gpt2_numba.errors import UserError

SHARD_SIZE = 100_000_000
SHOWN_PATHS = 3  # of files that were left out


def parse_arguments(argv, known):
    """known: dict of named sources."""
    names = "\n".join(f"  {name:<17} {source.purpose}" for name, source in known.items())
    parser = Parser(
        prog="python -m gpt2_numba.data",
        usage="python -m gpt2_numba.data SOURCE... [OPTION]...",
        description="Make token shards for training, in llm.c's format.",
        epilog=f"named sources:\n{names}\n\n"
        "A text says <|endoftext|> itself? With --split '<|endoftext|>' it separates documents; otherwise it is text like any other.\n"
        "A job that was stopped goes on when the same command is given again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="text, .jsonl or .parquet files, folders of them, or one named source (see below)"
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--tokenizer", choices=sorted(ENCODINGS), default="gpt2", help="bytes: 257 tokens, gpt2: 50,257 tokens (default: gpt2)"
    )
    text.add_argument(
        "--split",
        metavar="WHERE",
        help="where documents begin in a text file: file (one document a file, the default), blank-line, or a text that separates them, such "
        "as '<|endoftext|>', which is dropped (\\n is a newline). Each row of a .jsonl or .parquet file is a document",
    )
    text.add_argument("--field", default="text", help="the field of a .jsonl or .parquet row that holds its text (default: text)")
    text.add_argument("--replace-invalid", action="store_true", help="bytes that are not UTF-8 become U+FFFD (default: an error)")
    shards = parser.add_argument_group("shards")
    shards.add_argument("--out", type=user_path, default=Path("data"), metavar="DIR", help="directory for the shards (default: data)")
    shards.add_argument("--name", type=file_name, help="beginning of the shards' names (default: the first source's name)")
    shards.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="fraction of the text for validation, the first of it (default: 0.1, but at most one shard; python, built-in and tinystories have "
        "a part for it)",
    )
    shards.add_argument("--val-tokens", type=token_count, metavar="N", help="number of tokens for validation, instead of a fraction")
    shards.add_argument(
        "--tokens",
        type=token_count,
        metavar="N",
        help="take so many tokens, such as 10M or 1B, for training and validation together (default: all)",
    )
    shards.add_argument("--shard-size", type=token_count, default=SHARD_SIZE, metavar="N", help="tokens in a full shard (default: 100M)")
    shards.add_argument(
        "--processes",
        type=int,
        default=default_processes(),
        metavar="N",
        help="processes that tokenize (default: one per core, %(default)s)",
    )
    add_hub_options(parser)
    arguments = parser.parse_args(argv)
    for name, value in vars(arguments).items():
        if value in ([], "--"):  # some versions of argparse remove a value of "--" without a word
            raise UserError(f"{_flag(name)} cannot be '--': choose another value")
    if arguments.val_fraction is not None and arguments.val_tokens is not None:
        raise UserError(
            f"--val-fraction and --val-tokens both say how much is for validation, got {arguments.val_fraction} and "
            f"{arguments.val_tokens}: omit one"
        )
    if arguments.val_fraction is not None and not 0 < arguments.val_fraction < 1:
        raise UserError(f"--val-fraction must be between 0 and 1, got {arguments.val_fraction}; try 0.1")
    if arguments.shard_size > LARGEST_COUNT:
        raise UserError(f"--shard-size must be at most {LARGEST_COUNT}, got {arguments.shard_size}; omit it for 100M")
    if not 1 <= arguments.processes <= 1024:
        raise UserError(f"--processes must be from 1 to 1024, got {arguments.processes}; omit it for one per core")
    least = 2 * SMALLEST_SPLIT if arguments.val_tokens is None else arguments.val_tokens + 1
    if arguments.tokens is not None and arguments.tokens < least:
        raise UserError(
            f"--tokens must be at least {least}, so that some are for validation and some for training, got {arguments.tokens}: choose more"
            f"{'' if arguments.val_tokens is None else ', or fewer --val-tokens'}"
        )
    arguments.given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    return arguments


def token_count(text):
    """A number of tokens, at least 1, such as 32768, 10M or 1.5B; for argparse."""
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    number = text if factor == 1 else text[:-1]
    try:
        count = round(float(number) * factor) if len(number) <= 20 else 0
    except (ValueError, OverflowError):
        count = 0
    if count < 1 or factor == 1 and not number.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of tokens, at least 1, such as 32768, 10M or 1B, got {text[:40]!r}")
    return count


def run(argv):
    """Do what the command line asks for. Returns the exit code."""
    known = sources()
    arguments = parse_arguments(argv, known)
    named = [name for name in arguments.sources if name in known]
    if not named:
        check_options(arguments, "a text of your own", TEXT_OPTIONS + SHARD_OPTIONS)
        return make_shards(paths_parts(arguments, known), arguments)
    if len(arguments.sources) > 1:
        raise UserError(f"a named source must be the only one, got {' '.join(arguments.sources)}; a file of that name is ./{named[0]}")
    source = known[named[0]]
    if source.is_fetched(arguments):
        with_text = source.parts_options if source.parts else ()
        check_options(arguments, named[0], source.fetch_options, with_text)
        return source.fetch(arguments)
    check_options(arguments, named[0], source.parts_options)
    arguments.name = arguments.name or named[0]
    arguments.split = source.split if arguments.split is None else arguments.split
    if source.val_tokens and arguments.val_fraction is None and arguments.val_tokens is None:
        arguments.val_tokens = default_val_tokens(source, arguments.tokens)
    return make_shards(source.parts(arguments), arguments)


def check_options(arguments, source, used, with_text=()):
    """Raise UserError for an option that was given and has no effect on the source. with_text: those that would have with --text."""
    for option in TEXT_OPTIONS + SHARD_OPTIONS + HUB_OPTIONS:
        if option in arguments.given and option not in used:
            listed = ", ".join(_flag(name) for name in used)
            remedy = "omit it, or add --text" if option in with_text else "omit it"
            raise UserError(f"{source} does not use {_flag(option)}: {remedy} (what it uses: {listed})")


def default_val_tokens(source, tokens):
    """Tokens for validation of a source that has a number for it; but of a few tokens (None: of all) at most the usual fraction."""
    return source.val_tokens if tokens is None else min(source.val_tokens, max(SMALLEST_SPLIT, round(DEFAULT_VAL_FRACTION * tokens)))


def _flag(option):
    return f"--{option.replace('_', '-')}"


def paths_parts(arguments, known):
    """The parts of files and folders, and a name for their shards. Raises UserError for what is neither a path nor a named source."""
    paths = [user_path(source) for source in arguments.sources]
    for path, source in zip(paths, arguments.sources):
        if not _exists(path):
            near = difflib.get_close_matches(source, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"named sources are {', '.join(known)}"
            raise UserError(f"{source}: a source must be a file, a folder or a named source: No such file or directory; {advice}")
    arguments.name = arguments.name or paths[0].stem or paths[0].resolve().name or "text"
    options = text_options(arguments)
    parts, left_out = parts_of_paths(paths, options)
    if left_out:
        shown = ", ".join(str(path) for path in left_out[:SHOWN_PATHS])
        print(f"left out, since not UTF-8 text: {len(left_out):,} files: {shown}{', ...' if len(left_out) > SHOWN_PATHS else ''}")
    if not parts:
        raise UserError(f"{paths[0]}: a folder must hold at least one text that is not empty, this one holds none. Check the path")
    return parts


def text_options(arguments):
    """The TextOptions of a command line."""
    return TextOptions(parse_split("file" if arguments.split is None else arguments.split), arguments.field, arguments.replace_invalid)


def _exists(path):
    """Does the path exist? Any other error (a name too long, a loop of links) counts as yes: opening the path will report it."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return True


def main(argv):
    """The command line. Returns the exit code: 0, or 2 for a user error."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
