"""The losses of all endings of some questions, in any order; and which ending a model chooses, by three rules.

    by token       the lowest mean loss per token: llm.c's, and what the trainer logs
    by sum         the lowest loss, that is, the most probable text: a longer ending is less probable. Evaluation harnesses' acc
    by character   the lowest loss per character of the ending, without its leading blank: acc_norm of EleutherAI's harness, which does
                   not depend on the tokenizer

They differ only where endings differ in length. An ending that is a single letter, as MMLU is often asked, is chosen alike by all three.
"""

import numpy as np

from gpt2_numba.data.evaluation.multiple_choice import Score
from gpt2_numba.data.evaluation.rows_by_length import batches_by_length


class Answers:
    """Losses of the endings of a list of Examples (multiple_choice.py): a row, context and ending, for each ending, in their order.

    for batch, losses in losses_of_batches(model, answers.batches(tokens, T)):
        answers.add(batch.rows, losses)
    answers.score()
    """

    def __init__(self, examples):
        self.examples = examples
        self.rows = [(example.context, ending) for example in examples for ending in example.endings]
        self.lengths = np.array([len(context) + len(ending) - 1 for context, ending in self.rows], np.int64)
        self.nats = np.zeros(len(self.rows))  # the loss of each ending, 0 until it is added
        self._given = np.zeros(len(self.rows), bool)

    def tokens(self, row):
        """The tokens of a row."""
        return np.concatenate(self.rows[row])

    def batches(self, tokens, longest):
        """The Batches of all rows; arguments as for batches_by_length."""
        return batches_by_length(self.lengths, self.tokens, tokens, longest)

    def add(self, rows, losses):
        """Take the losses (b, t) of a Batch with the numbers `rows`, nats."""
        for row, row_losses in zip(rows.tolist(), losses):
            context, ending = self.rows[row]
            start = len(context) - 1  # the context's last token predicts the ending's first
            self.nats[row] = row_losses[start : start + len(ending)].sum(dtype=np.float64)
            self._given[row] = True

    @property
    def complete(self):
        """Whether the losses of all rows have been added."""
        return bool(self._given.all())

    def choices(self, sizes=None):
        """The index of the ending chosen for each example, a list. Of equal ones the first.

        sizes: (rows,) numbers, by which the loss of each row is divided; None: its tokens, so that means are compared.
        Raises RuntimeError if the losses of a row have not been added.
        """
        if not self.complete:
            raise RuntimeError(f"choices: the losses of all {len(self.rows)} rows must have been added, {self._given.sum()} were")
        values = self.nats / ([len(ending) for _, ending in self.rows] if sizes is None else sizes)
        starts = np.cumsum([0, *(len(example.endings) for example in self.examples)]).tolist()
        return [int(np.argmin(values[start:stop])) for start, stop in zip(starts, starts[1:])]

    def score(self, sizes=None):
        """The Score of `choices`."""
        choices = self.choices(sizes)
        return Score(sum(choice == example.label for choice, example in zip(choices, self.examples)), len(self.examples))

    def characters(self, encoding):
        """Characters of each row's ending without its leading blank, at least 1: (rows,) integers, `sizes` for the rule by character."""
        texts = [encoding.decode(ending.tolist()) for _, ending in self.rows]
        return np.array([max(1, len(text.removeprefix(" "))) for text in texts])
