"""State files: the state of a run except its parameters, in llm.c's format, so that either program can resume from them.

    256 int32, little-endian   [0] = 20240527, [1] = 1 (version), [2] = processes, [3] = rank, [4] = has master weights (0 or 1),
                               [5] = the loader shuffles (0 or 1), [6] = how the parts are cut, see below, [10] = step;
                               as uint64, two int32 each: [20] rounding generator, [22] the same before the last update,
                               [30] current shard, [32] current sample; the rest 0
    float32                    m, v and, if kept, the master weights: this rank's parts of each, all of them finite numbers
    only if the loader shuffles:
    uint64, then int32         number of shards, and their order
    uint64, then int32         number of samples in the current shard, and their order
    2520 bytes                 the loader's generator, see below

Each of N processes writes one file with its parts (parallel/shards.py):

    [6] = 0    the parts of each tensor of each layer are equal, as in llm.c with -z 1. With the same header, each file can also hold all
               parameters, as in llm.c with -z 0: the file's size distinguishes the two. We always write parts
    [6] = 8    our own format, used if N equal parts would not be multiples of 8 elements; llm.c cannot read it

The current sample is the next one to be used, as in our loader; it equals the number of samples when the shard has just been used up.
(llm.c before June 2024 stored the last one used.)

The generator is the Mersenne Twister that NumPy calls MT19937. Both programs have the same words but count them differently:

    NumPy    position: number of words used, 1 to 624; at 624 the next draw first generates 624 new ones
    llm.c    next: index of the next word; left: 625 - next, and at 1 the next draw first generates 624 new ones
             just seeded: left = 1, next = 0, which is NumPy's 624
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.data.loader_state import LoaderState
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.shards import WIDTH, Shards
from gpt2_numba.training.finite import complaint, first_not_finite
from gpt2_numba.training.model_file import map_array, write_array

MAGIC = 20240527
VERSION = 1

WORDS = 624
# llm.c writes a C struct exactly as it is in memory. All its members are at multiples of their own sizes and the whole is a multiple of the
# largest, 8, so there is no padding: 8 + 4 + 4 + 624 * 4 + 2 * 4 = 2520 bytes.
GENERATOR = np.dtype([("seed", "<u8"), ("left", "<i4"), ("next", "<u4"), ("words", "<u4", WORDS), ("matrix", "<u4", 2)])
MATRIX = (0, 0x9908B0DF)  # the twist's constant; if it is different, llm.c seeds again, with 5489

ARRAYS = ("AdamW's m", "AdamW's v", "the master weights")  # in their order in the file
_REMEDY = "Give a state file written by llm.c or this program"
_CUT_OFF = "It was cut off or altered, or belongs to another model: use an older checkpoint"


@dataclass(eq=False)
class TrainingState:
    """The state of one process of a run after `step` steps.

    shards                      Shards: rank, number of ranks, and the parts of all parameters that this rank keeps
    step                        number of steps done, which is the index of the next one
    rounding_rng                state of the generator of the stochastic rounding, 64 bits
    rounding_rng_before_update  the same before the last update; rounding the master weights again from it gives the same bits
    loader                      LoaderState, the position in the training data
    m, v                        AdamW's averages of the gradient and its square, float32 (parameters of this process,)
    master                      master weights, likewise; None if they are not kept
    """

    shards: Shards
    step: int
    rounding_rng: int
    rounding_rng_before_update: int
    loader: LoaderState
    m: np.ndarray
    v: np.ndarray
    master: np.ndarray | None = None


def write_state_file(path, state, kept=None):
    """Write a TrainingState to `path`; an older file is replaced.

    kept    Shards: the layout of m, v and master in memory, by default that of the file. It must include all that the file holds
    Any of the three can also be an array of all parameters. They may be on the host or on a device: they are read in pieces.
    Raises ValueError if one is not float32 of one of these sizes, NotFinite if it holds NaN or infinity, OSError if the file cannot be
    written.
    """
    shards, loader, kept = state.shards, state.loader, kept or state.shards
    arrays = [state.m, state.v] + ([] if state.master is None else [state.master])
    sizes = [(kept.local_count(),), (kept.global_count,)]
    if any(array.dtype != np.float32 or array.shape not in sizes for array in arrays):
        raise ValueError(
            f"write_state_file: m, v and master must be float32 of shape {sizes[0]} or {sizes[1]}, got "
            f"{', '.join(f'{array.dtype} {tuple(array.shape)}' for array in arrays)}"
        )
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:7] = MAGIC, VERSION, shards.ranks, shards.rank, len(arrays) == 3, loader.shuffle, 0 if shards.even else WIDTH
    header[10] = state.step
    header[20:24] = _uint64(state.rounding_rng, state.rounding_rng_before_update).view("<i4")
    header[30:34] = _uint64(loader.current_shard, loader.current_sample).view("<i4")
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for name, array in zip(ARRAYS, arrays):
            for _, start, length, segment in shards.parts():
                if length:
                    offset = start if array.shape == sizes[1] else kept.local_position(segment, start)
                    describe = functools.partial(_describe, name, shards.config, start)
                    write_array(file, array[offset : offset + length], np.dtype("<f4"), describe)
        if loader.shuffle:
            for order in (loader.shard_order, loader.sample_order):
                file.write(_uint64(len(order)).tobytes())
                file.write(np.asarray(order, dtype="<i4").tobytes())
            file.write(_llmc_generator(loader).tobytes())


def read_state_file(path, config, share=(0, 1)):
    """Return the TrainingState in the file at `path`; m, v and master are read-only memory maps.

    config  GPT2Config of its model, since the file does not contain the number of parameters
    share   the part of the arrays that is checked to be finite: see read_model_file
    Raises UserError if the file is missing, is not exactly a state file, belongs to a model of another size, or if an array holds NaN or
    infinity.
    """
    path = Path(path)
    header = read_header(path, "a state file", magic=MAGIC, versions=(VERSION,), remedy=_REMEDY)
    processes, rank, has_master, shuffle, width = (int(value) for value in header[2:7])
    if not 0 <= rank < processes or has_master not in (0, 1) or shuffle not in (0, 1) or header[10] < 0:
        raise UserError(
            f"{path}: a state file must hold 0 <= rank < processes, two switches of 0 or 1 and a step, this one has "
            f"rank {rank} of {processes}, {has_master}, {shuffle} and {header[10]}: it was altered. Use an older checkpoint"
        )
    if width not in (0, WIDTH):
        raise UserError(
            f"{path}: a state file's parts must be cut in a known way, 0 or {WIDTH}, this one has {width}: it was altered, or was "
            f"written by a newer version. Use an older checkpoint"
        )
    rounding = [int(value) for value in header[20:24].view("<u8")]
    position = [int(value) for value in header[30:34].view("<u8")]  # shard, sample
    shards, loader = _shards_and_loader(path, _possible_shards(config, rank, processes, width), 2 + has_master, shuffle, position)
    count = shards.local_count()
    arrays = map_array(path, np.dtype("<f4"), (2 + has_master) * count)  # one map for all: each needs an open file
    bad = share and first_not_finite(arrays, share)
    if bad:
        raise UserError(
            f"{path}: {_describe_in_file(shards, *bad)}: the file was altered, or its training had diverged. Use an older checkpoint"
        )
    m, v, master = (*arrays.reshape(2 + has_master, count), None)[:3]
    return TrainingState(
        shards, step=int(header[10]), rounding_rng=rounding[0], rounding_rng_before_update=rounding[1],
        loader=loader, m=m, v=v, master=master,
    )  # fmt: skip


def _possible_shards(config, rank, processes, width):
    """The Shards that a file can hold according to its header, the likeliest first."""
    if width:
        return [Shards(config, rank, processes)]
    everything = Shards(config, rank, processes, cut=())
    try:
        return [Shards(config, rank, processes, exact=True), everything] if processes > 1 else [everything]
    except ValueError:  # there are no equal parts
        return [everything]


def _shards_and_loader(path, possible, array_count, shuffle, position):
    """Return (Shards, LoaderState): the first of the possible Shards for which the rest of the file, after the arrays, is valid."""
    reasons = []
    for shards in possible:
        try:
            return shards, _read_loader_state(path, shards.local_count(), array_count, shuffle, position)
        except UserError as error:
            reasons.append(error)
    raise reasons[0]


def _read_loader_state(path, count, array_count, shuffle, position):
    """The LoaderState in a file with array_count arrays of `count` elements. Raises UserError if the rest of the file does not fit that."""
    size, arrays_end = path.stat().st_size, HEADER_BYTES + 4 * count * array_count
    if size < arrays_end or (size != arrays_end and not shuffle):
        raise UserError(
            f"{path}: a state file of {count} parameters with {array_count} float32 each must have {arrays_end} "
            f"bytes{' and those of the loader' if shuffle else ''}, this file has {size}. {_CUT_OFF}"
        )
    return _read_shuffled(path, arrays_end, *position) if shuffle else LoaderState(False, *position)


def _uint64(*values):
    return np.array(values, dtype="<u8")


def _describe(name, config, first, index, value):
    """Text about a value that is not finite in a piece of one of the ARRAYS that begins at `first` among all parameters."""
    return complaint(name, config, first + index, value)


def _describe_in_file(shards, index, value):
    """The same for an index into all arrays of a file, which holds these Shards."""
    array, local = divmod(index, shards.local_count())
    first = next(start - begin for begin, start, length, _ in shards.parts() if begin <= local < begin + length)
    return complaint(ARRAYS[array], shards.config, first + local, value)


def _read_shuffled(path, offset, current_shard, current_sample):
    """The LoaderState of a shuffling loader, whose orders and generator start at byte `offset` of the file."""
    with open(path, "rb") as file:
        file.seek(offset)
        shard_order = _read_order(path, file)
        sample_order = _read_order(path, file)
        rest = file.read(GENERATOR.itemsize + 1)  # one byte more, to check that the file ends here
    if len(rest) != GENERATOR.itemsize:
        raise _damaged_loader(path, f"it must end with {GENERATOR.itemsize} bytes of generator")
    generator = np.frombuffer(rest, dtype=GENERATOR)[0]
    if not current_shard < len(shard_order) or not current_sample <= len(sample_order):
        raise _damaged_loader(
            path, f"its position is shard {current_shard} of {len(shard_order)}, sample {current_sample} of {len(sample_order)}"
        )
    return LoaderState(
        True,
        current_shard,
        current_sample,
        shard_order,
        sample_order,
        seed=int(generator["seed"]),
        generator_words=generator["words"].astype(np.uint32),
        generator_position=_numpy_position(path, generator),
    )


def _read_order(path, file):
    """Read a count, and a permutation of that length: int32 (count,)."""
    start = file.read(8)
    count = int.from_bytes(start, "little")
    left = path.stat().st_size - file.tell()
    if len(start) < 8 or 4 * count > left:  # before reading: a wrong count could demand any amount of memory
        raise _damaged_loader(path, f"an order of {count} numbers does not fit into its last {left} bytes")
    order = np.frombuffer(file.read(4 * count), dtype="<i4").astype(np.int32)
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise _damaged_loader(path, f"an order of {count} numbers must hold each of 0 to {count - 1} once")
    return order


def _llmc_generator(loader):
    """The generator of a LoaderState in llm.c's form, a GENERATOR."""
    generator = np.zeros((), dtype=GENERATOR)
    generator["seed"] = loader.seed
    generator["left"] = WORDS + 1 - loader.generator_position
    generator["next"] = loader.generator_position
    generator["words"] = loader.generator_words
    generator["matrix"] = MATRIX
    return generator


def _numpy_position(path, generator):
    """NumPy's position of a GENERATOR. Raises UserError if its state is impossible.

    The seed is not checked: some versions of llm.c leave it uninitialised.
    """
    left, position = int(generator["left"]), int(generator["next"])
    if left == 1 and position == 0:  # just seeded
        position = WORDS
    if left != WORDS + 1 - position or not 0 <= position <= WORDS or tuple(generator["matrix"]) != MATRIX:
        raise _damaged_loader(path, f"its generator has {left} left, {position} next")
    return position


def _damaged_loader(path, reason):
    return UserError(f"{path}: a state file must end with the state of the data loader: {reason}. {_CUT_OFF}")
