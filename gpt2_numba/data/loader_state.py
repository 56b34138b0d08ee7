"""The position of a DataLoader in its data, as checkpoints store it; and whether a stored position fits a loader.

A checkpoint written by N ranks holds N states. As many ranks with the same batch continue exactly. Otherwise the current shard is cut into another
number of samples, and the stored order of samples means nothing: the shard gets a new order, and the loader continues after the same fraction of
it, rounded up to whole samples. Until that shard ends, some tokens are read a second time and as many not at all, since every rank had drawn
an order of its own (as in llm.c), so that the samples already used are scattered over the whole shard. Later shards are read completely.

A rank that existed before continues with its own order of shards and its own generator; a new one with those of its own seed. At any moment all
ranks read different tokens, because each reads its own part of a sample. A loader that does not shuffle takes the batch to be the same.
"""

from dataclasses import dataclass, replace

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.integers import ceil_div

GENERATOR_WORDS = 624  # the state of a Mersenne Twister


@dataclass(frozen=True, eq=False)  # eq would compare arrays as if they were numbers
class LoaderState:
    """The position of a loader. Without shuffling only the first three fields mean anything.

    shuffle             whether the loader permutes
    current_shard       index into the shard order, from 0
    current_sample      index into the sample order of the next sample to be used, from 0; the number of samples after the shard's last
    shard_order         int32 (shards,), the shards in this epoch's order; None without shuffling
    sample_order        int32 (samples in the current shard,); None without shuffling
    seed                of the generator, for the record: the words below are its state
    generator_words     uint32 (624,), the Mersenne Twister's state; None without shuffling
    generator_position  how many of its words are used up, 0 to 624, as np.random.RandomState counts (624 when just seeded)
    """

    shuffle: bool
    current_shard: int
    current_sample: int
    shard_order: np.ndarray | None = None
    sample_order: np.ndarray | None = None
    seed: int = 0
    generator_words: np.ndarray | None = None
    generator_position: int = 0

    @property
    def shard(self):
        """The number of the shard that the loader was reading."""
        return self.shard_order[self.current_shard] if self.shuffle else self.current_shard


def state_of_rank(states, rank, own):
    """The state from which `rank` continues, of those that N ranks stored. own: the LoaderState it has now, for a rank that is new."""
    if rank < len(states):
        return states[rank]
    if not own.shuffle:
        return states[0]
    return replace(
        states[0], shard_order=own.shard_order, seed=own.seed, generator_words=own.generator_words, generator_position=own.generator_position
    )  # fmt: skip


def same_fraction(state, samples, ranks_before, ranks):
    """Where to continue in a shard that now has another number of samples, `samples`."""
    if state.shuffle:
        return ceil_div(state.current_sample * samples, len(state.sample_order))
    # The state does not say how many samples there were, but with fewer ranks samples are smaller in the same proportion.
    return min(ceil_div(state.current_sample * ranks_before, ranks), samples)


def check_place(state, loader):
    """Raise UserError if a state belongs to other shards than the loader's, or to another kind of order."""
    if state.shuffle != loader.shuffle:
        raise UserError(
            f"{loader.name_of(0)}: the saved position in the data must be that of the same kind of loader: it is of a "
            f"{'' if state.shuffle else 'non-'}shuffling loader and this one does {'' if loader.shuffle else 'not '}shuffle. "
            "Resume with the settings of the run that was saved"
        )
    shards = len(loader.shards)
    if not 0 <= state.current_shard < shards:
        raise _foreign_state(loader, f"it is in shard number {state.current_shard}, and there are {shards}")
    if not state.shuffle:
        return
    if not is_permutation(state.shard_order, shards):
        raise _foreign_state(loader, f"its order of {len(state.shard_order)} shards is not one of the {shards} there are")
    if len(state.generator_words) != GENERATOR_WORDS or not 0 <= state.generator_position <= GENERATOR_WORDS:
        raise _foreign_state(
            loader,
            f"its generator has {len(state.generator_words)} words and position {state.generator_position}, not {GENERATOR_WORDS} words "
            f"and at most {GENERATOR_WORDS}",
        )
    if not 0 <= state.current_sample <= len(state.sample_order) or len(state.sample_order) == 0:
        raise _foreign_state(loader, f"it is at sample {state.current_sample} of {len(state.sample_order)}")


def check_samples(state, loader):
    """Raise UserError if the state's shard is cut into other samples by this loader. Call check_place first."""
    samples, name = loader.samples_in_shard(state.shard), loader.name_of(state.shard)
    if state.shuffle and not is_permutation(state.sample_order, samples):
        raise _foreign_state(loader, f"its order of {len(state.sample_order)} samples is not one of the {samples} in shard {name}")
    if not 0 <= state.current_sample <= samples:
        raise _foreign_state(loader, f"it is at sample {state.current_sample}, and shard {name} has {samples}")


def is_permutation(items, count):
    """True if the array `items` holds 0 .. count - 1, each once."""
    return np.array_equal(np.sort(items), np.arange(count))


def _foreign_state(loader, reason):
    return UserError(
        f"{loader.name_of(0)}: the saved position in the data must fit the shards and the batch: {reason}. Resume with the settings of the "
        "run that was saved, above all its shards (-i)"
    )
