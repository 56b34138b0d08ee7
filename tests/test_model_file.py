"""Model files: the bytes are llm.c's in both precisions, and anything that is not exactly a model file is refused."""

import errno
import os
import struct

import numpy as np
import pytest

from gpt2_numba.config import GPT2Config, count_parameters
from gpt2_numba.errors import UserError
from gpt2_numba.training import finite, model_file
from gpt2_numba.training.model_file import read_model_file, write_model_file

CONFIG = GPT2Config(L=2, NH=3, C=24, max_T=5, V=37)  # Vp = 128
COUNT = 128 * 24 + 5 * 24 + 2 * (12 * 24 * 24 + 13 * 24) + 2 * 24
HEADER = {0: 20240326, 1: 3, 2: 5, 3: 37, 4: 2, 5: 3, 6: 24, 7: 128}


def header_bytes(**changes):
    """The header, written independently with `struct`. changes: field0=..., field1=..., ..."""
    fields = HEADER | {int(name[5:]): value for name, value in changes.items()}
    return struct.pack("<256i", *(fields.get(index, 0) for index in range(256)))


def llmc_bytes(**changes):
    version = changes.get("field1", 3)
    values = range(COUNT)
    payload = struct.pack(f"<{COUNT}H", *values) if version == 5 else struct.pack(f"<{COUNT}f", *values)
    return header_bytes(**changes) + payload


@pytest.mark.parametrize("version, dtype", [(3, np.float32), (5, np.uint16)])
def test_written_bytes_are_those_of_llmc(tmp_path, monkeypatch, version, dtype):
    monkeypatch.setattr(model_file, "PIECE", 1000)  # several pieces, the last one smaller
    write_model_file(tmp_path / "m.bin", CONFIG, np.arange(COUNT, dtype=dtype))
    assert (tmp_path / "m.bin").read_bytes() == llmc_bytes(field1=version)


@pytest.mark.parametrize("version, dtype", [(3, np.float32), (5, np.uint16)])
def test_reading_returns_the_parameters(tmp_path, version, dtype):
    (tmp_path / "m.bin").write_bytes(llmc_bytes(field1=version))
    config, flat = read_model_file(tmp_path / "m.bin")
    assert config == CONFIG
    assert flat.dtype == dtype and not flat.flags.writeable and isinstance(flat, np.memmap)
    np.testing.assert_array_equal(flat, np.arange(COUNT))


@pytest.mark.parametrize("bits", [0x80000000, 0x00000001, 0x7F7FFFFF])  # -0, a denormal, the largest
def test_every_bit_is_preserved(tmp_path, bits):
    flat = np.full(COUNT, bits, dtype=np.uint32).view(np.float32)
    write_model_file(tmp_path / "m.bin", CONFIG, flat)
    np.testing.assert_array_equal(read_model_file(tmp_path / "m.bin")[1].view(np.uint32), bits)


NOT_FINITE = {np.float32: [0x7FC00001, 0x7F800000, 0xFF800000], np.uint16: [0x7FC1, 0x7F80, 0xFF80]}  # NaN, infinity, -infinity
PLACES = {  # index -> text
    0: "wte at [0, 0]",
    128 * 24 - 1: "wte at [127, 23], in the padding of the vocabulary",
    COUNT - 24 - 1: "lnfw at [23]",
    128 * 24 + 5 * 24 + 24: "ln1w of block 1 at [0]",
}


@pytest.mark.parametrize("index", PLACES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_a_number_that_is_not_finite_is_neither_written_nor_read(tmp_path, monkeypatch, dtype, index):
    monkeypatch.setattr(model_file, "PIECE", 1000)
    monkeypatch.setattr(finite, "PIECE", 300)
    path = tmp_path / "m.bin"
    for bits in NOT_FINITE[dtype]:
        flat = np.zeros(COUNT, dtype)
        flat.view(np.uint16 if dtype == np.uint16 else np.uint32)[index] = bits
        with pytest.raises(finite.NotFinite) as raised:
            write_model_file(path, CONFIG, flat)
        assert str(raised.value).endswith(PLACES[index]) and str(raised.value).startswith("the parameters must be finite")
        path.write_bytes(header_bytes(field1=5 if dtype == np.uint16 else 3) + flat.tobytes())
        with pytest.raises(UserError) as raised:
            read_model_file(path)
        message = str(raised.value)
        assert str(path) in message and PLACES[index] in message and ("nan in" in message or "inf in" in message) and "\n" not in message


def test_processes_divide_the_check_of_finite_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "PIECE", 1000)
    flat = np.zeros(COUNT, np.float32)
    flat[3500] = np.nan  # in piece 3
    (tmp_path / "m.bin").write_bytes(header_bytes() + flat.tobytes())
    for share in [(0, 2), (2, 3), None]:
        read_model_file(tmp_path / "m.bin", share)
    for share in [(1, 2), (0, 3), (3, 9)]:
        with pytest.raises(UserError, match="nan"):
            read_model_file(tmp_path / "m.bin", share)


def test_a_file_that_cannot_be_mapped(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    (tmp_path / "m.bin").write_bytes(llmc_bytes())
    monkeypatch.setattr(np, "memmap", fail)
    with pytest.raises(UserError, match=r"m\.bin .*Too many open files"):
        read_model_file(tmp_path / "m.bin")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "this file has 0 in total"),
        (llmc_bytes()[:1023], "this file has 1023 in total"),
        (llmc_bytes(field0=20240520), "a token shard"),
        (llmc_bytes(field0=20240527), "an optimizer state"),
        (b"First Citizen:\n" * 100, "something else"),
        (llmc_bytes(field1=1), "version 3 or 5, this one has 1"),
        (llmc_bytes(field4=-2), "cannot read 'L=-2'"),
        (llmc_bytes(field5=5), "NH must divide C"),
        (llmc_bytes(field6=0), "cannot read 'C=0'"),
        (llmc_bytes(field7=37), "padded to 128 rows"),
        (llmc_bytes(field4=10_000), "cut off or altered"),
        (llmc_bytes(field4=2**31 - 1), "at most 10000 layers"),
        (llmc_bytes(field1=5) + llmc_bytes(field1=5), "cut off or altered"),
        (header_bytes(), "this file has 1024"),
        (llmc_bytes()[:-1], f"must have {1024 + 4 * COUNT} bytes, this file has {1023 + 4 * COUNT}"),
        (llmc_bytes() + b"\0", f"must have {1024 + 4 * COUNT} bytes, this file has {1025 + 4 * COUNT}"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_model_file(path)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_model_file(tmp_path / "none.bin")
    with pytest.raises(UserError, match="readable file"):
        read_model_file(tmp_path)


@pytest.mark.parametrize(
    "flat",
    [
        np.zeros(COUNT),
        np.zeros(COUNT, np.int16),
        np.zeros(COUNT - 1, np.float32),
        np.zeros((1, COUNT), np.float32),
    ],
)
def test_parameters_that_do_not_fit_are_not_written(tmp_path, flat):
    with pytest.raises(ValueError, match="write_model_file"):
        write_model_file(tmp_path / "m.bin", CONFIG, flat)
    assert not (tmp_path / "m.bin").exists()


def test_offsets_beyond_2_gib(tmp_path):
    config = GPT2Config(L=1, NH=1, C=8, max_T=70_000_000, V=1)  # 2.24 GB, nearly all of it a hole in a sparse file
    count = count_parameters(config)
    with open(tmp_path / "m.bin", "wb") as file:
        file.write(header_bytes(field2=config.max_T, field3=1, field4=1, field5=1, field6=8))
        try:
            file.truncate(1024 + 4 * count)
            file.seek(1024 + 4 * count - 4)
            file.write(struct.pack("<f", 7.5))
        except OSError:
            pytest.skip("no space for a sparse file")
    flat = read_model_file(tmp_path / "m.bin", share=None)[1]  # without reading all of it
    assert 4 * count > 2**31 and flat[-1] == 7.5 and flat[-2] == 0
