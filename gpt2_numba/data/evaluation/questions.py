"""Multiple-choice questions as evaluation files: JSON lines or parquet in, the format of multiple_choice.py out.

Two layouts of a row are known (LAYOUTS). Each row becomes a context and its endings, tokenized as in running text: GPT-2's tokens include
the space before a word, so every ending begins with one.

HellaSwag   ctx, endings, label                "CTX"                                 " ENDING"
MMLU        question, choices, answer          "Question: QUESTION\\n\\nAnswer:"       " CHOICE"      as llm.c asks it
  in letters                                   "QUESTION\\nA. CHOICE\\n ... Answer:"    " A" ...       as evaluation harnesses do
"""

import gzip
import io
import json
import zlib
from pathlib import Path

from gpt2_numba.data.evaluation.multiple_choice import Example, write_examples
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.data.tokenizers import encode
from gpt2_numba.errors import UserError
from gpt2_numba.progress import Progress

GPT2_CONTEXT = 1024  # tokens
LETTERS = "ABCD"

LAYOUTS = {
    "hellaswag": ("ctx", "label", "endings", "{}"),
    "mmlu": ("question", "answer", "choices", "Question: {}\n\nAnswer:"),
    "mmlu-letters": ("question", "answer", "choices", "{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:"),
}


def read_questions(path, layout, limit=None):
    """Yield (context, label, endings) of the first `limit` rows (None: all): string, int, list of strings.

    path     JSON lines in UTF-8, perhaps with a byte order mark and blank lines; NAME.gz is unpacked, NAME.parquet needs pyarrow
    layout   a name of LAYOUTS
    Raises UserError for a file that cannot be read, and for a row of another layout or without a label.
    """
    path = Path(path)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    for index, (where, row) in enumerate(rows):
        if index == limit:
            return
        yield _question(f"{path}, {where}", row, layout)


def _json_rows(path):
    """Yield (where it is, the row) of a file of JSON lines."""
    try:
        with open_regular(path) as file:
            unpacked = gzip.open(file) if path.suffix == ".gz" else file
            for number, line in enumerate(io.TextIOWrapper(unpacked, encoding="utf-8-sig"), start=1):
                if line.strip():
                    yield f"line {number}", _parse_json(line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # the middle two: a damaged archive
        raise _cannot_read(path, getattr(error, "strerror", None) or error) from error


def _parse_json(line):
    """The row of a line; the line itself if it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _parquet_rows(path):
    """Yield (where it is, the row) of a parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: a parquet file needs pyarrow: pip install pyarrow") from error
    try:
        with open_regular(path) as file:
            number = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise _cannot_read(path, getattr(error, "strerror", None) or error) from error


def _cannot_read(path, reason):
    return UserError(
        f"{path}: the questions must be a readable file, JSON lines in UTF-8 or parquet: {str(reason).splitlines()[0]}. Check the path"
    )


def _question(where, row, layout):
    """(context, label, endings) of a row. Raises UserError if it has another layout."""
    context_field, label_field, endings_field, template = LAYOUTS[layout]
    try:
        context, label, endings = row[context_field], row[label_field], row[endings_field]
        if isinstance(label, str):  # some copies have "3", or MMLU's letters
            label = LETTERS.index(label) if label in tuple(LETTERS) else int(label)
        if type(label) is not int or not isinstance(endings, list) or not all(isinstance(text, str) for text in [context, *endings]):
            raise TypeError
    except (ValueError, KeyError, TypeError, IndexError) as error:
        shown = row.strip() if isinstance(row, str) else json.dumps(row, default=str)
        raise UserError(
            f"{where}: each must be an object with {context_field} (text), {label_field} (a whole number) and {endings_field} (list of texts), "
            f"got {shown[:60]!r}. Use a file with labels, such as HellaSwag's validation file"
        ) from error
    if layout == "mmlu-letters":
        if len(endings) != len(LETTERS):
            raise UserError(f"{where}: a question in letters must have {len(LETTERS)} {endings_field}, got {len(endings)}. Remove it")
        return template.format(context.strip(), *endings), label, list(LETTERS)
    return template.format(context), label, endings


def write_questions(out, questions, encoding, longest=GPT2_CONTEXT):
    """Tokenize `questions` (of read_questions) with `encoding` and write them to the file `out`, in a directory that is made if missing.

    longest   tokens: a question that needs more, context and longest ending together without the last token, is left out
    Returns (number written, number left out, tokens of the longest one written). Raises UserError if nothing is left, or if the file cannot
    be written.
    """
    examples, left_out, longest_written = [], 0, 0
    with Progress("tokenizing questions", unit="questions") as progress:
        for context, label, endings in questions:
            progress.advance()
            example = Example(label, encode(encoding, context), [encode(encoding, " " + ending) for ending in endings])
            tokens = len(example.context) + max(map(len, example.endings), default=0)
            if tokens - 1 > longest:
                left_out += 1
            else:
                examples.append(example)
                longest_written = max(longest_written, tokens)
    if left_out and not examples:
        raise UserError(f"--longest must leave a question, all {left_out} need more than {longest} tokens: give a larger one")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_examples(out, examples)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--out {out}: must be a writable file: {getattr(error, 'strerror', None) or error}. Choose another") from error
    return len(examples), left_out, longest_written
