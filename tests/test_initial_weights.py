"""The stream of random numbers, in pieces of any size; tests/test_model.py tests the weights."""

import hashlib
import time
from itertools import count

import numpy as np
import pytest

from gpt2_numba import initial_weights
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.initial_weights import TENSORS_AHEAD, NormalStream, draw_initial_weights


@pytest.mark.parametrize("pieces", [(5000,), (1, 623, 624, 625, 1), (624,) * 8, (227, 397, 1000, 3)])
def test_raw_numbers_are_those_of_numpy(pieces):
    """The states of 624 words end inside pieces and at their ends."""
    stream, expected = NormalStream(42), np.random.RandomState(42)
    for n in pieces:
        np.testing.assert_array_equal(stream._raw(n), expected.randint(0, 1 << 32, size=n, dtype=np.uint32))


def test_weights_have_the_same_bits_on_every_machine():
    """The hash is from when NumPy generated the raw numbers; wte is drawn in several chunks."""
    config = parse_descriptor("L=2,NH=2,C=64,T=64,V=5003")
    digest = hashlib.sha256()
    for name, layer, values in draw_initial_weights(config, parameter_shapes(config)):
        digest.update(f"{name} {layer} {values.shape}".encode() + values.tobytes())
    assert digest.hexdigest() == "4079a126a57a9689050da604a76fc2a471047fedeb17caef5bfe10176ded0f9a"


def test_the_caller_may_stop_early():
    config = parse_descriptor("L=2,NH=2,C=16,T=8,V=37")
    tensors = draw_initial_weights(config, parameter_shapes(config))
    assert next(tensors)[:2] == ("wte", 0)
    tensors.close()


def test_a_limited_number_of_tensors_is_drawn_in_advance(monkeypatch):
    drawn = []

    def endless(*_):
        for number in count():
            drawn.append(number)
            yield number

    monkeypatch.setattr(initial_weights, "_draw_in_order", endless)
    tensors = draw_initial_weights(None, None)

    def settled(expected):
        deadline = time.monotonic() + 10
        while len(drawn) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        return len(drawn) == expected

    assert settled(TENSORS_AHEAD)
    assert [next(tensors) for _ in range(3)] == [0, 1, 2]
    assert settled(TENSORS_AHEAD + 3)
    tensors.close()
    assert settled(TENSORS_AHEAD + 3)
