"""Evaluation files and their score. The oracle answers each question separately, without batches."""

import hashlib
import math
import os
import struct

import numpy as np
import pytest

from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.data.evaluation.multiple_choice import Example, Score, read_examples, read_share, write_examples
from gpt2_numba.errors import UserError

SMALL = [Example(2, [7, 300], [[1], [65534, 2], [3, 4, 5]]), Example(0, [0], [[9], [8]])]
# the first example: 5 values, a context of 1 + 2, endings of 1 + 1, 1 + 2 and 1 + 3
SMALL_STREAM = [65535, 34, 0, 2, 3, 2, 7, 300, 1, 1, 2, 65534, 2, 3, 3, 4, 5, 65535, 22, 1, 0, 2, 1, 0, 1, 9, 1, 8]


def file_bytes(stream, magic=20240522, version=1, count=2, longest=34):
    """An independent implementation of the format, with `struct`."""
    return struct.pack("<256i", magic, version, count, longest, *[0] * 252) + struct.pack(f"<{len(stream)}H", *stream)


def changed(index, value):
    stream = list(SMALL_STREAM)
    stream[index] = value
    return file_bytes(stream)


def as_lists(examples):
    return [(example.label, list(example.context), [list(ending) for ending in example.endings]) for example in examples]


def random_examples(count, endings=(4,), longest=5, seed=1):
    """Questions of all lengths; `endings` are the numbers of endings, used in turn."""
    random = np.random.default_rng(seed)

    def text():
        return random.integers(0, 50257, size=random.integers(1, longest + 1)).tolist()

    examples = []
    for i in range(count):
        n = endings[i % len(endings)]
        examples.append(Example(int(random.integers(n)), text(), [text() for _ in range(n)]))
    return examples


def fake_loss(prefix, target):
    """A causal model in one line: an arbitrary loss of `target`, a function of all tokens before it."""
    digest = hashlib.sha256(repr(([int(token) for token in prefix], int(target))).encode()).digest()
    return np.float32(int.from_bytes(digest[:4], "little") / 2**28)


def fake_losses(inputs, targets):
    return np.array(
        [[fake_loss(row[: t + 1], target) for t, target in enumerate(row_targets)] for row, row_targets in zip(inputs, targets)],
        dtype=np.float32,
    )


def brute_force(examples):
    """The number of correct choices, one example at a time, in plain Python."""
    correct = 0
    for label, context, endings in examples:
        means = []
        for ending in endings:
            losses = [float(fake_loss(context + ending[:i], token)) for i, token in enumerate(ending)]
            means.append(sum(losses) / len(losses))
        correct += means.index(min(means)) == label
    return correct


def evaluate(path, tokens, T=12, losses=fake_losses, **share):
    answers = Answers(read_share(path, T, **share))
    for batch in answers.batches(tokens, T):
        answers.add(batch.rows, losses(batch.inputs, batch.targets))
    return answers.score()


@pytest.fixture
def small_file(tmp_path):
    path = tmp_path / "small.bin"
    path.write_bytes(file_bytes(SMALL_STREAM))
    return path


# --- the file ---


def test_written_bytes_are_llmcs(tmp_path):
    write_examples(tmp_path / "a.bin", SMALL)
    assert (tmp_path / "a.bin").read_bytes() == file_bytes(SMALL_STREAM)


def test_examples_read_back(small_file):
    examples = read_examples(small_file)
    assert as_lists(examples) == as_lists(SMALL)
    assert examples[0].context.dtype == np.uint16


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "this file has 0"),
        (file_bytes(SMALL_STREAM)[:1023], "this file has 1023"),
        (b"First Citizen:\n" * 100, "is something else"),
        (file_bytes(SMALL_STREAM, magic=20240520), "is a token shard"),
        (file_bytes(SMALL_STREAM, magic=20240326), "is a model checkpoint"),
        (file_bytes(SMALL_STREAM, version=2), "must have version 1, this one has 2"),
        (file_bytes([], count=0, longest=0), "at least one example"),
        (file_bytes(SMALL_STREAM, count=-1), "at least one example"),
        (file_bytes(SMALL_STREAM)[:-1], "odd number of bytes"),
        (file_bytes(SMALL_STREAM)[:-2], "example number 1 should have 22 bytes, but 20 are left"),
        (file_bytes(SMALL_STREAM[:17]), "example number 1 does not begin"),
        (file_bytes(SMALL_STREAM + [0]), "2 bytes follow"),
        (file_bytes(SMALL_STREAM, count=1), "22 bytes follow"),
        (file_bytes(SMALL_STREAM, count=3), "example number 2 does not begin"),
        (file_bytes(SMALL_STREAM, longest=36), "34 bytes, and its header says 36"),
        (changed(17, 65534), "example number 1 does not begin"),
        (changed(19, 2), "example number 1 does not begin"),  # another index
        (changed(1, 0), "example number 0 has a text"),
        (changed(1, 33), "example number 0 should have 33"),  # odd
        (changed(1, 32), "example number 0 has a text"),  # shorter by one token
        (changed(1, 36), "values too many"),
        (changed(3, 3), "a label (3)"),
        (changed(4, 2), "values too many"),
        (changed(4, 4), "example number 0 has a text"),
        (changed(5, 0), "example number 0 has a text"),
        (changed(13, 60000), "example number 0 has a text"),
    ],
)
def test_invalid_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_examples(path)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_examples(tmp_path / "none.bin")


@pytest.mark.parametrize(
    "examples, reason",
    [
        ([], "1 to 65535 examples, got 0"),
        ([SMALL[0]] * 65536, "got 65536"),
        ([Example(0, [], [[1], [2]])], "empty"),
        ([SMALL[0], Example(0, [1], [[1], []])], "number 1 has an empty"),
        ([Example(2, [1], [[1], [2]])], "label 2 and 2 endings"),
        ([Example(-1, [1], [[1], [2]])], "label -1"),
        ([Example(0, [1], [[65535], [2]])], "65535"),
        ([Example(0, [-1], [[1], [2]])], "-1 to -1"),
        ([Example(0, [1] * 32759, [[1], [2]])], "65538"),  # 2 * (5 + 1 + 32759 + 2 + 2)
    ],
)
def test_invalid_examples_are_not_written(tmp_path, examples, reason):
    with pytest.raises(UserError, match=reason):
        write_examples(tmp_path / "a.bin", examples)
    assert not (tmp_path / "a.bin").exists()


def test_the_longest_example_reads_back(tmp_path):
    example = Example(1, [1] * 32757, [[1], [2]])  # 65,534 bytes
    write_examples(tmp_path / "a.bin", [example])
    assert as_lists(read_examples(tmp_path / "a.bin")) == as_lists([example])


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [("pipe", "it is a pipe"), ("", "it is a directory"), ("a\0b", "null"), ("n" * 300, "File name too long")]:
        with pytest.raises(UserError, match=reason) as raised:
            read_examples(tmp_path / path)
        assert "\n" not in str(raised.value)
        with pytest.raises(OSError, match=reason):
            write_examples(tmp_path / path, SMALL)


# --- the share of a process ---


def test_an_example_of_exactly_the_sequence_length(small_file):
    """Its last token is only a target, so 2 + 3 tokens need 4 positions."""
    assert len(read_share(small_file, T=4)) == 2
    with pytest.raises(UserError, match=r"sequence length \(-t\) of 3, example number 0 needs 4 tokens"):
        read_share(small_file, T=3)


def test_every_rank_refuses_an_example_that_is_too_long(small_file):
    for rank in range(2):  # the long example is rank 0's
        with pytest.raises(UserError, match="example number 0"):
            read_share(small_file, T=3, rank=rank, ranks=2)


def test_vocabulary(small_file):
    read_share(small_file, T=8, vocab_size=65535)
    with pytest.raises(UserError, match="vocabulary of 65534, example number 0 has 65534"):
        read_share(small_file, T=8, vocab_size=65534)


# --- the score ---


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """(path, examples): 23 questions, a prime, so that neither ranks nor rows divide it."""
    path = tmp_path_factory.mktemp("evaluation") / "questions.bin"
    examples = random_examples(23)
    write_examples(path, examples)
    return path, examples


def test_the_questions_discriminate(questions):
    """The oracle's score is neither zero, nor perfect, nor the one by the sum of the losses."""
    _, examples = questions
    by_sum = 0
    for label, context, endings in examples:
        sums = [sum(float(fake_loss(context + e[:i], token)) for i, token in enumerate(e)) for e in endings]
        by_sum += sums.index(min(sums)) == label
    assert 0 < brute_force(examples) < 23 and by_sum != brute_force(examples)


@pytest.mark.parametrize("tokens", [1, 24, 36, 96])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_score_matches_brute_force(questions, tokens, ranks):
    path, examples = questions
    scores = [evaluate(path, tokens, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert sum(score.examples for score in scores) == 23
    assert sum(score.correct for score in scores) == brute_force(examples)
    assert max(score.examples for score in scores) - min(score.examples for score in scores) <= 1


def test_each_rank_has_its_own_examples(questions):
    path, examples = questions
    assert [evaluate(path, 48, rank=rank, ranks=3).correct for rank in range(3)] == [
        brute_force(examples[0:7]),
        brute_force(examples[7:15]),
        brute_force(examples[15:23]),
    ]


def test_more_ranks_than_examples(small_file):
    scores = [evaluate(small_file, 16, T=4, rank=rank, ranks=5) for rank in range(5)]
    assert sorted(score.examples for score in scores) == [0, 0, 0, 1, 1]
    assert sum(score.correct for score in scores) == brute_force(SMALL)


def test_any_number_of_endings(tmp_path):
    examples = random_examples(11, endings=(2, 5, 3))
    write_examples(tmp_path / "a.bin", examples)
    assert [evaluate(tmp_path / "a.bin", tokens).correct for tokens in (12, 48, 108)] == [brute_force(examples)] * 3


def test_losses_of_other_tokens_are_ignored(questions):
    path, examples = questions
    answers = Answers(examples)
    for batch in answers.batches(60, 12):
        losses = np.full(batch.inputs.shape, np.nan, np.float32)
        for place, row in enumerate(batch.rows):
            context, ending = answers.rows[row]
            of_the_ending = slice(len(context) - 1, len(context) + len(ending) - 1)
            losses[place, of_the_ending] = fake_losses(batch.inputs[[place]], batch.targets[[place]])[0, of_the_ending]
        answers.add(batch.rows, losses)
    assert answers.score().correct == brute_force(examples)


def test_equal_losses_choose_the_first(tmp_path):
    examples = [Example(label, [1], [[2], [3, 4], [5]]) for label in (0, 1, 2, 0)]
    write_examples(tmp_path / "a.bin", examples)
    score = evaluate(tmp_path / "a.bin", 24, losses=lambda inputs, targets: np.ones(inputs.shape, np.float32))
    assert score == Score(2, 4)


@pytest.mark.parametrize(
    "correct, examples, low, high",
    [
        # Wilson's interval solves (p - x)^2 = z^2 x (1 - x) / n for x; by hand with z = 1.959964:
        (0, 10, 0.0, 0.277533),  # z^2 / (n + z^2)
        (10, 10, 0.722467, 1.0),
        (5, 10, 0.236593, 0.763407),
        (2951, 10042, 0.285036, 0.302853),
    ],
)
def test_interval(correct, examples, low, high):
    score = Score(correct, examples)
    assert score.accuracy == correct / examples
    assert score.interval == pytest.approx((low, high), abs=2e-6)  # the values above have six decimals
    for x in score.interval:
        assert (score.accuracy - x) ** 2 == pytest.approx(1.959964**2 * x * (1 - x) / examples, abs=1e-12)


def test_no_examples_no_accuracy():
    assert math.isnan(Score(0, 0).accuracy) and all(map(math.isnan, Score(0, 0).interval))
