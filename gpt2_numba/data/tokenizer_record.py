"""The tokenizer that made a set of shards, recorded beside them: NAME_tokenizer.json for NAME_train_000000.bin, NAME_val_000000.bin, ...

    {"tokenizer": "bytes", "vocabulary": 257, "end_of_text": 256, ...}

Token numbers alone do not tell what they stand for. With the record, a model gets the vocabulary of its data, one that has another is
refused before anything is built, and samples are printed as text. Shards without a record are read as well: llm.c's have none.
"""

import json
import os
import re
from pathlib import Path

from gpt2_numba.config import VOCAB_PADDING
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.data.tokenizers import VOCAB_SIZES
from gpt2_numba.errors import UserError
from gpt2_numba.integers import round_up

LARGEST_RECORD = 1 << 20  # bytes
_SHARD = re.compile(r"(.+)_(?:(?:train|val)_[0-9]+\.bin|manifest\.json)")


def record_tokenizer(stem, tokenizer, **facts):
    """Write STEM_tokenizer.json. Returns its path.

    stem       path of the shards without "_train_000000.bin" or "_val_000000.bin"
    tokenizer  "bytes" or "gpt2"
    facts      what else is worth recording, as JSON can hold it
    Raises OSError if the file cannot be written.
    """
    path = _record_path(stem)
    vocabulary = VOCAB_SIZES[tokenizer]
    record = {"tokenizer": tokenizer, "vocabulary": vocabulary, "end_of_text": vocabulary - 1, **facts}
    write_json(path, record)
    return path


def recorded_tokenizer(shard_path):
    """The name of the tokenizer that made a shard, or the shards of a manifest: "bytes" or "gpt2"; None if nothing is recorded.

    Raises UserError if the record cannot be read, or names a tokenizer that this version does not have.
    """
    path = _record_beside(shard_path)
    return _read_record(path) if path else None


def tokenizer_of_shards(paths):
    """The tokenizer of shards that are used together; None if nothing is recorded. Raises UserError if they have two."""
    names = {}
    for path in sorted({_record_beside(path) for path in paths} - {None}):
        names.setdefault(_read_record(path), path)
    names.pop(None, None)
    if len(names) > 1:
        (first, one), (second, other) = list(names.items())[:2]
        raise UserError(f"all shards of a run must have the same tokenizer: {first} by {one}, {second} by {other}. Make one of them again")
    return next(iter(names), None)


def _record_beside(shard_path):
    """The path of the record for a shard, which need not exist; None if the shard's name does not tell it."""
    found = _SHARD.fullmatch(Path(shard_path).name)
    return _record_path(Path(shard_path).with_name(found[1])) if found else None


def _read_record(path):
    try:
        with open_regular(path) as file:
            name = json.loads(file.read(LARGEST_RECORD))["tokenizer"]
        if name in VOCAB_SIZES:
            return name
        reason = f"it names the tokenizer {name!r}, and known are {', '.join(sorted(VOCAB_SIZES))}"
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = 'it is not a JSON object with a "tokenizer"'
    raise UserError(f"{path}: the record of the shards' tokenizer cannot be used: {reason}. Make the shards again, or delete the record")


def check_vocabulary_size(vocab_size, tokenizer, is_fresh):
    """Raise UserError if a model with `vocab_size` tokens does not fit data of this tokenizer (None: any model fits).

    It may count the padding of its matrix (50,304 for 50,257 tokens), as some programs do. is_fresh: it begins with random weights.
    """
    right = VOCAB_SIZES.get(tokenizer)
    if right is None or right <= vocab_size <= round_up(right, VOCAB_PADDING):
        return
    if is_fresh:
        advice = f"write V={right} (-e), or omit it"
    else:
        its = next((name for name, size in VOCAB_SIZES.items() if size == vocab_size), None)
        its = f"with --tokenizer {its}" if its else "with its tokenizer"
        advice = f"start from another model (-e), or make shards {its}: python -m gpt2_numba.data --help"
    raise UserError(f"the model must have the vocabulary of the data's tokenizer, {tokenizer}, V={right}, got V={vocab_size}: {advice}")


def write_json(path, contents):
    """Write a JSON object so that the file is either the old one or the whole new one. Raises OSError."""
    part = Path(path).with_name(f"{Path(path).name}.part")
    with open_regular(part, "w", encoding="utf-8") as file:
        json.dump(contents, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _record_path(stem):
    return Path(stem).with_name(f"{Path(stem).name}_tokenizer.json")
