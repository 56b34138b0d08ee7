"""Multiple-choice evaluations, above all HellaSwag (Zellers et al. 2019): which ending best completes a context?

No prompt is needed: each ending is appended to the context, and the one with the lowest mean loss over its own tokens is the model's choice
(evaluation harnesses call this acc_norm). The file format is llm.c's:

    256 int32, little-endian   [0] = 20240522, [1] = 1 (version), [2] = number of examples, [3] = bytes of the longest
    one uint16 stream per example, little-endian:
        65535, bytes of this example, its index, label, number of endings,
        context length, context tokens, then for each ending its length and its tokens

Each ending is one row of a batch, after its context (answers.py). With context c0 c1 c2 and ending e0 e1:

    inputs     c0 c1 c2 e0  0  0 ...
    targets    c1 c2 e0 e1  0  0 ...
    losses      .  .  x  x  .  . ...      those that count
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

MAGIC = 20240522
VERSION = 1
START_OF_EXAMPLE = 2**16 - 1  # therefore not a valid token
MOST_EXAMPLES = 2**16 - 1  # the index is a uint16
LONGEST_EXAMPLE = 2**16 - 2  # bytes; the size is a uint16 too
NORMAL_95 = 1.959964  # 95 % of a normal distribution lies within this many standard deviations
HOW_TO_MAKE_ONE = "Make one: python -m gpt2_numba.data hellaswag"


class Example(NamedTuple):
    """One question. Tokens are 1-D integer arrays or lists, none of them empty; `label` is the index of the right ending."""

    label: int
    context: np.ndarray
    endings: list


@dataclass(frozen=True)
class Score:
    """The result of an evaluation. The score of several ranks is Score(sum of their correct, sum of their examples)."""

    correct: int
    examples: int

    @property
    def accuracy(self):
        """Fraction of the examples answered correctly, in [0, 1]; NaN if there are none."""
        return self.correct / self.examples if self.examples else math.nan

    @property
    def interval(self):
        """(low, high): the 95 % confidence interval of the accuracy, for examples drawn at random.

        Wilson's score interval (1927): unlike accuracy ± 2 standard errors it also holds for few examples, stays in [0, 1], and has a
        nonzero width when all answers are right or all are wrong.
        """
        if not self.examples:
            return math.nan, math.nan
        n, p, z = self.examples, self.accuracy, NORMAL_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self):
        low, high = self.interval
        return f"{self.correct}/{self.examples} = {self.accuracy:.4f} (95 % between {low:.4f} and {high:.4f})"


def write_examples(path, examples):
    """Write `examples` (a list of 1 to 65,535 Examples) to `path` as an evaluation file, replacing an older file.

    Raises UserError, before writing anything, if the format cannot hold them: an empty context or ending, a label that is no ending's
    index, a token outside [0, 65534], or an example of more than 65,534 bytes. Raises OSError if the file cannot be written.
    """
    if not 1 <= len(examples) <= MOST_EXAMPLES:
        raise UserError(f"{path}: an evaluation file holds 1 to {MOST_EXAMPLES} examples, got {len(examples)}. Write fewer")
    streams = [_encode_example(path, index, example) for index, example in enumerate(examples)]
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = MAGIC, VERSION, len(examples), max(stream.nbytes for stream in streams)
    with open_regular(path, "wb") as file:
        file.write(header.tobytes())
        for stream in streams:
            file.write(stream.tobytes())


def read_examples(path):
    """Return the examples of the evaluation file at `path`: a list of Example, tokens as uint16 arrays.

    Raises UserError if the file is missing or is not a valid evaluation.
    """
    path = Path(path)
    count, longest = (int(value) for value in read_header(path, "an evaluation", MAGIC, (VERSION,), HOW_TO_MAKE_ONE)[2:4])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    if count < 1:
        raise UserError(f"{path}: an evaluation must hold at least one example, its header says {count}. {HOW_TO_MAKE_ONE}")
    if len(content) % 2:
        raise _damaged(path, f"it has an odd number of bytes, {len(content)}")

    stream = np.frombuffer(content, dtype="<u2", offset=HEADER_BYTES)
    examples, start, longest_seen = [], 0, 0
    for index in range(count):
        example, size = _parse(path, index, stream[start:])
        examples.append(example)
        start += size
        longest_seen = max(longest_seen, 2 * size)
    if start != len(stream):
        raise _damaged(path, f"{2 * (len(stream) - start)} bytes follow its last example, number {count - 1}")
    if longest_seen != longest:
        raise _damaged(path, f"its longest example has {longest_seen} bytes, and its header says {longest}")
    return examples


def read_share(path, T, rank=0, ranks=1, vocab_size=None):
    """The examples of the evaluation file at `path` that are process `rank`'s: a contiguous part, equal in number or one apart.

    T           tokens of a row, which have to be enough for a context and an ending: cutting them would change the evaluation
    vocab_size  if given, every token must be below it
    The list is empty if there are more processes than examples and this one has none. Raises UserError if the file is missing, is not a
    valid evaluation or does not fit, in every process, whichever has the example that does not.
    """
    examples = read_examples(path)
    _check_fit(path, examples, T, vocab_size)
    return examples[len(examples) * rank // ranks : len(examples) * (rank + 1) // ranks]


def _parse(path, index, stream):
    """Parse example number `index`, at the start of the 1-D uint16 array `stream`. Returns (Example, its length in uint16)."""
    if len(stream) < 6 or stream[0] != START_OF_EXAMPLE or stream[2] != index:
        raise _damaged(path, f"example number {index} does not begin where it should")
    nbytes, label, num_endings = int(stream[1]), int(stream[3]), int(stream[4])
    if nbytes % 2 or nbytes > stream.nbytes:
        raise _damaged(path, f"example number {index} should have {nbytes} bytes, but {stream.nbytes} are left")
    stream = stream[: nbytes // 2]
    parts, start = [], 5
    for _ in range(1 + num_endings):  # the context, then the endings
        length = int(stream[start]) if start < len(stream) else 0
        parts.append(stream[start + 1 : start + 1 + length])
        if not 0 < length == len(parts[-1]):
            raise _damaged(path, f"example number {index} has a text without tokens, or with more than fit into it")
        start += 1 + length
    if start != len(stream) or label >= num_endings:
        raise _damaged(
            path,
            f"example number {index} has {len(stream) - start} values too many, or a label ({label}) that is not the index of one of its "
            f"{num_endings} endings",
        )
    return Example(label, parts[0], parts[1:]), len(stream)


def _encode_example(path, index, example):
    """The uint16 array that encodes `example` in a file."""
    stream = [START_OF_EXAMPLE, 0, index, example.label, len(example.endings)]
    for tokens in [example.context, *example.endings]:
        if len(tokens) == 0:
            raise UserError(
                f"{path}: a context and an ending must have at least one token, example number {index} has an empty one. Remove it"
            )
        if min(tokens) < 0 or max(tokens) >= START_OF_EXAMPLE:
            raise UserError(
                f"{path}: a token must be in [0, {START_OF_EXAMPLE - 1}], example number {index} has "
                f"{min(tokens)} to {max(tokens)}. Use another tokenizer"
            )
        stream += [len(tokens), *tokens]
    if not 0 <= example.label < len(example.endings):
        raise UserError(
            f"{path}: a label must be the index of an ending, example number {index} has label "
            f"{example.label} and {len(example.endings)} endings. Correct it"
        )
    stream[1] = 2 * len(stream)
    if stream[1] > LONGEST_EXAMPLE:
        raise UserError(f"{path}: an example has at most {LONGEST_EXAMPLE} bytes, number {index} has {stream[1]}. Remove it")
    return np.array(stream, dtype="<u2")


def _check_fit(path, examples, T, vocab_size):
    """Raise UserError if an example does not fit into rows of T tokens, or has a token outside the vocabulary."""
    for index, example in enumerate(examples):
        needed = len(example.context) + max(map(len, example.endings)) - 1  # the last token is a target only
        if needed > T:
            raise UserError(
                f"{path}: a context and an ending must fit into the sequence length (-t) of {T}, example number {index} needs {needed} "
                "tokens. Use a longer sequence, or skip this evaluation"
            )
        if vocab_size is not None:
            highest = max(int(tokens.max()) for tokens in [example.context, *example.endings])
            if highest >= vocab_size:
                raise UserError(
                    f"{path}: a token must be below the model's vocabulary of {vocab_size}, example number "
                    f"{index} has {highest}. Make the file with the model's tokenizer"
                )


def _damaged(path, reason):
    return UserError(
        f"{path}: the examples of an evaluation must follow each other without gaps: {reason}. The file was truncated or altered: copy it "
        "again, or make a new one"
    )
