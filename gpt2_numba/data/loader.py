"""The data loader: shards of tokens in, batches of inputs and targets out, in llm.c's order.

A shard is a file of tokens, cut into samples of ranks * B * T tokens; a rank is the number of a process. One micro-step of all ranks uses
one sample: rank r reads its own B * T tokens, and one more, because the target of a token is the next token:

    shard    | sample 0            | sample 1            | ...          a remainder too short for a sample is not used
    sample   | rank 0   | rank 1   |                                    B * T tokens each
    inputs   = tokens[start     : start + B*T    ]  as (B, T)
    targets  = tokens[start + 1 : start + B*T + 1]  as (B, T)

Without shuffling, shards and samples come in order. With shuffling, each epoch permutes the shards, and opening a shard permutes its
samples. The generator is a Mersenne Twister seeded with seed + rank and draws exactly as llm.c does, so the same settings give the same
batches in both.

`state` and `load_state` get and set the loader's position, for checkpoints: loader_state.py.
"""

import numpy as np

from gpt2_numba.data.loader_state import LoaderState, check_position, check_samples, rank_state, same_fraction
from gpt2_numba.data.shard_check import ShardCheck
from gpt2_numba.data.token_shards import as_shard
from gpt2_numba.errors import UserError


class DataLoader:
    """An endless sequence of batches: a new epoch begins after the last sample of the last shard.

    shards      list of paths of token shards, of 1-D uint16 arrays of tokens, or of ArrivingShards
    B, T        rows of a batch, tokens of a row
    rank, ranks index of this process, and number of processes that share the data
    shuffle     permute shards and samples; validation never does
    seed        for shuffling
    vocab_size  if given, every token must be below it
    name        name in messages of shards that are arrays

    Attributes: `num_tokens`, the tokens of all shards; `batches_per_epoch`, the calls of `next_batch` per epoch; `problem`, the UserError
    about a shard found wrong while the first steps run (see ShardCheck), or None. Raises UserError if a file is not a shard, is too short for
    one batch, or holds a token outside the vocabulary.
    """

    # Nine parameters: each is a separate setting, all but the first three have defaults, and every call passes them by keyword.
    def __init__(self, shards, B, T, rank=0, ranks=1, shuffle=False, seed=42, vocab_size=None, name="built-in corpus"):
        self.shards = [as_shard(shard, name) for shard in shards]
        self.B, self.T = B, T
        self.rank, self.ranks = rank, ranks
        self.shuffle = shuffle
        self.seed = seed + rank
        self.vocab_size = vocab_size
        self.sample_tokens = ranks * B * T
        # RandomState seeds like mt19937ar and llm.c; NumPy's newer generators seed differently.
        self.generator = np.random.RandomState(self.seed)
        self.shard_order = np.arange(len(self.shards), dtype=np.int32)
        self.num_tokens = sum(len(shard) for shard in self.shards)
        self.batches_per_epoch = sum(self._checked_samples(shard) for shard in range(len(self.shards)))
        self._check = ShardCheck(self.shards, vocab_size, rank, ranks)
        self.tokens = self.shards[0]  # the open shard
        self.reset()

    @property
    def problem(self):
        return self._check.problem

    def reset(self):
        """Begin an epoch. Without shuffling the batches repeat; with shuffling, new permutations are drawn."""
        self.current_shard = 0
        if self.shuffle:
            permute(self.shard_order, self.generator)  # permutes the last epoch's order, as llm.c does
        self._open_current_shard()

    def next_batch(self):
        """Return (inputs, targets), new C-contiguous int32 arrays (B, T). Each target is the token after its input.

        Raises UserError if the batch cannot be read (see Shard): only `load_state` may follow.
        """
        if self.current_sample == len(self.sample_order):
            self._advance_shard()
        sample = int(self.sample_order[self.current_sample])
        start = sample * self.sample_tokens + self.rank * self.B * self.T
        tokens = self.tokens[start : start + self.B * self.T + 1]
        self.current_sample += 1
        return self._rows(tokens[:-1]), self._rows(tokens[1:])

    def skip(self, count=1):
        """Skip the next `count` batches without reading them."""
        while count > 0:
            if self.current_sample == len(self.sample_order):
                self._advance_shard()
            skipped = min(count, len(self.sample_order) - self.current_sample)
            self.current_sample += skipped
            count -= skipped

    def state(self):
        """The current LoaderState, a snapshot that a later `next_batch` does not change."""
        if not self.shuffle:
            return LoaderState(False, self.current_shard, self.current_sample)
        _, words, position, *_ = self.generator.get_state()
        return LoaderState(
            shuffle=True, current_shard=self.current_shard, current_sample=self.current_sample,
            shard_order=self.shard_order.copy(),  # permuted in place by the next epoch
            sample_order=self.sample_order,  # opening a shard creates a new array, so this one needs no copy
            seed=self.seed, generator_words=words, generator_position=position,
        )  # fmt: skip

    def load_state(self, state):
        """Continue from a LoaderState: the next batches are those that followed it, in later epochs too.

        Raises UserError, and leaves this loader unchanged, if the state is from a loader with other shards, batch size, sequence length,
        number of ranks, or shuffling.
        """
        check_position(state, self)
        check_samples(state, self)
        self._load_position(state)
        if self.shuffle:
            self.sample_order = np.array(state.sample_order, dtype=np.int32)
        self.current_sample = state.current_sample

    def load_states(self, states):
        """Continue where a run of len(states) ranks stopped. states: the LoaderStates of its ranks, in order of rank.

        The same number of ranks with the same batch continues exactly, any other approximately: see loader_state.py. Raises UserError, and
        leaves this loader unchanged, if the states belong to other shards or another kind of order.
        """
        state = rank_state(states, self.rank, own=self.state())
        check_position(state, self)
        same_batch = not self.shuffle or len(state.sample_order) == self.samples_in_shard(state.shard)
        if len(states) == self.ranks and same_batch:
            self.load_state(state)
            return
        self._load_position(state)
        if self.shuffle:
            permute(self.sample_order, self.generator)
        self.current_sample = same_fraction(state, len(self.sample_order), len(states), self.ranks)

    def samples_in_shard(self, shard):
        """The number of samples that this loader cuts shard number `shard` into."""
        return (len(self.shards[shard]) - 1) // self.sample_tokens  # the last target needs one more token

    def shard_name(self, shard):
        """The name of shard number `shard` in messages."""
        return self.shards[shard].name

    def _load_position(self, state):
        """Open the state's shard, with its samples in order, and restore the generator."""
        self.current_shard = state.current_shard
        if self.shuffle:
            self.shard_order = np.array(state.shard_order, dtype=np.int32)
            self.seed = state.seed
            self.generator.set_state(("MT19937", state.generator_words, state.generator_position))
        self._open_shard()

    def _rows(self, tokens):
        """A copy of B * T tokens as int32 (B, T)."""
        return np.array(tokens, dtype=np.int32).reshape(self.B, self.T)

    def _advance_shard(self):
        if self.current_shard == len(self.shards) - 1:
            self.reset()
        else:
            self.current_shard += 1
            self._open_current_shard()

    def _open_current_shard(self):
        """Open the current shard and begin at its first sample."""
        self._open_shard()
        if self.shuffle:
            permute(self.sample_order, self.generator)
        self.current_sample = 0

    def _open_shard(self):
        """Open the current shard, with its samples in order."""
        shard = self.shard_order[self.current_shard]
        self.tokens.close()
        self.tokens = self.shards[shard]
        self.tokens.check(self.vocab_size)
        self.sample_order = np.arange(self.samples_in_shard(shard), dtype=np.int32)

    def _checked_samples(self, shard):
        samples, length = self.samples_in_shard(shard), len(self.shards[shard])
        if samples < 1:
            raise UserError(
                f"{self.shard_name(shard)}: a shard must hold ranks*B*T + 1 = {self.ranks}*{self.B}*{self.T} + 1 = "
                f"{self.sample_tokens + 1} tokens, this one has {length}. Use a smaller batch (-b) or sequence length (-t), "
                f"or larger shards"
            )
        return samples


def permute(items, generator):
    """Shuffle the 1-D array `items` in place: Fisher-Yates from the end, one raw 32-bit draw per swap.

    `u32 % (i + 1)` favours small indices by less than (i + 1) / 2**32. NumPy's own `shuffle` avoids this by drawing again, so its order
    differs from llm.c's.
    """
    draws = generator.randint(0, 2**32, size=max(len(items) - 1, 0), dtype=np.uint32)  # the full range: the raw stream
    for i, draw in zip(range(len(items) - 1, 0, -1), draws.tolist()):
        j = draw % (i + 1)
        items[i], items[j] = items[j], items[i]
