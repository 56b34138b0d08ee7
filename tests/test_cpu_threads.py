"""Layers on the host, in pieces and in threads: the bits of the reference on whole arrays, on every number of cores."""

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba import cpu_threads
from gpt2_numba.cpu_threads import in_pieces, in_threads, pieces
from gpt2_numba.gpu.arena import zero
from gpt2_numba.layers import adamw, classifier, gelu, global_norm, matmul

ROOT = Path(__file__).resolve().parents[1]
PIECE = 1 << 10  # numbers: small, so that small arrays are cut, too
N, C, V, Vp = 37, 96, 301, 384


@pytest.fixture(params=[1, 3], ids=["1 core", "3 cores"], autouse=True)
def small_pieces_on(request, monkeypatch):
    """The number of cores; pieces are small."""
    cpu_threads._pool.cache_clear()
    monkeypatch.setattr(cpu_threads, "cores", lambda: request.param)
    monkeypatch.setattr(in_pieces, "__defaults__", ((), PIECE))
    for module in (adamw, global_norm):
        monkeypatch.setattr(module, "ONE_PASS", PIECE)
    monkeypatch.setattr(matmul, "PRODUCT", 16 * PIECE)
    yield
    cpu_threads._pool.cache_clear()


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape, np.float32)


def assert_same_bits(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("count, size, piece", [(0, 5, 10), (1, 5, 10), (7, 5, 10), (7, 50, 10), (8, 5, 10), (3, 0, 10)])
def test_pieces_cover_every_item_once(count, size, piece):
    cut = pieces(count, size, piece)
    assert [i for s in cut for i in range(s.start, s.stop)] == list(range(count))
    assert all((s.stop - s.start) * size <= piece or s.stop - s.start == 1 for s in cut)


def test_results_are_in_order():
    assert in_threads(lambda n: n * n, list(range(100))) == [n * n for n in range(100)]
    assert in_threads(lambda n: n * n, []) == []


def test_threads_work_at_once():
    """As many pieces as cores wait for each other: one thread alone would never get past the first."""
    barrier = threading.Barrier(cpu_threads.cores(), timeout=30)
    in_threads(lambda _: barrier.wait(), list(range(cpu_threads.cores())))


def test_work_may_be_cut_into_pieces_itself():
    assert in_threads(lambda n: sum(in_threads(lambda m: n * m, list(range(10)))), list(range(20))) == [45 * n for n in range(20)]


@pytest.mark.parametrize("wrong", [0, 50, 99])
def test_an_error_in_any_thread_reaches_the_caller(wrong):
    def work(n):
        if n == wrong:
            raise ValueError(f"piece {n}")

    with pytest.raises(ValueError, match=f"piece {wrong}"):
        in_threads(work, list(range(100)))


def test_gelu(draw):
    inp, dout = draw(N, C), draw(N, C)
    out, expected = np.full((2, N, C), np.nan, np.float32)
    gelu.gelu_forward(out, inp)
    gelu.gelu_forward_ref(expected, inp)
    assert_same_bits([out], [expected])
    gelu.gelu_backward_ref(expected, dout, inp)
    gelu.gelu_backward(dout, dout, inp)  # in place
    assert_same_bits([dout], [expected])


def test_classifier(draw):
    logits, targets = draw(N, Vp), np.random.default_rng(1).integers(V, size=N, dtype=np.int32)
    losses, expected = np.full((2, N), np.nan, np.float32)
    classifier.classifier_forward(losses, logits, targets, V)
    classifier.classifier_forward_ref(expected, logits, targets, V)
    assert_same_bits([losses], [expected])
    whole = logits.copy()
    classifier.classifier_forward_backward(losses, logits, targets, 1 / 7, V)
    classifier.classifier_forward_backward_ref(expected, whole, targets, np.float32(1 / 7), V)
    assert_same_bits([losses, logits], [expected, whole])


@pytest.mark.parametrize("scale", [0.5, np.nan])
def test_adamw(draw, scale):
    got = [draw(10 * PIECE + 3) for _ in range(3)] + [abs(draw(10 * PIECE + 3))]  # params, grads, m, v
    before, expected = [array.copy() for array in got], [array.copy() for array in got]
    arguments = np.array([1, scale], np.float32), 1e-3, 0.9, 0.95, 1e-8, 0.1, 3
    adamw.adamw_update(*got, *arguments)
    adamw.adamw_update_ref(*expected, *arguments)
    assert_same_bits(got, expected)
    if math.isnan(scale):
        assert_same_bits(got, before)


def test_sum_of_squares(draw):
    """float64 has 29 bits more than the result: rounded to float32, the sum is that of exact numbers, however it is cut.

    Equal numbers have squares that float32 would all round the same way.
    """
    for grads in draw(10 * PIECE + 3), np.full(10 * PIECE + 3, 0.1, np.float32):
        partials = np.zeros(global_norm.PARTIALS, np.float32)
        global_norm.sum_of_squares(partials, grads)
        assert partials[0] == np.float32(math.fsum(float(g) ** 2 for g in grads)) and not partials[1:].any()


def test_matmul_backward(draw):
    """The product is cut by output channels, and each of its numbers is the same sum over rows."""
    dout, inp, weight = draw(N, 1000), draw(N, C), draw(1000, C)
    dweight, dbias, dinp = draw(1000, C), draw(1000), np.empty((N, C), np.float32)
    expected = dweight + (dout.astype(np.float64).T @ inp).astype(np.float32)
    matmul.matmul_backward(dinp, dweight, dbias, dout, inp, weight)
    np.testing.assert_allclose(dweight, expected, rtol=0, atol=1e-5)


def test_zero_leaves_gaps_between_rows_alone():
    padded = np.ones((5, 8), np.float32)
    zero(padded[:, :6])
    assert not padded[:, :6].any() and (padded[:, 6:] == 1).all()
    flat = np.ones(3 << 20, np.int32)
    zero(flat)
    assert not flat.any()
    zero(np.empty(0, np.float32))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_has_threads_of_its_own():
    """It would wait for its parent's for ever."""
    program = (
        "import os; from gpt2_numba import cpu_threads; cpu_threads.cores = lambda: 3; "
        "double = lambda x: 2 * x; cpu_threads.in_threads(double, [1, 2, 3, 4]); child = os.fork(); "
        "assert cpu_threads.in_threads(double, [1, 2, 3, 4]) == [2, 4, 6, 8]; os._exit(0) if not child else None; "
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
