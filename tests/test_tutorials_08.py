"""Chapter 08: what its exercise about padding claims, and what its figures count."""

import dataclasses

import numpy as np
import pytest
from numba import cuda

from dev.kernels.classifier import fast_forward_backward, online_softmax, row_in_shared_memory
from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.layers.classifier import classifier_forward_backward
from tutorials import make_exercises
from tutorials.check.examining import examine
from tutorials.check.exercises import find
from tutorials.check.failures import Failure
from tutorials.check.loading import load_module
from tutorials.check.watching import watch
from tutorials.classifier_figures import passes

pytestmark = pytest.mark.skipif(not SIMULATING, reason="accesses are recorded in Numba's simulator, which is off")


@pytest.fixture
def planted(tmp_path):
    """The path of 08_padding as a learner finds it."""
    path = tmp_path / "08_padding.py"
    path.write_text(make_exercises.skeleton(make_exercises.solution_file("08_padding").read_text(encoding="utf-8")), encoding="utf-8")
    return path


def test_without_padding_the_fault_of_padding_does_not_show(planted):
    exercise = find("08_padding")
    examine(dataclasses.replace(exercise, sizes=({"N": 3, "Vp": 37},)), planted)
    with pytest.raises(Failure, match="losses\\[0\\]"):
        examine(exercise, planted)


def test_the_symptom_that_padding_describes(planted):
    losses, dlogits = cuda.device_array(1, np.float32), cuda.device_array((1, 40), np.float32)
    load_module(planted).loss_and_gradient(losses, dlogits, np.zeros((1, 40), np.float32), np.zeros(1, np.int32))
    assert round(float(losses.copy_to_host()[0]), 3) == 3.689
    assert np.allclose(dlogits.copy_to_host()[0, 37:], 1 / 40)


@pytest.mark.parametrize(
    "function, read, copy_written, copy_read",
    [(classifier_forward_backward, 3, 0, 0), (online_softmax, 2, 0, 0), (row_in_shared_memory, 1, 1, 3), (fast_forward_backward, 1, 1, 1)],
)
def test_passes_over_the_row(function, read, copy_written, copy_read):
    logits, targets = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32), np.array([5, 63, 0, 255], np.int32)
    arrays = [cuda.to_device(values) for values in (np.zeros(4, np.float32), logits, targets)]
    with watch() as seen:
        function(*arrays, 0.25, 256)
    counts = passes(seen, "logits", copies=("dynamic shared memory",))
    assert {way: round(count) for way, count in counts.items()} == {
        "read": read, "written": 1, "copy read": copy_read, "copy written": copy_written,
    }  # fmt: skip
