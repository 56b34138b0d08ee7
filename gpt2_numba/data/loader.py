"""The data loader: shards of tokens in, batches of inputs and targets out, in the order of llm.c.

A shard is cut into samples of ranks * B * T tokens. One micro-step of all ranks together uses one sample: rank r reads the B * T tokens of its
own part, and one more, because the target of a token is the token after it:

    shard    | sample 0            | sample 1            | ...          a rest too short for a sample is not used
    sample   | rank 0   | rank 1   |                                    B * T tokens each
    inputs   = tokens[start     : start + B*T    ]  as (B, T)
    targets  = tokens[start + 1 : start + B*T + 1]  as (B, T)

Without shuffling, samples and shards come in their own order. With it, each epoch permutes the shards, and each shard that is opened permutes its
samples. The generator is a Mersenne Twister seeded with seed + rank, and its draws are those of llm.c, so the same settings give
the same batches there and here.

`state` and `load_state` read and set the position of a loader, for checkpoints: loader_state.py.
"""

import numpy as np

from gpt2_numba.data.loader_state import LoaderState, check_place, check_samples, same_fraction, state_of_rank
from gpt2_numba.data.token_shards import read_shard
from gpt2_numba.errors import UserError


class DataLoader:
    """Batches without end: after the last sample of the last shard a new epoch begins.

    shards      list of paths of token shards, or of 1-D uint16 arrays of tokens
    B, T        rows of a batch, and tokens of a row
    rank, ranks this process, and how many share the data
    shuffle     permute shards and samples; validation never does
    seed        of the shuffling
    vocab_size  if given, every token must be below it: checked over a whole shard when it is first opened
    name        what messages call shards that are given as arrays

    Afterwards `num_tokens` says how many tokens all shards have, and `batches_per_epoch` how many calls of `next_batch` make an epoch.
    Raises UserError if a file is not a shard, is too short for one batch, or holds a token outside the vocabulary.
    """

    # Nine parameters: each is a setting of its own, all but the first three have defaults, and every call names them.
    def __init__(self, shards, B, T, rank=0, ranks=1, shuffle=False, seed=42, vocab_size=None, name="built-in corpus"):
        self.shards = list(shards)
        self.B, self.T = B, T
        self.rank, self.ranks = rank, ranks
        self.shuffle = shuffle
        self.seed = seed + rank
        self.vocab_size = vocab_size
        self.name = name
        self.sample_tokens = ranks * B * T
        # RandomState seeds as mt19937ar and llm.c do; NumPy's newer generators seed otherwise.
        self.generator = np.random.RandomState(self.seed)
        self.shard_order = np.arange(len(self.shards), dtype=np.int32)
        self.checked_shards = set()  # whose tokens are known to be in the vocabulary

        # All shards are looked at now: a bad file should stop a run at its start, not in its second hour.
        lengths = [self._checked_length(shard) for shard in range(len(self.shards))]
        self.num_tokens = sum(lengths)
        self.batches_per_epoch = sum(self._samples_in(length) for length in lengths)
        self.reset()

    def reset(self):
        """Begin an epoch. Without shuffling this repeats the same batches; with it, new permutations are drawn."""
        self.current_shard = 0
        if self.shuffle:
            permute(self.shard_order, self.generator)  # starts from the last epoch's order, as in llm.c
        self._open_current_shard()

    def next_batch(self):
        """Return (inputs, targets), new C-contiguous int32 arrays (B, T): a target is the token after its input."""
        if self.current_sample == len(self.sample_order):
            self._advance_shard()
        sample = int(self.sample_order[self.current_sample])
        self.current_sample += 1
        start = sample * self.sample_tokens + self.rank * self.B * self.T
        return self._rows(start), self._rows(start + 1)

    def skip(self, count=1):
        """Pass over the next `count` batches without reading them."""
        while count > 0:
            if self.current_sample == len(self.sample_order):
                self._advance_shard()
            passed = min(count, len(self.sample_order) - self.current_sample)
            self.current_sample += passed
            count -= passed

    def state(self):
        """The LoaderState of this moment: a later `next_batch` does not change it."""
        if not self.shuffle:
            return LoaderState(False, self.current_shard, self.current_sample)
        _, words, position, *_ = self.generator.get_state()
        return LoaderState(
            shuffle=True, current_shard=self.current_shard, current_sample=self.current_sample,
            shard_order=self.shard_order.copy(),  # permuted in place by the next epoch
            sample_order=self.sample_order,  # each shard makes a new one, so it need not be copied for every batch
            seed=self.seed, generator_words=words, generator_position=position,
        )  # fmt: skip

    def load_state(self, state):
        """Continue from a LoaderState: the next batches are those that followed it, in later epochs too.

        Raises UserError, and leaves this loader as it was, if the state is another loader's: other shards, batch size, sequence length,
        number of ranks, or shuffling.
        """
        check_place(state, self)
        check_samples(state, self)
        self._load_place(state)
        if self.shuffle:
            self.sample_order = np.array(state.sample_order, dtype=np.int32)
        self.current_sample = state.current_sample

    def load_states(self, states):
        """Continue where a run of len(states) ranks stopped: `states` are the LoaderStates of its ranks, in their order.

        As many ranks with the same batch continue exactly, others approximately: see loader_state.py. Raises UserError, and leaves this loader
        as it was, if the states belong to other shards or another kind of order.
        """
        state = state_of_rank(states, self.rank, own=self.state())
        check_place(state, self)
        same_batch = not self.shuffle or len(state.sample_order) == self.samples_in_shard(state.shard)
        if len(states) == self.ranks and same_batch:
            self.load_state(state)
            return
        self._load_place(state)
        if self.shuffle:
            permute(self.sample_order, self.generator)
        self.current_sample = same_fraction(state, len(self.sample_order), len(states), self.ranks)

    def samples_in_shard(self, shard):
        """How many samples this loader cuts shard number `shard` into."""
        return self._samples_in(len(self._read(shard)))

    def name_of(self, shard):
        """What messages call shard number `shard`."""
        source = self.shards[shard]
        return self.name if isinstance(source, np.ndarray) else str(source)

    def _load_place(self, state):
        """Go to the state's shard, its samples in their own order; the generator as it was then."""
        self.current_shard = state.current_shard
        if self.shuffle:
            self.shard_order = np.array(state.shard_order, dtype=np.int32)
            self.seed = state.seed
            self.generator.set_state(("MT19937", state.generator_words, state.generator_position))
        self._open_shard()

    def _rows(self, start):
        """B*T tokens of the open shard from `start` on, copied out of the file: int32 (B, T)."""
        return np.array(self.tokens[start : start + self.B * self.T], dtype=np.int32).reshape(self.B, self.T)

    def _advance_shard(self):
        if self.current_shard == len(self.shards) - 1:
            self.reset()
        else:
            self.current_shard += 1
            self._open_current_shard()

    def _open_current_shard(self):
        """Open the shard and begin at its first sample."""
        self._open_shard()
        if self.shuffle:
            permute(self.sample_order, self.generator)
        self.current_sample = 0

    def _open_shard(self):
        """Open the shard, its samples in their own order."""
        shard = self.shard_order[self.current_shard]
        self.tokens = self._read(shard)
        self._check_vocabulary(shard)
        self.sample_order = np.arange(self._samples_in(len(self.tokens)), dtype=np.int32)

    def _read(self, shard):
        """The tokens of shard number `shard`, uint16 (tokens,)."""
        source = self.shards[shard]
        return source if isinstance(source, np.ndarray) else read_shard(source)

    def _samples_in(self, length):
        """Whole samples in a shard of `length` tokens; the last target needs one token more."""
        return (length - 1) // self.sample_tokens

    def _checked_length(self, shard):
        length = len(self._read(shard))
        if self._samples_in(length) < 1:
            raise UserError(
                f"{self.name_of(shard)}: a shard must hold ranks*B*T + 1 = {self.ranks}*{self.B}*{self.T} + 1 = "
                f"{self.sample_tokens + 1} tokens, it has {length}. Use a smaller batch (-b) or sequence length (-t), "
                f"or larger shards"
            )
        return length

    def _check_vocabulary(self, shard):
        """Raise UserError if a token of the opened shard is outside the vocabulary: the model would read beyond wte."""
        if self.vocab_size is None or shard in self.checked_shards:
            return
        if self.tokens.max() >= self.vocab_size:
            position = int(np.argmax(self.tokens >= self.vocab_size))  # the first one
            raise UserError(
                f"{self.name_of(shard)}: a token must be below the model's vocabulary of {self.vocab_size}, token "
                f"number {position} is {self.tokens[position]}. Use a model with the tokenizer's vocabulary, or "
                f"tokenize the text again"
            )
        self.checked_shards.add(shard)


def permute(items, generator):
    """Shuffle the 1-D array `items` in place: Fisher-Yates from the end, one raw 32-bit draw per swap.

    `u32 % (i + 1)` favours small numbers by less than (i + 1) / 2**32. NumPy's own `shuffle` avoids that by drawing
    again, and so gives another order than llm.c's.
    """
    draws = generator.randint(0, 2**32, size=max(len(items) - 1, 0), dtype=np.uint32)  # the full range: the raw stream
    for i, draw in zip(range(len(items) - 1, 0, -1), draws.tolist()):
        j = draw % (i + 1)
        items[i], items[j] = items[j], items[i]
