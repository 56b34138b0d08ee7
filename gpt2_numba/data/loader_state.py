"""The position of a DataLoader in its data, as stored in checkpoints, and checks that a stored position fits a loader.

A checkpoint written by N ranks holds N states. The same number of ranks with the same batch continues exactly. Otherwise the current
shard is cut into a different number of samples, so the stored sample order is useless: the shard gets a new order, and the loader
continues at the same fraction of it, rounded up to whole samples. Until that shard ends, some tokens are read twice and as many not at
all: each rank had drawn its own order (as in llm.c), so the samples already used are scattered over the whole shard. Later shards are
read completely.

A rank that existed before keeps its shard order and generator; a new rank uses those of its own seed. At any moment all ranks read
different tokens, because each reads its own part of a sample. A loader that does not shuffle assumes that the batch is the same.
"""

from dataclasses import dataclass, replace

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.integers import ceil_div

GENERATOR_WORDS = 624  # the state of a Mersenne Twister


@dataclass(frozen=True, eq=False)  # the generated __eq__ fails on arrays
class LoaderState:
    """The position of a loader. Without shuffling only the first three fields are used.

    shuffle             whether the loader permutes
    current_shard       index into the shard order, from 0
    current_sample      index into the sample order of the next sample to use, from 0; the number of samples after the shard's last
    shard_order         int32 (shards,), the shards in this epoch's order; None without shuffling
    sample_order        int32 (samples in the current shard,); None without shuffling
    seed                the generator's seed, for the record only: the words below are its state
    generator_words     uint32 (624,), the Mersenne Twister's state; None without shuffling
    generator_position  the number of words used up, 0 to 624, as np.random.RandomState counts (624 when just seeded)
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
        """The number of the shard being read."""
        return self.shard_order[self.current_shard] if self.shuffle else self.current_shard


def rank_state(states, rank, own):
    """The state from which `rank` continues, given the states of N ranks. own: its current LoaderState, for a new rank."""
    if rank < len(states):
        return states[rank]
    if not own.shuffle:
        return states[0]
    return replace(
        states[0], shard_order=own.shard_order, seed=own.seed, generator_words=own.generator_words,
        generator_position=own.generator_position
    )  # fmt: skip


def same_fraction(state, samples, ranks_before, ranks):
    """The sample at which to continue in a shard that now has `samples` samples."""
    if state.shuffle:
        return ceil_div(state.current_sample * samples, len(state.sample_order))
    # The state does not hold the number of samples, but the size of a sample is proportional to the number of ranks.
    return min(ceil_div(state.current_sample * ranks_before, ranks), samples)


def check_position(state, loader):
    """Raise UserError if a state belongs to shards other than the loader's, or to another kind of order."""
    if state.shuffle != loader.shuffle:
        raise UserError(
            f"{loader.shard_name(0)}: the saved position in the data must be from the same kind of loader: it is from a "
            f"{'' if state.shuffle else 'non-'}shuffling loader, and this one {'shuffles' if loader.shuffle else 'does not shuffle'}. "
            "Resume with the settings of the saved run, or start the data over (--restart-data on)"
        )
    shards = len(loader.shards)
    if not 0 <= state.current_shard < shards:
        raise _foreign_state(loader, f"it is in shard number {state.current_shard} of {shards}")
    if not state.shuffle:
        return
    if len(state.shard_order) != shards:
        raise _foreign_state(loader, f"it is from a run with {len(state.shard_order)} shard(s), and this one has {shards}")
    if not is_permutation(state.shard_order, shards):
        raise _foreign_state(loader, f"its order of {shards} shards does not name each of them once")
    if len(state.generator_words) != GENERATOR_WORDS or not 0 <= state.generator_position <= GENERATOR_WORDS:
        raise _foreign_state(
            loader,
            f"its generator has {len(state.generator_words)} words and position {state.generator_position}, not {GENERATOR_WORDS} words "
            f"and at most {GENERATOR_WORDS}",
        )
    if not 0 <= state.current_sample <= len(state.sample_order) or len(state.sample_order) == 0:
        raise _foreign_state(loader, f"it is at sample {state.current_sample} of {len(state.sample_order)}")


def check_samples(state, loader):
    """Raise UserError if this loader cuts the state's shard into other samples. Call check_position first."""
    samples, name = loader.samples_in_shard(state.shard), loader.shard_name(state.shard)
    if state.shuffle and not is_permutation(state.sample_order, samples):
        raise _foreign_state(
            loader, f"its order of {len(state.sample_order)} samples is not a permutation of the {samples} in shard {name}"
        )
    if not 0 <= state.current_sample <= samples:
        raise _foreign_state(loader, f"it is at sample {state.current_sample}, and shard {name} has {samples}")


def is_permutation(items, count):
    """True if the array `items` holds 0 .. count - 1, each once."""
    return np.array_equal(np.sort(items), np.arange(count))


def _foreign_state(loader, reason):
    return UserError(
        f"{loader.shard_name(0)}: the saved position in the data must fit the shards and the batch: {reason}. "
        "Resume with the settings of the saved run, above all its shards (-i), or start the data over (--restart-data on)"
    )
