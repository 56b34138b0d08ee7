"""The stream of random numbers, whatever the pieces in which it is asked for; tests/test_model.py has the weights made of it."""

import hashlib

import numpy as np
import pytest

from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.initial_weights import NormalStream, draw_initial_weights


@pytest.mark.parametrize("pieces", [(5000,), (1, 623, 624, 625, 1), (624,) * 8, (227, 397, 1000, 3)])
def test_raw_numbers_are_numpys(pieces):
    """The states of 624 words end within pieces, at their ends and with them."""
    stream, expected = NormalStream(42), np.random.RandomState(42)
    for n in pieces:
        np.testing.assert_array_equal(stream._raw(n), expected.randint(0, 1 << 32, size=n, dtype=np.uint32))


def test_weights_have_the_same_bits_on_every_machine():
    """As they were when NumPy still made the raw numbers; wte is drawn in several chunks."""
    config = parse_descriptor("L=2,NH=2,C=64,T=64,V=5003")
    digest = hashlib.sha256()
    for name, layer, values in draw_initial_weights(config, parameter_shapes(config)):
        digest.update(f"{name} {layer} {values.shape}".encode() + values.tobytes())
    assert digest.hexdigest() == "4079a126a57a9689050da604a76fc2a471047fedeb17caef5bfe10176ded0f9a"


def test_a_reader_may_stop_early():
    config = parse_descriptor("L=2,NH=2,C=16,T=8,V=37")
    tensors = draw_initial_weights(config, parameter_shapes(config))
    assert next(tensors)[:2] == ("wte", 0)
    tensors.close()
