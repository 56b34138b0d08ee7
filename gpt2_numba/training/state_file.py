"""State files: what a run must remember besides its parameters, in llm.c's format, so that either program can go on.

    256 int32, little-endian   [0] = 20240527, [1] = 1 (version), [2] = processes, [3] = rank, [4] = master weights kept
                               (0 or 1), [5] = the loader shuffles (0 or 1), [6] = how the parts are cut, see below,
                               [10] = step; as uint64 in two places each: [20] rounding generator, [22] the same before
                               the last update, [30] current shard, [32] current sample; the rest 0
    float32                    m, v and, if kept, the master weights: this rank's parts of each
    only if the loader shuffles:
    uint64, then int32         number of shards, and their order
    uint64, then int32         number of samples in the current shard, and their order
    2520 bytes                 the loader's generator, as below

Each of N processes writes a file. The parts in it are those of parallel/shards.py:

    [6] = 0    the parts of each tensor of each layer are equal: llm.c's with -z 1. Or, with the same header, each file
               has all parameters: llm.c's with -z 0, which the file's size tells. We always write parts
    [6] = 8    ours, where N equal parts would not be multiples of 8 numbers; llm.c cannot read them

The current sample is the next one to be used, as in our loader; it equals the number of samples when the shard has just
been used up. (llm.c before June 2024 kept the last one that was used.)

The generator is the Mersenne Twister that NumPy calls MT19937. Its words are the same; the place in them is told apart:

    NumPy    position: words used up, 1 to 624; at 624 the next draw first makes 624 new ones
    llm.c    next: the word to be used; left: 625 - next, and when it is 1 the next draw first makes 624 new ones
             just seeded: left = 1, next = 0, which is NumPy's 624
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS, read_header
from gpt2_numba.data.loader_state import LoaderState
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.shards import WIDTH, Shards
from gpt2_numba.training.model_file import write_array

MAGIC = 20240527
VERSION = 1

WORDS = 624
# llm.c writes a C struct as it lies in memory. All its members lie at multiples of their own sizes and the whole is a
# multiple of the largest, 8, so there is no padding: 8 + 4 + 4 + 624 * 4 + 2 * 4 = 2520 bytes.
GENERATOR = np.dtype([("seed", "<u8"), ("left", "<i4"), ("next", "<u4"), ("words", "<u4", WORDS), ("matrix", "<u4", 2)])
MATRIX = (0, 0x9908B0DF)  # the twist's constant; llm.c seeds anew, with 5489, where it finds another

_REMEDY = "Give a state file that llm.c or this program has written"
_CUT_OFF = "It was cut off or altered, or belongs to another model: use an older checkpoint"


@dataclass(eq=False)
class TrainingState:
    """What one process of a run remembers of it, after `step` steps.

    shards                      Shards: which process of how many this is, and which parts of all parameters it keeps
    step                        the next step to be done, from 0
    rounding_rng                generator of the stochastic rounding, 64 bits
    rounding_rng_before_update  the same before the last update: rounding the master weights again gives the same bits
    loader                      LoaderState, where the training data stand
    m, v                        AdamW's averages of the gradient and its square, float32 (parameters of this process,)
    master                      the parameters in float32, likewise; None if they are not kept
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

    kept    Shards: how m, v and master lie in memory, by default as in the file. All that the file holds must be there
    Any of them can also be an array of all parameters. They may lie on the host or on a device: they are read in pieces.
    Raises ValueError if one is not float32 of such a size, OSError if the file cannot be written.
    """
    shards, loader, kept = state.shards, state.loader, kept or state.shards
    arrays = [state.m, state.v] + ([] if state.master is None else [state.master])
    sizes = [(kept.local_count(),), (kept.global_count,)]
    if any(array.dtype != np.float32 or array.shape not in sizes for array in arrays):
        raise ValueError(
            f"write_state_file: m, v and master must be float32 of {sizes[0]} or {sizes[1]} numbers, got "
            f"{', '.join(f'{array.dtype} {tuple(array.shape)}' for array in arrays)}"
        )
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:7] = MAGIC, VERSION, shards.ranks, shards.rank, len(arrays) == 3, loader.shuffle, 0 if shards.even else WIDTH
    header[10] = state.step
    header[20:24] = _uint64(state.rounding_rng, state.rounding_rng_before_update).view("<i4")
    header[30:34] = _uint64(loader.current_shard, loader.current_sample).view("<i4")
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for array in arrays:
            for _, start, length, segment in shards.parts():
                if length:
                    place = start if array.shape == sizes[1] else kept.place(segment, start)
                    write_array(file, array[place : place + length], np.dtype("<f4"))
        if loader.shuffle:
            for order in (loader.shard_order, loader.sample_order):
                file.write(_uint64(len(order)).tobytes())
                file.write(np.asarray(order, dtype="<i4").tobytes())
            file.write(_generator_of(loader).tobytes())


def read_state_file(path, config):
    """Return the TrainingState in the file at `path`; m, v and master are read-only memory maps.

    config  GPT2Config of the model that it belongs to: the file does not say how many parameters there are
    Raises UserError if the file is missing, is not exactly a state file, or belongs to a model of another size.
    """
    path = Path(path)
    header = read_header(path, "a state file", MAGIC, (VERSION,), _REMEDY)
    processes, rank, has_master, shuffle, width = (int(number) for number in header[2:7])
    if not 0 <= rank < processes or has_master not in (0, 1) or shuffle not in (0, 1) or header[10] < 0:
        raise UserError(
            f"{path}: a state file must hold 0 <= rank < processes, two switches of 0 or 1 and a step, "
            f"this one has rank {rank} of {processes}, {has_master}, {shuffle} and {header[10]}: it was "
            f"altered. Use an older checkpoint"
        )
    if width not in (0, WIDTH):
        raise UserError(
            f"{path}: a state file's parts must be cut in a known way, 0 or {WIDTH}, this one has {width}: it "
            f"was altered, or is of a newer version. Use an older checkpoint"
        )
    rounding = [int(number) for number in header[20:24].view("<u8")]
    place = [int(number) for number in header[30:34].view("<u8")]
    shards, loader = _shards_and_loader(path, _possible_shards(config, rank, processes, width), 2 + has_master, shuffle, place)
    count = shards.local_count()
    maps = [_map(path, HEADER_BYTES + 4 * count * index, count) for index in range(2 + has_master)]
    return TrainingState(shards, int(header[10]), *rounding, loader, *maps)


def _possible_shards(config, rank, processes, width):
    """The Shards that a file can hold after what its header says, the likeliest first."""
    if width:
        return [Shards(config, rank, processes)]
    all_of_it = Shards(config, rank, processes, cut=())
    try:
        return [Shards(config, rank, processes, exact=True), all_of_it] if processes > 1 else [all_of_it]
    except ValueError:  # there are no equal parts
        return [all_of_it]


def _shards_and_loader(path, possible, arrays, shuffle, place):
    """Return (Shards, LoaderState): the first of the possible Shards of which everything behind the arrays makes sense."""
    reasons = []
    for shards in possible:
        try:
            return shards, _loader_behind(path, shards.local_count(), arrays, shuffle, place)
        except UserError as error:
            reasons.append(error)
    raise reasons[0]


def _loader_behind(path, count, arrays, shuffle, place):
    """The LoaderState in a file with so many arrays of `count` numbers. Raises UserError if it is not such a file."""
    size, position = path.stat().st_size, HEADER_BYTES + 4 * count * arrays
    if size < position or (size != position and not shuffle):
        raise UserError(
            f"{path}: a state file of {count} parameters with {arrays} float32 each must have {position} "
            f"bytes{' and those of the loader' if shuffle else ''}, this file has {size}. {_CUT_OFF}"
        )
    return _read_loader(path, position, *place) if shuffle else LoaderState(False, *place)


def _uint64(*numbers):
    return np.array(numbers, dtype="<u8")


def _map(path, offset, count):
    return np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=(count,))


def _read_loader(path, position, current_shard, current_sample):
    """The LoaderState of a shuffling loader, whose orders and generator begin at byte `position` of the file."""
    with open(path, "rb") as file:
        file.seek(position)
        shard_order = _read_order(path, file)
        sample_order = _read_order(path, file)
        rest = file.read(GENERATOR.itemsize + 1)  # one byte more, to see whether the file ends here
    if len(rest) != GENERATOR.itemsize:
        raise _damaged_loader(path, f"{GENERATOR.itemsize} bytes of generator must end it")
    generator = np.frombuffer(rest, dtype=GENERATOR)[0]
    if not current_shard < len(shard_order) or not current_sample <= len(sample_order):
        raise _damaged_loader(
            path, f"it is in shard {current_shard} of {len(shard_order)}, at sample {current_sample} of {len(sample_order)}"
        )
    return LoaderState(
        True,
        current_shard,
        current_sample,
        shard_order,
        sample_order,
        seed=int(generator["seed"]),
        generator_words=generator["words"].astype(np.uint32),
        generator_position=_position(path, generator),
    )


def _read_order(path, file):
    """A count, and a permutation of so many numbers: int32 (count,)."""
    start = file.read(8)
    count = int.from_bytes(start, "little")
    left = path.stat().st_size - file.tell()
    if len(start) < 8 or 4 * count > left:  # before reading: a wrong count could ask for any amount of memory
        raise _damaged_loader(path, f"an order of {count} numbers cannot lie in its last {left} bytes")
    order = np.frombuffer(file.read(4 * count), dtype="<i4").astype(np.int32)
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise _damaged_loader(path, f"an order of {count} numbers must hold each of 0 to {count - 1} once")
    return order


def _generator_of(loader):
    """The generator of a LoaderState as llm.c writes it: one GENERATOR."""
    generator = np.zeros((), dtype=GENERATOR)
    generator["seed"] = loader.seed
    generator["left"] = WORDS + 1 - loader.generator_position
    generator["next"] = loader.generator_position
    generator["words"] = loader.generator_words
    generator["matrix"] = MATRIX
    return generator


def _position(path, generator):
    """NumPy's position of one GENERATOR. Raises UserError if it is in no state that a generator can be in.

    The seed is not looked at: some of llm.c's versions leave it to chance.
    """
    left, position = int(generator["left"]), int(generator["next"])
    if left == 1 and position == 0:  # just seeded
        position = WORDS
    if left != WORDS + 1 - position or not 0 <= position <= WORDS or tuple(generator["matrix"]) != MATRIX:
        raise _damaged_loader(path, f"its generator says {left} left, {position} next")
    return position


def _damaged_loader(path, reason):
    return UserError(f"{path}: the last part of a state file must be the data loader's: {reason}. {_CUT_OFF}")
