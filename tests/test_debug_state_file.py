"""Debug states: the bytes are llm.c's, tensors are in the table's order, foreign files are refused."""

import struct

import numpy as np
import pytest

from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.errors import UserError
from gpt2_numba.training.debug_state_file import DebugState, read_debug_state, write_debug_state

CONFIG = GPT2Config(L=2, NH=1, C=8, max_T=5, V=37)
SHAPES = parameter_shapes(CONFIG)
B, T = 2, 3
NAMES = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb".split()
COUNT = 128 * 8 + 5 * 8 + 2 * (12 * 64 + 13 * 8) + 2 * 8


def llmc_bytes(magic=20240327, version=2, rows=B, length=T, token=36):
    """A debug state written independently, with `struct`: all its float32 values count up from 1000."""
    tokens = [0, 5, 9, 1, 2, 3, 5, 9, 11, 2, 3, token]
    floats = range(1000, 1000 + B * T * 37 + 1 + COUNT)
    return (
        struct.pack("<256i", magic, version, rows, length, *[0] * 252)
        + struct.pack("<12i", *tokens)
        + struct.pack(f"<{len(floats)}f", *floats)
    )


def state():
    """The DebugState that llmc_bytes holds."""
    start = 1000 + B * T * 37
    gradients, position = {}, start + 1
    for name in NAMES:
        size = int(np.prod(SHAPES[name]))
        gradients[name] = np.arange(position, position + size, dtype=np.float32).reshape(SHAPES[name])
        position += size
    inputs, targets = np.array([[0, 5, 9], [1, 2, 3]], np.int32), np.array([[5, 9, 11], [2, 3, 36]], np.int32)
    logits = np.arange(1000, start, dtype=np.float32).reshape(B, T, 37)
    return DebugState(inputs, targets, logits, float(start), gradients)


def test_written_bytes_are_those_of_llmc(tmp_path):
    written = state()
    written.gradients = dict(reversed(written.gradients.items()))  # the table's order counts, not the dict's
    write_debug_state(tmp_path / "d.bin", CONFIG, SHAPES, written)
    assert (tmp_path / "d.bin").read_bytes() == llmc_bytes()


def test_reading_returns_the_state(tmp_path):
    (tmp_path / "d.bin").write_bytes(llmc_bytes())
    found, expected = read_debug_state(tmp_path / "d.bin", CONFIG, SHAPES), state()
    for name in ("inputs", "targets", "logits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert found.loss == expected.loss
    assert list(found.gradients) == NAMES
    for name in NAMES:
        assert found.gradients[name].shape == SHAPES[name] and found.gradients[name].dtype == np.float32
        np.testing.assert_array_equal(found.gradients[name], expected.gradients[name])


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "this file has 0 in total"),
        (llmc_bytes(magic=20240326), "a model checkpoint"),
        (llmc_bytes(version=1), "version 2, this one has 1"),
        (llmc_bytes(rows=0), "at least one row of 1 to 5 tokens, this one has B=0"),
        (llmc_bytes(length=6), "1 to 5 tokens, this one has B=2, T=6"),
        (llmc_bytes(length=0), "B=2, T=0"),
        (llmc_bytes(rows=3), "belongs to another model"),
        (llmc_bytes()[:-1], "belongs to another model"),
        (llmc_bytes() + b"\0", "belongs to another model"),
        (llmc_bytes(token=37), "from 0 to V - 1 = 36, this file has 0 to 37"),
        (llmc_bytes(token=-1), "this file has -1 to 11"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_debug_state(path, CONFIG, SHAPES)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def test_the_state_of_another_model_is_refused(tmp_path):
    (tmp_path / "d.bin").write_bytes(llmc_bytes())
    other = GPT2Config(L=3, NH=1, C=8, max_T=5, V=37)
    with pytest.raises(UserError, match="belongs to another model"):
        read_debug_state(tmp_path / "d.bin", other, parameter_shapes(other))


@pytest.mark.parametrize("change", ["targets", "logits", "wte", "missing"])
def test_arrays_that_do_not_fit_are_not_written(tmp_path, change):
    wrong = state()
    if change == "missing":
        del wrong.gradients["lnfb"]
    elif change == "wte":
        wrong.gradients["wte"] = wrong.gradients["wte"][:37]
    else:
        setattr(wrong, change, getattr(wrong, change)[:1])
    with pytest.raises(ValueError, match="write_debug_state"):
        write_debug_state(tmp_path / "d.bin", CONFIG, SHAPES, wrong)
    assert not (tmp_path / "d.bin").exists()
