"""Checksums of files in blocks, DONE files that hold them, and checks that numbers are finite: alone and divided among processes."""

import errno
import hashlib
import json
import math
import os

import numpy as np
import pytest

from gpt2_numba.config import parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_bits
from gpt2_numba.parallel.shards import segments_of
from gpt2_numba.training import checksums, finite
from gpt2_numba.training.checksums import checksums_of, verify_files
from gpt2_numba.training.done_file import Done, read_done_file, write_done_file

CONTENTS = {"a.bin": bytes(range(64)), "b.bin": b"0123456789", "c.bin": b"", "d.bin": b"x" * 21}  # of blocks of 10 bytes: 7, 1, 0 and 3


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def done(tmp_path, monkeypatch):
    """The Done of CONTENTS, which are in tmp_path, in blocks of 10 bytes."""
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 10)
    monkeypatch.setattr(checksums, "CHUNK_BYTES", 4)
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    return Done(dict(zip(CONTENTS, checksums_of([tmp_path / name for name in CONTENTS]))), 10, {})


def test_checksums_are_sha_256_of_each_block(done):
    expected = {
        name: {"bytes": len(content), "sha256": [sha256(content[start : start + 10]) for start in range(0, len(content), 10)]}
        for name, content in CONTENTS.items()
    }
    assert done.files == expected


def test_files_that_are_as_they_were_pass(tmp_path, done):
    verify_files(tmp_path, done)
    for ranks in (1, 2, 3, 20):
        for rank in range(ranks):
            verify_files(tmp_path, done, share=(rank, ranks))


@pytest.mark.parametrize("ranks", [1, 2, 3, 20])
def test_every_flipped_bit_is_found_by_one_of_the_processes(tmp_path, done, ranks):
    for name, content in CONTENTS.items():
        for position in range(len(content)):
            spoilt = bytearray(content)
            spoilt[position] ^= 1 << position % 8
            (tmp_path / name).write_bytes(spoilt)
            found = []
            for rank in range(ranks):
                try:
                    verify_files(tmp_path, done, share=(rank, ranks))
                except UserError as error:
                    found.append(str(error))
            (message,) = found
            assert str(tmp_path / name) in message and f"block {position // 10} " in message and "\n" not in message
        (tmp_path / name).write_bytes(content)


def test_the_size_of_a_file_and_a_missing_one_are_found_by_all(tmp_path, done):
    for content in (CONTENTS["d.bin"][:-1], CONTENTS["d.bin"] + b"x", b""):
        (tmp_path / "d.bin").write_bytes(content)
        for rank in range(3):
            with pytest.raises(UserError, match=f"d.bin: .*21 bytes, and this one has {len(content)}"):
                verify_files(tmp_path, done, share=(rank, 3))
    (tmp_path / "d.bin").unlink()
    with pytest.raises(UserError, match=r"d\.bin: .*this one is missing"):
        verify_files(tmp_path, done, share=(2, 3))


def test_a_file_that_cannot_be_looked_at(tmp_path, done, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(UserError, match="Permission denied"):
        verify_files(tmp_path, done)


def test_a_disk_that_cannot_be_read(tmp_path, done, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checksums, "digest_of", fail)
    with pytest.raises(UserError, match=r"b\.bin: .*Input/output error"):
        verify_files(tmp_path, done, share=(7, 8))


def test_progress_is_reported_block_by_block(tmp_path, done):
    seen = []
    verify_files(tmp_path, done, share=(1, 2), progress=lambda path: seen.append(path.name))
    assert seen == ["a.bin"] * 3 + ["b.bin"] + ["d.bin"]  # every other one of 7, 1 and 3 blocks


# --- DONE ---


def test_facts_and_checksums_survive(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"some bytes")
    files = {"a.bin": checksums_of([tmp_path / "a.bin"])[0]}
    facts = {"data": ["a", 1, None, 0.1], "ü": {}}
    write_done_file(tmp_path / "DONE", 7, files, facts)
    assert read_done_file(tmp_path / "DONE", 7) == Done(files, 64 << 20, facts)
    write_done_file(tmp_path / "DONE", 7, files)
    assert read_done_file(tmp_path / "DONE", 7).facts == {}


def test_an_empty_done_file_records_nothing(tmp_path):
    (tmp_path / "DONE").touch()
    assert read_done_file(tmp_path / "DONE", 7) is None


def done_bytes(text, checksum=None):
    return f'{text}\n{{"sha256": "{checksum or sha256(text.encode())}"}}\n'.encode()


VALID = {"version": 1, "step": 7, "block_bytes": 10, "files": {"a.bin": {"bytes": 11, "sha256": ["00", "01"]}}, "facts": {}}


def changed(**changes):
    """A DONE file with the right checksum and these changes."""
    return done_bytes(json.dumps(VALID | changes))


def test_the_valid_one(tmp_path):
    (tmp_path / "DONE").write_bytes(changed())
    assert read_done_file(tmp_path / "DONE", 7).files["a.bin"]["bytes"] == 11


@pytest.mark.parametrize(
    "content",
    [
        changed()[:-20],
        changed()[: len(changed()) // 2],
        changed()[:-1] + b"}",
        changed().replace(b"a.bin", b"b.bin"),
        b"\0" * 100,
        bytes(range(256)),
        b"done\n",
        b"\n\n",
        b"[" * 100_000,
        done_bytes("[" * 100_000),
        done_bytes("9" * 100_000),
        done_bytes("NaN"),
        done_bytes("null"),
        done_bytes("[]"),
        done_bytes("{}"),
        changed(step=8),
        changed(version=2),
        changed(version=None),
        changed(block_bytes=0),
        changed(block_bytes=math.nan),
        changed(block_bytes=math.inf, files={"a.bin": {"bytes": 11, "sha256": ["00"]}}),
        changed(block_bytes="10"),
        changed(files=[]),
        changed(files={"a.bin": None}),
        changed(files={"a.bin": {}}),
        changed(files={"a.bin": {"bytes": 21, "sha256": ["00", "01"]}}),
        changed(files={"a.bin": {"bytes": -1, "sha256": []}}),
        changed(files={"a.bin": {"bytes": math.nan, "sha256": []}}),
        changed(files={"a.bin": {"bytes": 10**400, "sha256": []}}),
        changed(files={"a.bin": {"bytes": 11, "sha256": 2}}),
        changed(files={"../a.bin": VALID["files"]["a.bin"]}),
        changed(facts=[]),
    ],
)
def test_a_damaged_done_file_is_refused(tmp_path, content):
    (tmp_path / "DONE").write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_done_file(tmp_path / "DONE", 7)
    assert str(tmp_path / "DONE") in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "DONE")  # reading it would wait forever
    with pytest.raises(UserError, match="regular file"):
        read_done_file(tmp_path / "DONE", 7)


# --- Finite numbers ---


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bf16", [False, True])
def test_one_process_finds_the_value_that_is_not_finite(monkeypatch, ranks, value, bf16):
    monkeypatch.setattr(finite, "PIECE", 8)
    for index in (0, 7, 8, 30, 36):
        values = np.linspace(-3e38, 3e38, 37, dtype=np.float32)  # large, but finite
        values[index] = value
        array = bfloat16_bits(values) if bf16 else values
        found = [finite.first_not_finite(array, (rank, ranks)) for rank in range(ranks)]
        expected = [(index, value) if rank == index // 8 % ranks else None for rank in range(ranks)]
        assert str(found) == str(expected)  # as text, since NaN does not equal itself


def test_finite_numbers_pass():
    values = np.array([0, -0.0, 1e-45, -3.4e38, 3.4e38], np.float32)
    assert finite.first_not_finite(values) is None
    assert finite.first_not_finite(np.array([0x7F7F, 0xFF7F, 0, 0x8000, 1], np.uint16)) is None
    assert finite.first_not_finite(values[:0]) is None


def test_the_place_of_a_parameter():
    config = parse_descriptor("L=2,NH=1,C=8,T=3,V=5")
    starts = {(segment.name, segment.layer): segment.start for segment in segments_of(config)}
    assert finite.tensor_at(config, 0) == "wte at [0, 0]"
    assert finite.tensor_at(config, 4 * 8 + 7) == "wte at [4, 7]"
    assert finite.tensor_at(config, 5 * 8) == "wte at [5, 0], in the padding of the vocabulary"
    assert finite.tensor_at(config, starts["wpe", 0] + 2 * 8 + 1) == "wpe at [2, 1]"
    assert finite.tensor_at(config, starts["fcw", 1] + 31 * 8 + 4) == "fcw of block 1 at [31, 4]"
    assert finite.tensor_at(config, starts["ln2b", 0] + 3) == "ln2b of block 0 at [3]"
    assert finite.tensor_at(config, starts["lnfb", 0] + 7) == "lnfb at [7]"
