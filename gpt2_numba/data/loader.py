"""The data loader: shards of tokens in, batches of inputs and targets out, in the order of llm.c.

A shard is cut into samples of ranks * B * T tokens. One step of all ranks together uses one sample: rank r reads the
B * T tokens at its own place in it, and one more, because the target of a token is the token after it:

    shard    | sample 0            | sample 1            | ...          a rest too short for a sample is not used
    sample   | rank 0   | rank 1   |                                    B * T tokens each
    inputs   = tokens[start     : start + B*T    ]  as (B, T)
    targets  = tokens[start + 1 : start + B*T + 1]  as (B, T)

Without shuffling, samples and shards come one after the other. With it, each epoch permutes the shards, and each shard
that is opened permutes its samples. The generator is a Mersenne Twister seeded with seed + rank, and its draws are
those of llm.c, so the same settings give the same batches there and here.

`state` and `load_state` take a loader's place out and in, for checkpoints: the batches that follow are the same.
`load_states` goes on from the places of another number of ranks, or of another batch.
"""

from dataclasses import dataclass, replace

import numpy as np

from gpt2_numba.data.token_shards import read_shard
from gpt2_numba.errors import UserError


@dataclass(frozen=True, eq=False)  # eq would compare arrays as if they were numbers
class LoaderState:
    """Where a loader stands: what a checkpoint keeps of it. Without shuffling only the first three fields say anything.

    shuffle             whether the loader permutes
    current_shard       place in the shard order, from 0
    current_sample      place in the sample order of the next sample to be used, from 0; the number of samples after the
                        shard's last
    shard_order         int32 (shards,), the shards in this epoch's order; None without shuffling
    sample_order        int32 (samples in the current shard,); None without shuffling
    seed                of the generator, for the record: the words below are its state
    generator_words     uint32 (624,), the Mersenne Twister's state; None without shuffling
    generator_position  words of it that are used up, 0 to 624, as np.random.RandomState counts (624 when just seeded)
    """

    shuffle: bool
    current_shard: int
    current_sample: int
    shard_order: np.ndarray | None = None
    sample_order: np.ndarray | None = None
    seed: int = 0
    generator_words: np.ndarray | None = None
    generator_position: int = 0


class DataLoader:
    """Batches without end: after the last sample of the last shard a new epoch begins.

    shards      list of paths of token shards, or of 1-D uint16 arrays of tokens
    B, T        rows of a batch, and tokens of a row
    rank, ranks this process, and how many share the data
    shuffle     permute shards and samples; validation never does
    seed        of the shuffling
    vocab_size  if given, every token must be below it: checked over a whole shard when it is first opened
    name        what messages call shards that are given as arrays

    After it is made: `num_tokens` in all shards, and `batches_per_epoch`, the calls of `next_batch` in one epoch.
    Raises UserError if a shard is no shard, is too short for one batch, or holds a token outside the vocabulary.
    """

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
        """Begin an epoch. Without shuffling this repeats the same batches; with it, the permutations go on."""
        self.current_shard = 0
        if self.shuffle:
            permute(self.shard_order, self.generator)  # carried on from the last epoch's order, as in llm.c
        self._open_current_shard()

    def next_batch(self):
        """Return (inputs, targets), new C-contiguous int32 arrays (B, T): a target is the token after its input."""
        if self.current_sample == len(self.sample_order):
            self._advance_shard()
        sample = int(self.sample_order[self.current_sample])
        self.current_sample += 1
        start = sample * self.sample_tokens + self.rank * self.B * self.T
        return self._rows(start), self._rows(start + 1)

    def state(self):
        """Return the LoaderState of now, which `next_batch` does not alter. `load_state` goes on from it."""
        if not self.shuffle:
            return LoaderState(False, self.current_shard, self.current_sample)
        _, words, position, *_ = self.generator.get_state()
        return LoaderState(
            True,
            self.current_shard,
            self.current_sample,
            shard_order=self.shard_order.copy(),  # permuted in place by the next epoch
            sample_order=self.sample_order,  # each shard makes a new one, so it need not be copied for every batch
            seed=self.seed,
            generator_words=words,
            generator_position=position,
        )

    def skip(self, count=1):
        """Pass over the next `count` batches without reading them."""
        while count > 0:
            if self.current_sample == len(self.sample_order):
                self._advance_shard()
            passed = min(count, len(self.sample_order) - self.current_sample)
            self.current_sample += passed
            count -= passed

    def load_state(self, state):
        """Go on from `state` (LoaderState): the next batches are those that followed it, in later epochs too.

        Raises UserError, and leaves this loader as it was, if the state is another loader's: other shards, batch size,
        sequence length, number of ranks, or shuffling.
        """
        self._check_place(state)
        self._check_samples(state)
        self._load_place(state)
        if self.shuffle:
            self.sample_order = np.array(state.sample_order, dtype=np.int32)
        self.current_sample = state.current_sample

    def load_states(self, states):
        """Go on where a run of len(states) ranks was: `states` are the LoaderStates of its ranks, in their order.

        With as many ranks and the same batch this is load_state, of this rank's own. Otherwise the shard in hand has
        another number of samples, and the saved order of them means nothing. It gets a new one, and the loader goes on in
        it after the same fraction of the shard, rounded up to whole samples. Until that shard ends some tokens come a
        second time, and as many not at all: the ranks have drawn an order each, as in llm.c, so what they have used so
        far are places all over the shard, which samples of another size cannot tell apart. Later shards are read whole.

        A rank that there was before goes on with its order of shards and its generator, another with those that it has
        now: its own seed's, if it has just been made. At any moment all ranks read different tokens, since each reads at
        its own place in the samples. A loader that does not shuffle takes the batch to be the same.

        Raises UserError, and leaves this loader as it was, if the states are of other shards or another kind of order.
        """
        state = states[0]
        if self.rank < len(states):
            state = states[self.rank]
        elif self.shuffle:
            own = self.state()
            state = replace(
                state,
                shard_order=own.shard_order,
                seed=own.seed,
                generator_words=own.generator_words,
                generator_position=own.generator_position,
            )
        self._check_place(state)
        same_batch = not self.shuffle or len(state.sample_order) == self._samples_of_place(state)
        if len(states) == self.ranks and same_batch:
            self.load_state(state)
            return
        self._load_place(state)
        samples = len(self.sample_order)
        if self.shuffle:
            permute(self.sample_order, self.generator)
            self.current_sample = -(-state.current_sample * samples // len(state.sample_order))
        else:  # the state does not say how many samples there were, but they were smaller or larger as the ranks are more or fewer
            self.current_sample = min(-(-state.current_sample * len(states) // self.ranks), samples)

    def _load_place(self, state):
        """Go to the state's shard, its samples in their own order; the generator as it was then."""
        self.current_shard = state.current_shard
        if self.shuffle:
            self.shard_order = np.array(state.shard_order, dtype=np.int32)
            self.seed = state.seed
            self.generator.set_state(("MT19937", state.generator_words, state.generator_position))
        self._open_shard()

    def _check_place(self, state):
        """Raise UserError if the state is not of these shards, or of another kind of order."""
        if state.shuffle != self.shuffle:
            raise UserError(
                f"{self._name_of(0)}: the saved place in the data must be of the same order, it is of a "
                f"{'shuffling' if state.shuffle else 'not shuffling'} loader and this one does "
                f"{'' if self.shuffle else 'not '}shuffle. Resume with the settings of the run that was saved"
            )
        if not 0 <= state.current_shard < len(self.shards):
            raise self._foreign_state(f"it is in shard number {state.current_shard}, and there are {len(self.shards)}")
        if not self.shuffle:
            return
        if not _is_permutation(state.shard_order, len(self.shards)):
            raise self._foreign_state(f"its order of {len(state.shard_order)} shards is not one of the {len(self.shards)} there are")
        if len(state.generator_words) != 624 or not 0 <= state.generator_position <= 624:
            raise self._foreign_state(
                f"its generator has {len(state.generator_words)} words and position "
                f"{state.generator_position}, not 624 words and at most 624"
            )
        if not 0 <= state.current_sample <= len(state.sample_order) or len(state.sample_order) == 0:
            raise self._foreign_state(f"it is at sample {state.current_sample} of {len(state.sample_order)}")

    def _check_samples(self, state):
        """Raise UserError if the samples of the state's shard are not the same here; _check_place comes before."""
        samples, name = self._samples_of_place(state), self._name_of(self._shard_of(state))
        if self.shuffle and not _is_permutation(state.sample_order, samples):
            raise self._foreign_state(f"its order of {len(state.sample_order)} samples is not one of the {samples} in shard {name}")
        if not 0 <= state.current_sample <= samples:
            raise self._foreign_state(f"it is at sample {state.current_sample}, and shard {name} has {samples}")

    def _shard_of(self, state):
        """Number of the shard that the state is in."""
        return state.shard_order[state.current_shard] if self.shuffle else state.current_shard

    def _samples_of_place(self, state):
        """Samples in the state's shard, as this loader cuts it."""
        return self._samples_in(len(self._read(self._shard_of(state))))

    def _foreign_state(self, reason):
        return UserError(
            f"{self._name_of(0)}: the saved place in the data must fit the shards and the batch: {reason}. Resume with the "
            f"settings of the run that was saved, above all its shards (-i)"
        )

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
                f"{self._name_of(shard)}: a shard must hold ranks*B*T + 1 = {self.ranks}*{self.B}*{self.T} + 1 = "
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
                f"{self._name_of(shard)}: a token must be below the model's vocabulary of {self.vocab_size}, token "
                f"number {position} is {self.tokens[position]}. Use a model with the tokenizer's vocabulary, or "
                f"tokenize the text again"
            )
        self.checked_shards.add(shard)

    def _name_of(self, shard):
        source = self.shards[shard]
        return self.name if isinstance(source, np.ndarray) else str(source)


def permute(items, generator):
    """Shuffle the 1-D array `items` in place: Fisher-Yates from the end, one raw 32-bit draw per swap.

    `u32 % (i + 1)` favours small numbers by less than (i + 1) / 2**32. NumPy's own `shuffle` avoids that by drawing
    again, and so gives another order than llm.c's.
    """
    draws = generator.randint(0, 2**32, size=max(len(items) - 1, 0), dtype=np.uint32)  # the full range: the raw stream
    for i, draw in zip(range(len(items) - 1, 0, -1), draws.tolist()):
        j = draw % (i + 1)
        items[i], items[j] = items[j], items[i]


def _is_permutation(items, count):
    """True if the array `items` holds 0 .. count - 1, each once."""
    return np.array_equal(np.sort(items), np.arange(count))
