"""Parts of text to token shards: choosing which tokens are for validation, going on after a break, and saying how to train.

The first tokens are for validation: a given number of them, or those of the first fraction of the text; where parts say themselves that
they are for validation, the first tokens of these. All of this depends on the text and the settings only, so a job that was stopped and
goes on, with whatever number of processes, writes the same bytes.
"""

import contextlib
import hashlib
import math
import time

import numpy as np

from gpt2_numba.data.disk_space import free_bytes
from gpt2_numba.data.making.shard_writer import SPLITS, ShardWriter, cannot_write
from gpt2_numba.data.making.tokenizing import encode_units
from gpt2_numba.data.making.training_command import training_command
from gpt2_numba.data.tokenizer_record import record_tokenizer
from gpt2_numba.data.tokenizers import VOCAB_SIZES
from gpt2_numba.errors import UserError
from gpt2_numba.progress import Progress, duration, file_size

SAVE_SECONDS = 10  # between two notes of the progress: what a broken job does again
DEFAULT_VAL_FRACTION = 0.1
SMALLEST_SPLIT = 2  # tokens: the smallest batch is one input and its target
SAFETY = 1.05  # the first unit tells how many tokens a byte gives, about


def make_shards(parts, arguments):
    """Tokenize parts of text (see text_parts.py) to the shards of a command line (see data/__main__.py). Returns None.

    Prints the shards and how to train on them. Raises UserError, one line, for a text that is not what it must be, for a disk that is too
    small, and for shards that exist already.
    """
    begun = time.monotonic()
    with ShardWriter(arguments.out, arguments.name, _job(parts, arguments), arguments.shard_size) as writer:
        division = Division(parts, arguments)
        place = writer.place or {"part": 0, "unit": 0, "nbytes": 0, "documents": 0, "marks": 0}
        if writer.place:
            print(f"going on after {sum(writer.tokens.values()):,} tokens of an earlier job")
        if not writer.complete:
            place = _write_units(parts, arguments, writer, division, place)
        if not all(writer.tokens.values()):
            _nothing_left(writer)
        shards = writer.finish()
        _record(writer, arguments, documents=place["documents"], tokens=writer.tokens)
        writer.forget_progress()
    _report(writer, shards, place, arguments, time.monotonic() - begun)
    if line := _few_for_validation(parts, writer, arguments):
        print(line)


class Division:
    """Which tokens are for validation.

    --val-tokens N       the first N
    --val-fraction F     those of the first bytes of the text, a fraction F of them
    neither              a tenth of the text, at most one shard; or all of the parts that are for validation
    with --tokens N      moreover at most the fraction, or a tenth, of these N

    If the text has parts for validation, the others have none, and what of those parts is not wanted is dropped.
    """

    def __init__(self, parts, arguments):
        fraction = arguments.val_fraction or DEFAULT_VAL_FRACTION
        parts_tell = any(part.validation is not None for part in parts)
        by_default = arguments.val_tokens is None and arguments.val_fraction is None
        self._limit = arguments.tokens
        self._nbytes = math.inf  # of the text for validation, and tokens:
        self._most = math.inf if arguments.val_tokens is None else arguments.val_tokens
        if arguments.val_tokens is None:
            if not (by_default and parts_tell):
                self._nbytes = fraction * sum(part.size for part in parts)
            if by_default and not parts_tell:
                self._most = arguments.shard_size
            if self._limit:
                self._most = min(self._most, max(SMALLEST_SPLIT, round(fraction * self._limit)))

    def divide(self, part, unit, tokens, nbytes, written):
        """Return the tokens of a unit for each split: {"val": ..., "train": ...}.

        nbytes: of the text before it; written: split -> tokens written before it.
        """
        count = 0
        if part.validation is not False and not written["train"]:
            count = round(len(tokens) * min(1, max(0, self._nbytes - nbytes) / max(1, unit.size)))
            count = min(count, self._most - written["val"])
        if part.validation:
            tokens = tokens[:count]
        if self._limit:
            tokens = tokens[: max(0, self._limit - sum(written.values()))]
        return {"val": tokens[:count], "train": tokens[count:]}

    def ended(self, written):
        return self._limit is not None and sum(written.values()) >= self._limit


def _write_units(parts, arguments, writer, division, place):
    """Tokenize from `place` to the end. Returns the place there: {"part", "unit", "nbytes", "documents", "marks"}."""
    total, saved, written = sum(part.size for part in parts), time.monotonic(), dict(writer.tokens)
    end_of_text = VOCAB_SIZES[arguments.tokenizer] - 1
    units = _units(parts, place["part"], place["unit"])
    try:
        with (
            Progress("tokenizing", total, "B", done=place["nbytes"]) as progress,
            contextlib.closing(encode_units(units, arguments.tokenizer, arguments.processes)) as results,
        ):
            for (index, number), unit, encoded in results:
                if place["nbytes"] == 0:
                    _check_disk(arguments, total, unit.size, len(encoded.tokens))
                    _record(writer, arguments)
                tokens = division.divide(parts[index], unit, encoded.tokens, place["nbytes"], writer.tokens)
                for split in SPLITS:
                    writer.write(split, tokens[split])
                place = {
                    "part": index, "unit": number + 1, "nbytes": place["nbytes"] + unit.size,
                    "documents": place["documents"] + sum(int(np.sum(tokens[split] == end_of_text)) for split in SPLITS), "marks": place["marks"] + encoded.marks,
                }  # fmt: skip
                written = dict(writer.tokens)
                progress.advance(unit.size, f"{sum(written.values()) / 1e6:,.1f}M tokens")
                if division.ended(written):
                    break
                if time.monotonic() - saved > SAVE_SECONDS:
                    writer.save(place)
                    saved = time.monotonic()
    except BaseException as error:
        _save_what_there_is(writer, place, written, error)
        raise
    writer.save(place, complete=True)
    return place


def _save_what_there_is(writer, place, written, error):
    """Before the job ends with an error: save `place`, where `written` tokens had been written, if these are all; or clean up if none are."""
    if not any(written.values()):
        writer.delete()
    elif written == writer.tokens:
        with contextlib.suppress(UserError):  # a full disk is being told already
            writer.save(place)
    if any(written.values()) and isinstance(error, KeyboardInterrupt):
        print(f"stopped after {sum(written.values()):,} tokens: the same command goes on from there")


def _units(parts, first_part, first_unit):
    """Yield ((number of the part, number of the unit in it), unit) from a place on."""
    for index in range(first_part, len(parts)):
        for number, unit in enumerate(parts[index].units()):
            if index > first_part or number >= first_unit:
                yield (index, number), unit


def _job(parts, arguments):
    """What identifies the job: two commands with the same write the same bytes."""
    text = repr([(part.name, part.size, part.stamp, part.validation) for part in parts])
    return {
        "sources": " ".join(arguments.sources),
        "text": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        "tokenizer": arguments.tokenizer,
        "split": arguments.split or "file",
        "field": arguments.field,
        "val_fraction": arguments.val_fraction,
        "val_tokens": arguments.val_tokens,
        "tokens": arguments.tokens,
        "shard_size": arguments.shard_size,
    }


def _check_disk(arguments, total, unit_bytes, unit_tokens):
    """Raise UserError if the shards, by what the first unit gave, will not fit on the disk."""
    needed = SAFETY * 2 * unit_tokens / max(1, unit_bytes) * total
    if arguments.tokens:
        needed = min(needed, 2 * arguments.tokens)
    try:
        free = free_bytes(arguments.out)
    except OSError as error:
        raise cannot_write(arguments.out, error) from error
    if needed > free:
        raise UserError(
            f"--out {arguments.out}: the shards need about {file_size(needed)}, and {file_size(free)} are free there. Make room, choose "
            "another --out, or take part of the text with --tokens"
        )


def _record(writer, arguments, **facts):
    try:
        record_tokenizer(writer.stem, arguments.tokenizer, sources=arguments.sources, split=arguments.split or "file", **facts)
    except OSError as error:
        raise cannot_write(arguments.out, error) from error


def _nothing_left(writer):
    tokens = dict(writer.tokens)
    total = sum(tokens.values())
    writer.delete()
    if total == 0:
        raise UserError("a source must hold some text, this one is empty. Check the path")
    raise UserError(
        f"validation and training need at least one token each: {tokens['val']} of {total} tokens for validation leaves none for one of "
        "them. Choose another --val-tokens or --val-fraction"
    )


def _few_for_validation(parts, writer, arguments):
    """A line about parts for validation that have fewer tokens than are wanted; None if they have enough."""
    val, total = writer.tokens["val"], sum(writer.tokens.values())
    wanted = arguments.val_tokens or 0.9 * (arguments.val_fraction or 0) * total  # a fraction of bytes is only about one of tokens
    if any(part.validation for part in parts) and val < wanted:
        asked = f"--val-tokens {arguments.val_tokens}" if arguments.val_tokens else f"--val-fraction {arguments.val_fraction}"
        return f"{asked}: this source has only {val:,} tokens for validation, all of which are taken"


def _report(writer, shards, place, arguments, seconds):
    for split in SPLITS:
        paths = shards[split]
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        print(f"{paths[0]}{others}: {writer.tokens[split]:,} tokens")
    total = sum(writer.tokens.values())
    print(f"{place['documents']:,} documents, {total:,} tokens of {arguments.tokenizer} in {duration(seconds)}")
    if place["marks"]:
        print(f"the text says <|endoftext|> {place['marks']:,} times, which is text like any other (see --split)")
    print(f"train with: {training_command(writer.stem, shards['train'], shards['val'], arguments.tokenizer)}")
