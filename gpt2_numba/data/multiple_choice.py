"""Multiple-choice evaluations, HellaSwag (Zellers et al. 2019) above all: which ending goes on best from a context?

The model answers without being asked: each ending is put behind the context, and the ending with the lowest mean loss
over its own tokens is its choice (what evaluation harnesses call acc_norm). The file is llm.c's:

    256 int32, little-endian   [0] = 20240522, [1] = 1 (version), [2] = number of examples, [3] = bytes of the longest
    one uint16 stream per example, little-endian:
        65535, bytes of this example, its index, label, number of endings,
        context length, context tokens, then for each ending its length and its tokens

One ending makes one row of a batch, and rows follow each other whatever the batch size is; an example's rows may lie in
two batches. With context c0 c1 c2 and ending e0 e1:

    inputs     c0 c1 c2 e0  0  0 ...
    targets    c1 c2 e0 e1  0  0 ...
    mask        .  .  x  x  .  . ...      the losses that count
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.errors import UserError

MAGIC = 20240522
VERSION = 1
START_OF_EXAMPLE = 2**16 - 1  # so that this number is no token
MOST_EXAMPLES = 2**16 - 1  # the index is a uint16
LONGEST_EXAMPLE = 2**16 - 2  # bytes; their number is a uint16 too
NORMAL_95 = 1.959964  # 95 % of a normal distribution are within so many standard deviations
HOW_TO_MAKE_ONE = "Make one from HellaSwag's JSON lines: python -m dev.data.hellaswag --help"


class Example(NamedTuple):
    """One question. Tokens are 1-D integer arrays or lists, none of them empty; `label` is the right ending's index."""

    label: int
    context: np.ndarray
    endings: list


@dataclass(frozen=True)
class Score:
    """What came of an evaluation. The score of several ranks is Score(sum of their correct, sum of their examples)."""

    correct: int
    examples: int

    @property
    def accuracy(self):
        """Share of the examples that were answered rightly, in [0, 1]; NaN if there were none."""
        return self.correct / self.examples if self.examples else math.nan

    @property
    def interval(self):
        """(low, high): the 95 % confidence interval of the accuracy, for examples drawn at random.

        Wilson's score interval (1927): unlike accuracy +- 2 standard errors it is right for few examples too, stays in
        [0, 1], and has a width when all answers are right or all are wrong.
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


class MultipleChoice:
    """The examples of one evaluation file as batches, and the score of the losses that a model has on them.

    path        the file
    B, T        rows of a batch, at least 1, and tokens of a row
    rank, ranks this process, and how many share the examples: each takes a run of them, equal in number or one apart
    vocab_size  if given, every token must be below it

    `num_examples` counts the whole file, `batches` those of this rank (0 if there are more ranks than examples).
    Raises UserError if the file is no evaluation, holds a token outside the vocabulary, or has an example that is
    longer than T: to cut it would be another evaluation.

        for inputs, targets, mask in evaluation:
            evaluation.score(losses)            # of the model, for this batch
        evaluation.result().accuracy
    """

    def __init__(self, path, B, T, rank=0, ranks=1, vocab_size=None):
        examples = read_examples(path)
        self.num_examples = len(examples)
        self.B, self.T = B, T
        # All examples are looked at, not only this rank's: all ranks should stop, or none.
        _check_fit(path, examples, T, vocab_size)
        self.examples = examples[len(examples) * rank // ranks : len(examples) * (rank + 1) // ranks]
        self.rows = [(example.context, ending) for example in self.examples for ending in example.endings]
        self.batches = -(-len(self.rows) // B)
        self._row_losses = []  # mean loss of each ending, in the rows' order, as far as it is known

    def __iter__(self):
        """Yield (inputs, targets, mask) per batch, new arrays (B, T): int32, int32, bool. It starts the score anew.

        Places without a token hold token 0 and are not in the mask; so are the rows behind the last ending.
        """
        self._row_losses = []
        for start in range(0, len(self.rows), self.B):
            inputs, targets = np.zeros((2, self.B, self.T), dtype=np.int32)
            mask = np.zeros((self.B, self.T), dtype=bool)
            rows = self.rows[start : start + self.B]
            for b, (context, ending) in enumerate(rows):
                tokens = np.concatenate([context, ending])
                inputs[b, : len(tokens) - 1] = tokens[:-1]
                targets[b, : len(tokens) - 1] = tokens[1:]
                mask[b, len(context) - 1 : len(tokens) - 1] = True  # the context's last token predicts the ending's first
            self._mask = mask[: len(rows)].copy()  # the one above is the caller's
            yield inputs, targets, mask

    def score(self, losses):
        """Take in the losses of the batch that was yielded last: floats (B, T), the loss of each target in nats.

        What stands outside the mask does not matter.
        """
        if losses.shape != (self.B, self.T):
            raise ValueError(f"score: losses must have shape (B, T) = ({self.B}, {self.T}), got {losses.shape}")
        for row, mask in zip(losses, self._mask):
            self._row_losses.append(row[mask].mean(dtype=np.float64))

    def result(self):
        """Return this rank's Score after all batches. Of endings with equal losses the first one is the choice."""
        if len(self._row_losses) != len(self.rows):
            raise RuntimeError(f"result: each batch must be scored once; {len(self._row_losses)} rows of {len(self.rows)} were")
        losses, correct = iter(self._row_losses), 0
        for example in self.examples:
            choice = np.argmin([next(losses) for _ in example.endings])
            correct += int(choice == example.label)
        return Score(correct, len(self.examples))


def write_examples(path, examples):
    """Write `examples` (a list of Example, 1 to 65,535) to `path` as one evaluation file; an older file is replaced.

    Raises UserError, before anything is written, if the format cannot hold them: an empty context or ending, a label
    that is no ending's, a token outside [0, 65534], or an example of more than 65,534 bytes.
    """
    if not 1 <= len(examples) <= MOST_EXAMPLES:
        raise UserError(f"{path}: an evaluation file holds 1 to {MOST_EXAMPLES} examples, got {len(examples)}. Write fewer")
    streams = [_stream_of(path, index, example) for index, example in enumerate(examples)]
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = MAGIC, VERSION, len(examples), max(stream.nbytes for stream in streams)
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for stream in streams:
            file.write(stream.tobytes())


def read_examples(path):
    """Return the examples of the evaluation file at `path`: a list of Example, tokens as uint16 arrays.

    Raises UserError if the file is missing or is not exactly an evaluation.
    """
    path = Path(path)
    count, longest = (int(number) for number in read_header(path, "an evaluation", MAGIC, (VERSION,), HOW_TO_MAKE_ONE)[2:4])
    content = path.read_bytes()
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


def _parse(path, index, stream):
    """Return (Example, length in uint16) of example number `index`, which begins the 1-D uint16 array `stream`."""
    if len(stream) < 6 or stream[0] != START_OF_EXAMPLE or stream[2] != index:
        raise _damaged(path, f"example number {index} does not begin where it should")
    nbytes, label, num_endings = int(stream[1]), int(stream[3]), int(stream[4])
    if nbytes % 2 or nbytes > stream.nbytes:
        raise _damaged(path, f"example number {index} should have {nbytes} bytes, and {stream.nbytes} are left")
    stream = stream[: nbytes // 2]
    parts, start = [], 5
    for _ in range(1 + num_endings):  # the context, then the endings
        length = int(stream[start]) if start < len(stream) else 0
        parts.append(stream[start + 1 : start + 1 + length])
        if not 0 < length == len(parts[-1]):
            raise _damaged(path, f"example number {index} has a text of no tokens or of more than fit into it")
        start += 1 + length
    if start != len(stream) or label >= num_endings:
        raise _damaged(
            path,
            f"example number {index} has {len(stream) - start} numbers too many, or a label ({label}) "
            f"that is none of its {num_endings} endings",
        )
    return Example(label, parts[0], parts[1:]), len(stream)


def _stream_of(path, index, example):
    """The uint16 array that stands for `example` in a file."""
    stream = [START_OF_EXAMPLE, 0, index, example.label, len(example.endings)]
    for tokens in [example.context, *example.endings]:
        if len(tokens) == 0:
            raise UserError(
                f"{path}: a context and an ending must have at least one token, example number {index} has an empty one. Leave it out"
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
        raise UserError(f"{path}: an example has at most {LONGEST_EXAMPLE} bytes, number {index} has {stream[1]}. Leave it out")
    return np.array(stream, dtype="<u2")


def _check_fit(path, examples, T, vocab_size):
    """Raise UserError if an example does not fit into rows of T tokens, or has a token outside the vocabulary."""
    for index, example in enumerate(examples):
        needed = len(example.context) + max(map(len, example.endings)) - 1  # the last token is a target only
        if needed > T:
            raise UserError(
                f"{path}: a context and an ending must fit into the sequence length (-t), example number "
                f"{index} needs {needed} and there are {T}. Use a longer sequence, or leave out this "
                f"evaluation"
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
        f"{path}: the examples of an evaluation must follow each other without a gap: {reason}. The file "
        f"was cut off or altered: copy or make it again"
    )
