"""State files: the bytes are llm.c's, the generator continues with the same numbers, damaged files are refused."""

import ctypes
import dataclasses
import re
import struct
import types

import numpy as np
import pytest

from gpt2_numba.config import MATRICES, count_parameters, parse_descriptor
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.loader_state import LoaderState
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.shards import Shards
from gpt2_numba.training import finite, model_file
from gpt2_numba.training.state_file import GENERATOR, TrainingState, read_state_file, write_state_file

CONFIG = parse_descriptor("L=1,NH=1,C=8,T=1,V=5")
ALL = count_parameters(CONFIG)
COUNT = ALL // 4  # four ranks divide every tensor, three do not; into multiples of 8 only one rank does
SHARDS, SAMPLES = [2, 0, 1], [3, 1, 4, 0, 2]
WORDS = list(range(1000, 1624))


class Mt19937State(ctypes.Structure):
    """llm.c's struct, laid out by this machine's C rules."""

    _fields_ = [
        ("seed", ctypes.c_ulonglong),
        ("left", ctypes.c_int),
        ("next", ctypes.c_uint),
        ("words", ctypes.c_uint * 624),
        ("matrix", ctypes.c_uint * 2),
    ]


def array_values(index, count=COUNT):
    """The values of array number `index` of the test states, float32 (count,)."""
    return np.arange(count, dtype=np.float32) + np.float32(0.5 + 100 * index)


# Ten parameters: each one is a way to damage the file.
def llmc_bytes(
    fields=types.MappingProxyType({}),
    master=True,
    shuffle=True,
    shards=SHARDS,
    samples=SAMPLES,
    left=524,
    next=101,
    matrix=0x9908B0DF,
    count=COUNT,
    shards_said=None,
):
    """A state file written independently, with `struct`. fields: header values that differ from the usual ones, by index."""
    header = bytearray(1024)
    struct.pack_into("<6i", header, 0, 20240527, 1, 4, 2, master, shuffle)
    struct.pack_into("<i", header, 40, 1234)
    struct.pack_into("<QQ", header, 80, 2**64 - 3, 2**33 + 5)
    struct.pack_into("<QQ", header, 120, 1, 2)
    for index, value in fields.items():
        struct.pack_into("<i", header, 4 * index, value)
    arrays = [array_values(index, count) for index in range(3 if master else 2)]
    parts = [bytes(header), *(struct.pack(f"<{count}f", *array) for array in arrays)]
    if shuffle:
        parts += [
            struct.pack(f"<Q{len(shards)}i", len(shards) if shards_said is None else shards_said, *shards),
            struct.pack(f"<Q{len(samples)}i", len(samples), *samples),
            struct.pack("<QiI624I2I", 44, left, next, *WORDS, 0, matrix),
        ]
    return b"".join(parts)


def state(master=True, shuffle=True):
    """The TrainingState that llmc_bytes holds."""
    m, v, w = map(array_values, range(3))
    loader = LoaderState(False, 1, 2)
    if shuffle:
        loader = LoaderState(
            True, current_shard=1, current_sample=2, shard_order=np.array(SHARDS, np.int32), sample_order=np.array(SAMPLES, np.int32),
            seed=44, generator_words=np.array(WORDS, np.uint32), generator_position=101,
        )  # fmt: skip
    return TrainingState(
        Shards(CONFIG, 2, 4, exact=True), step=1234, rounding_rng=2**64 - 3, rounding_rng_before_update=2**33 + 5,
        loader=loader, m=m, v=v, master=w if master else None,
    )  # fmt: skip


def assert_same(found, expected):
    """Compare all fields of two dataclasses: arrays by dtype and value, Shards by their parts."""
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b), field.name
        elif dataclasses.is_dataclass(b):
            assert_same(a, b)
        elif isinstance(b, Shards):
            assert (a.rank, a.ranks, a.whole, a.parts()) == (b.rank, b.ranks, b.whole, b.parts())
        else:
            assert a == b, field.name


def test_the_generator_is_laid_out_as_in_c():
    assert GENERATOR.itemsize == ctypes.sizeof(Mt19937State) == 2520
    for name, _ in Mt19937State._fields_:
        assert GENERATOR.fields[name][1] == getattr(Mt19937State, name).offset


@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_written_bytes_are_those_of_llmc(tmp_path, monkeypatch, master, shuffle):
    monkeypatch.setattr(model_file, "PIECE", 100)  # several pieces, the last one smaller
    write_state_file(tmp_path / "s.bin", state(master, shuffle))
    assert (tmp_path / "s.bin").read_bytes() == llmc_bytes(master=master, shuffle=shuffle)


@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_reading_returns_the_state(tmp_path, master, shuffle):
    (tmp_path / "s.bin").write_bytes(llmc_bytes(master=master, shuffle=shuffle))
    found = read_state_file(tmp_path / "s.bin", CONFIG)
    assert_same(found, state(master, shuffle))
    assert isinstance(found.m, np.memmap) and not found.m.flags.writeable


def llmc_draws(words, left, next, count):
    """`count` draws computed as in llm.c, from its three variables."""
    words, draws = list(words), []
    for _ in range(count):
        left -= 1
        if left <= 0:
            left, next = 624, 0
            for j in range(624):
                y = (words[j] & 0x80000000) | (words[(j + 1) % 624] & 0x7FFFFFFF)
                words[j] = words[(j + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
        y = words[next]
        next += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        draws.append(y ^ (y >> 18))
    return draws


def raw_draws(generator, count):
    return generator.randint(0, 2**32, size=count, dtype=np.uint32).tolist()


def restored(path):
    """NumPy's generator, restored from the state file."""
    loader = read_state_file(path, CONFIG).loader
    generator = np.random.RandomState(0)
    generator.set_state(("MT19937", loader.generator_words, loader.generator_position))
    return generator


@pytest.mark.parametrize("drawn", [0, 1, 2, 623, 624, 625, 1248])
def test_llmc_continues_with_our_numbers(tmp_path, drawn):
    generator = np.random.RandomState(43)
    raw_draws(generator, drawn)
    _, words, position, *_ = generator.get_state()
    ours = state()
    ours.loader = dataclasses.replace(ours.loader, generator_words=words, generator_position=position)
    write_state_file(tmp_path / "s.bin", ours)
    in_c = Mt19937State.from_buffer_copy((tmp_path / "s.bin").read_bytes()[-2520:])
    expected = raw_draws(generator, 700)
    assert llmc_draws(in_c.words, in_c.left, in_c.next, 700) == expected
    assert tuple(in_c.matrix) == (0, 0x9908B0DF)
    assert raw_draws(restored(tmp_path / "s.bin"), 700) == expected


@pytest.mark.parametrize("left, next", [(1, 0), (624, 1), (524, 101), (2, 623), (1, 624)])  # all kinds of states of llm.c
def test_we_continue_with_llmcs_numbers(tmp_path, left, next):
    (tmp_path / "s.bin").write_bytes(llmc_bytes(left=left, next=next))
    assert raw_draws(restored(tmp_path / "s.bin"), 700) == llmc_draws(WORDS, left, next, 700)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batches", [0, 1, 3, 4, 7])  # 3 + 4 + 3 samples: also at the end of a shard
def test_the_loader_continues_with_its_batches(tmp_path, shuffle, batches):
    shards = [np.arange(length, dtype=np.uint16) for length in (20, 27, 19)]
    loader = DataLoader(shards, B=2, T=3, shuffle=shuffle)
    for _ in range(batches):
        loader.next_batch()
    m = np.zeros(ALL, np.float32)
    write_state_file(tmp_path / "s.bin", TrainingState(Shards(CONFIG), 5, 6, 7, loader.state(), m, m))
    resumed = DataLoader(shards, B=2, T=3, shuffle=shuffle)
    resumed.load_state(read_state_file(tmp_path / "s.bin", CONFIG).loader)
    for _ in range(25):  # beyond two epochs
        np.testing.assert_array_equal(resumed.next_batch(), loader.next_batch())


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "this file has 0 in total"),
        (llmc_bytes()[:1000], "this file has 1000 in total"),
        (llmc_bytes({0: 20240326}), "a model checkpoint"),
        (llmc_bytes({1: 2}), "version 1, this one has 2"),
        (llmc_bytes({3: 4}), "rank 4 of 4"),
        (llmc_bytes({3: -1}), "rank -1 of 4"),
        (llmc_bytes({4: 7}), "rank 2 of 4, 7, 1"),
        (llmc_bytes({5: 2}), "rank 2 of 4, 1, 2"),
        (llmc_bytes({10: -1}), "1, 1 and -1"),
        (llmc_bytes({6: 4}), "0 or 8, this one has 4"),
        (llmc_bytes({6: 8}), "belongs to another model"),  # unequal parts would have another size
        (llmc_bytes(shuffle=False)[:-1], "belongs to another model"),
        (llmc_bytes(shuffle=False) + b"\0", "belongs to another model"),
        (llmc_bytes(shuffle=False, count=COUNT - 1), "belongs to another model"),
        (llmc_bytes(master=False, shuffle=False, count=2 * COUNT), "2 float32 each must have 4864 bytes, this file has 8704"),
        (llmc_bytes(count=COUNT - 1), "belongs to another model"),
        (llmc_bytes(count=COUNT + 1), "belongs to another model"),
        (llmc_bytes(count=10 * COUNT), "belongs to another model"),
        (llmc_bytes(count=ALL - 1), "belongs to another model"),
        (llmc_bytes(count=ALL + 1), "belongs to another model"),
        (llmc_bytes({2: 5}), "belongs to another model"),  # five processes do not divide the tensors, so only whole copies are possible
        (llmc_bytes()[:1100], "and those of the loader, this file has 1100"),
        (llmc_bytes()[: 1024 + 12 * COUNT + 5], "does not fit into its last 0 bytes"),
        (llmc_bytes(shards_said=2**60), "an order of 1152921504606846976 numbers"),
        (llmc_bytes(shards=[2, 0, 2]), "each of 0 to 2 once"),
        (llmc_bytes(samples=[3, 1, 4, 0, 5]), "each of 0 to 4 once"),
        (llmc_bytes({30: 3}), "shard 3 of 3"),
        (llmc_bytes({32: 6}), "sample 6 of 5"),
        (llmc_bytes({32: -1, 33: -1}), "sample 18446744073709551615"),  # written by llm.c before June 2024, before the first batch
        (llmc_bytes()[:-1], "2520 bytes of generator"),
        (llmc_bytes() + b"\0", "2520 bytes of generator"),
        (llmc_bytes(left=524, next=100), "524 left, 100 next"),
        (llmc_bytes(left=0, next=625), "0 left, 625 next"),
        (llmc_bytes(matrix=0), "its generator"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_state_file(path, CONFIG)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array, name", [(0, "AdamW's m"), (1, "AdamW's v"), (2, "the master weights")])
@pytest.mark.parametrize("index, place", [(0, "wte at [64, 0]"), (COUNT - 1, "lnfb at [5]"), (COUNT - 3, "lnfw at [5]")])
def test_a_number_that_is_not_finite_is_neither_written_nor_read(tmp_path, value, array, name, index, place):
    """The file holds the third of four parts of every tensor."""
    arrays = [array_values(number) for number in range(3)]
    arrays[array][index] = value
    broken = dataclasses.replace(state(), **dict(zip(("m", "v", "master"), arrays)))
    with pytest.raises(finite.NotFinite, match=rf"{name} must be finite .*{re.escape(place)}"):
        write_state_file(tmp_path / "s.bin", broken)
    content = bytearray(llmc_bytes())
    struct.pack_into("<f", content, 1024 + 4 * (array * COUNT + index), value)
    (tmp_path / "s.bin").write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_state_file(tmp_path / "s.bin", CONFIG)
    message = str(raised.value)
    assert str(tmp_path / "s.bin") in message and f"{name} must be finite" in message and place in message and "\n" not in message
    unchecked = read_state_file(tmp_path / "s.bin", CONFIG, share=None)
    assert not np.isfinite(getattr(unchecked, ("m", "v", "master")[array])[index])


def test_the_place_in_an_array_of_all_parameters(tmp_path):
    """A process keeps everything, and writes its part."""
    everything = [array_values(number, ALL) for number in range(3)]
    everything[1][ALL - 1] = np.nan
    write_state_file(tmp_path / "s.bin", TrainingState(Shards(CONFIG, 0, 2), 9, 1, 2, state().loader, *everything), Shards(CONFIG))
    with pytest.raises(finite.NotFinite, match=r"AdamW's v .* nan in lnfb at \[7\]"):
        write_state_file(tmp_path / "s.bin", TrainingState(Shards(CONFIG, 1, 2), 9, 1, 2, state().loader, *everything), Shards(CONFIG))


def test_one_open_file_serves_all_arrays(tmp_path):
    """A checkpoint of hundreds of processes must not need more open files than a system allows."""
    (tmp_path / "s.bin").write_bytes(llmc_bytes())
    found = read_state_file(tmp_path / "s.bin", CONFIG)
    assert len({id(array._mmap) for array in (found.m, found.v, found.master)}) == 1


def test_a_used_up_shard_is_valid(tmp_path):
    (tmp_path / "s.bin").write_bytes(llmc_bytes({32: 5}))
    assert read_state_file(tmp_path / "s.bin", CONFIG).loader.current_sample == 5


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_state_file(tmp_path / "none.bin", CONFIG)


# --- The parts of all parameters in a file ---


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_reading_returns_the_parts(tmp_path, ranks):
    """Arrays that hold only the parts and arrays that hold more give the same file."""
    for rank in range(ranks):
        shards = Shards(CONFIG, rank, ranks)
        everything = [array_values(index, ALL) for index in range(3)]
        own = [np.concatenate([a[start : start + length] for _, start, length, _ in shards.parts()]) for a in everything]
        assert len(own[0]) == shards.local_count()
        loader = state().loader
        write_state_file(tmp_path / "own.bin", TrainingState(shards, 9, 1, 2, loader, *own))
        for cut in ((), MATRICES):
            kept = Shards(CONFIG, rank, ranks, cut)
            more = [np.concatenate([a[start : start + length] for _, start, length, _ in kept.parts()]) for a in everything]
            write_state_file(tmp_path / "more.bin", TrainingState(shards, 9, 1, 2, loader, *more), kept)
            assert (tmp_path / "more.bin").read_bytes() == (tmp_path / "own.bin").read_bytes()
            write_state_file(tmp_path / "more.bin", TrainingState(shards, 9, 1, 2, loader, *more[:2], everything[2]), kept)
            assert (tmp_path / "more.bin").read_bytes() == (tmp_path / "own.bin").read_bytes()
        assert_same(read_state_file(tmp_path / "own.bin", CONFIG), TrainingState(shards, 9, 1, 2, loader, *own))
        assert struct.unpack_from("<i", (tmp_path / "own.bin").read_bytes(), 24) == (0 if ranks == 1 else 8,)


def test_equal_parts_are_those_of_llmc(tmp_path):
    """If our parts are equal, they are llm.c's, and so is the file's header."""
    config = parse_descriptor("L=1,NH=1,C=16,T=2,V=5")
    shards = Shards(config, 1, 2)
    everything = [array_values(index, shards.global_count) for index in range(3)]
    write_state_file(tmp_path / "s.bin", TrainingState(shards, 9, 1, 2, LoaderState(False, 0, 0), *everything), Shards(config))
    content = (tmp_path / "s.bin").read_bytes()
    assert struct.unpack_from("<7i", content) == (20240527, 1, 2, 1, 1, 0, 0)
    m = np.frombuffer(content, "<f4", shards.local_count(), offset=1024)
    wte, wpe = everything[0][: 128 * 16], everything[0][128 * 16 : 130 * 16]
    np.testing.assert_array_equal(m[: 65 * 16], [*wte[64 * 16 :], *wpe[16:]])  # the second half of each


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("processes", [4, 5])  # 4 divide the tensors, so a file could also hold a quarter; 5 do not
@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_all_parameters_in_each_file(tmp_path, zeros, processes, master, shuffle):
    """As written by llm.c with -z 0: recognised only by the file's size."""
    content = bytearray(llmc_bytes({2: processes}, master, shuffle, count=ALL))
    if zeros:  # zeros could be mistaken for an order of no shards
        content[1024 : 1024 + 4 * ALL * (2 + master)] = bytes(4 * ALL * (2 + master))
    (tmp_path / "s.bin").write_bytes(content)
    found = read_state_file(tmp_path / "s.bin", CONFIG)
    expected = dataclasses.replace(state(master, shuffle), shards=Shards(CONFIG, 2, processes, cut=()))
    for index, name in enumerate(["m", "v", "master"][: 2 + master]):
        setattr(expected, name, array_values(index, ALL) * np.float32(not zeros))
    assert_same(found, expected)


def test_a_long_order_of_samples_is_not_mistaken_for_arrays(tmp_path):
    """The file has a quarter of the parameters, and is larger than one with all of them."""
    samples = list(range(3 * ALL))
    (tmp_path / "s.bin").write_bytes(llmc_bytes(samples=samples))
    found = read_state_file(tmp_path / "s.bin", CONFIG)
    assert not found.shards.whole and found.loader.sample_order.tolist() == samples


@pytest.mark.parametrize(
    "changes",
    [
        {"v": np.zeros(COUNT - 1, np.float32)},
        {"m": np.zeros(COUNT)},
        {"master": np.zeros(COUNT, np.uint16)},
    ],
)
def test_arrays_that_do_not_fit_are_not_written(tmp_path, changes):
    with pytest.raises(ValueError, match="write_state_file"):
        write_state_file(tmp_path / "s.bin", dataclasses.replace(state(), **changes))
    assert not (tmp_path / "s.bin").exists()
