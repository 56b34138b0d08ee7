"""HellaSwag (Zellers et al. 2019) as an evaluation file.

    python -m dev.data.hellaswag hellaswag_val.jsonl --out hellaswag_val.bin

reads JSON lines with at least `ctx`, `label` and `endings`, as in the original file, and writes the format of
`gpt2_numba.data.multiple_choice`. The context is `ctx` unchanged, and a space is prepended to each ending, as in llm.c. The original is
data/hellaswag_val.jsonl in github.com/rowanz/hellaswag: 10,042 examples.
"""

import argparse
import gzip
import io
import json
import zlib
from pathlib import Path

from dev.data.tokenize_text import ENCODINGS
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.data.multiple_choice import Example, write_examples
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.data.tokenizers import encode
from gpt2_numba.errors import UserError


def parse_arguments(argv):
    parser = Parser(prog="python -m dev.data.hellaswag", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=user_path, metavar="JSONL", help="JSON lines, UTF-8; NAME.gz is unpacked")
    parser.add_argument("--out", type=user_path, default=Path("hellaswag_val.bin"), help="file to write (default: hellaswag_val.bin)")
    parser.add_argument("--limit", type=int, help="number of examples to use, the first ones (default: all)")
    parser.add_argument(
        "--tokenizer",
        choices=sorted(ENCODINGS),
        default="gpt2",
        help="the model's: bytes (257 tokens) or gpt2 (50,257 tokens) (default: gpt2)",
    )
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit must be at least 1 example, got {arguments.limit}; omit it for all")
    return arguments


def read_questions(path, limit):
    """Yield (context, label, endings) of the first `limit` lines (None: all lines): string, int, list of strings."""
    try:
        with open_regular(path) as file:
            lines = gzip.open(file, "rt", encoding="utf-8") if path.suffix == ".gz" else io.TextIOWrapper(file, encoding="utf-8")
            for number, line in enumerate(lines, start=1):
                if limit is not None and number > limit:
                    return
                yield _parse_line(path, number, line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # the middle two: a damaged archive
        raise UserError(
            f"{path}: the questions must be a readable file of UTF-8 text: {getattr(error, 'strerror', None) or error}. Check the path"
        ) from error


def _parse_line(path, number, line):
    try:
        row = json.loads(line)
        context, label, endings = row["ctx"], int(row["label"]), list(row["endings"])  # some copies have "label": "3"
        if not all(isinstance(text, str) for text in [context, *endings]):
            raise TypeError
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:  # the last two: 1e999, and deep nesting
        raise UserError(
            f"{path}, line {number}: each line must be a JSON object with ctx (text), label (number) and "
            f"endings (texts), got {line.strip()[:60]!r}. Use a file with labels, such as the validation file"
        ) from error
    return context, label, endings


def run(argv):
    arguments = parse_arguments(argv)
    encoding = ENCODINGS[arguments.tokenizer]()
    # GPT-2's tokens include the space before a word: with it, an ending is tokenized as in running text.
    examples = [
        Example(label, encode(encoding, context), [encode(encoding, " " + ending) for ending in endings])
        for context, label, endings in read_questions(arguments.questions, arguments.limit)
    ]
    try:
        write_examples(arguments.out, examples)
    except OSError as error:
        raise UserError(f"--out {arguments.out}: must be a writable file: {error.strerror}. Choose another") from error
    longest = max(len(example.context) + max(map(len, example.endings)) for example in examples)
    print(f"{arguments.out}: {len(examples):,} examples, the longest of {longest} tokens")


def main(argv=None):
    """The command line. Returns the exit code: 0, or 2 for a user error."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
