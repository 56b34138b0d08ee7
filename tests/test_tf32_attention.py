"""Attention in TF32 against the reference, at lengths around tile boundaries, and when it is chosen."""

import numpy as np
import pytest

from gpt2_numba.gpu import gemm, simulator
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, SIMULATING, bfloat16_supported, copy_to_host, real_gpu, to_device
from gpt2_numba.gpu.reductions import partials_size
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table, production_sizes
from gpt2_numba.layers import attention as textbook
from gpt2_numba.layers.fast import attention
from gpt2_numba.layers.fast.attention import attention_scratch_size, engine, matmuls, tf32
from tests.test_layer_kernels import Shuffled

pytestmark = pytest.mark.skipif(not bfloat16_supported(), reason="no GPU with TF32, and the simulator is turned off")
only_simulated = pytest.mark.skipif(not SIMULATING, reason="only the simulator can choose the order of threads, and lacks this engine")
on_a_gpu = pytest.mark.skipif(not real_gpu(), reason="production sizes need a GPU; the simulator would take days")


@pytest.fixture
def on_tf32(monkeypatch):
    monkeypatch.setattr(attention, "engine", lambda dtype, HS: tf32)


def check(B, T, NH, HS):
    rows = check_kernel("attention", "tf32", Sizes(B=B, T=T, C=NH * HS, NH=NH, V=37, Vp=64, OC=8))
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@pytest.mark.parametrize("shape", [(1, 19, 2, 64), (2, 17, 1, 80), (1, 17, 1, 96), (1, 19, 1, 128), (2, 1, 1, 64)], ids=str)
def test_tensor_core_kernels(shape, on_tf32):
    """T of 1, one more than a tile, several tiles and a rest. Guard cells, NaN, repeatability and error bounds as in layer_checks."""
    check(*shape)


def test_tile_sizes_of_a_gpu(on_tf32, monkeypatch):
    """The simulator uses small tiles. Here larger ones, as on a GPU: two row tiles per warp, up to 64 keys at a time."""
    monkeypatch.setattr(tf32, "make_forward_kernel", lambda HS, made=tf32.make_forward_kernel: made(HS, (4, 2, 64, 2)))
    monkeypatch.setattr(tf32, "make_backward_queries_kernel", lambda HS, made=tf32.make_backward_queries_kernel: made(HS, (2, 2, 32, 2)))
    monkeypatch.setattr(tf32, "make_backward_keys_kernel", lambda HS, made=tf32.make_backward_keys_kernel: made(HS, (2, 2, 32, 2)))
    check(1, 70, 1, 64)


@on_a_gpu
@pytest.mark.parametrize("sizes", production_sizes("attention"), ids=str)
def test_production_sizes(sizes):
    assert engine(FLOAT32, sizes.HS) is tf32
    rows = check_kernel("attention", "tf32", sizes)
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@only_simulated
def test_the_result_does_not_depend_on_the_order_of_threads(on_tf32, monkeypatch):
    """Threads run in random order between barriers: without one, a row that another thread has copied may not be rounded yet."""
    monkeypatch.setattr(simulator, "deque", Shuffled)
    check(1, 37, 1, 64)


def run(qkv, dout, B, T, NH, scratch_size):
    """out, lse and dqkv from the kernels, as NumPy arrays."""
    out, lse, dqkv = (to_device(np.full(shape, np.nan, np.float32)) for shape in (dout.shape, (B, NH, T), qkv.shape))
    scratch = to_device(np.full(scratch_size, np.nan, np.float32))
    packed = to_device(qkv)
    tf32.attention_forward(out, lse, packed, scratch)
    tf32.attention_backward(dqkv, to_device(dout), out, lse, packed, scratch)
    return [copy_to_host(array) for array in (out, lse, dqkv)]


def inputs(B, T, NH, HS):
    normal = np.random.default_rng(1).standard_normal
    return normal((B * T, 3 * NH * HS)).astype(np.float32), normal((B * T, NH * HS)).astype(np.float32)


def test_errors_are_those_of_rounding_to_the_nearest():
    """layer_checks' bounds allow for the worst case. Typical errors are several times smaller, and twice as large if factors are truncated.

    A factor's error is uniform, up to 2^-11 of the power of two below it: a root mean square of 2^-11 / sqrt(3) * 0.72 = 2.0e-4.
    """
    B, T, NH, _ = shape = 1, 19, 2, 64
    qkv, dout = inputs(*shape)
    expected = np.empty(dout.shape), np.empty((B, NH, T)), np.empty(qkv.shape)
    textbook.attention_forward(*expected[:2], qkv.astype(np.float64))
    textbook.attention_backward(expected[2], dout.astype(np.float64), *expected[:2], qkv.astype(np.float64))
    for got, exact, rounded_factors in zip(run(qkv, dout, B, T, NH, tf32.scratch_size(*shape)), expected, (3, 0.5, 6)):
        error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
        assert error < 2.0e-4 * np.sqrt(rounded_factors)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_rows_after_the_last_are_not_read():
    """Two consecutive sequences in memory, the second all NaN: the first gives the same result as when it is alone."""
    B, T, NH, _ = shape = 2, 19, 1, 64
    qkv, dout = inputs(*shape)
    qkv[T:], dout[T:] = np.nan, np.nan
    alone = run(qkv[:T], dout[:T], 1, T, NH, T)
    with_neighbour = run(qkv, dout, B, T, NH, 2 * T)
    for expected, actual, kept in zip(alone, with_neighbour, (T, 1, T)):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(actual[:kept], expected)


def test_large_scores_do_not_overflow():
    """Scores of several hundred: exp overflows unless the largest is subtracted. Every tile brings a larger one."""
    B, T, NH, HS = shape = 1, 40, 1, 64
    qkv, dout = inputs(*shape)
    # Exact TF32 values, so that only the summation of scores is inexact.
    qkv[:, : 2 * HS] = (qkv[:, : 2 * HS] * np.linspace(1, 12, T, dtype=np.float32)[:, None]).round(1) // 0.125 * 0.125
    out, lse, _ = run(qkv, dout, B, T, NH, T)
    expected_out, expected_lse = np.empty((T, HS)), np.empty((B, NH, T))
    textbook.attention_forward(expected_out, expected_lse, qkv.astype(np.float64))
    assert expected_lse.max() > 200
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(out, expected_out, atol=4e-3)


# -------------------------------------------------------------------------------------------------------- choice of engine


@pytest.mark.parametrize("dtype, HS, allowed, expected", [
    (FLOAT32, 64, True, tf32), (FLOAT32, 128, True, tf32), (FLOAT32, 64, False, matmuls), (FLOAT32, 48, True, matmuls),
    (BFLOAT16_BITS, 48, True, matmuls),
])  # fmt: skip
def test_engine_by_type_head_size_and_flag(monkeypatch, dtype, HS, allowed, expected):
    monkeypatch.setattr(tf32, "can_serve", lambda HS: HS in tf32.HEAD_SIZES)
    monkeypatch.setattr(gemm, "_tf32_allowed", allowed)
    assert engine(dtype, HS) is expected
    assert attention_scratch_size(2, 8, 3, HS, dtype) == max(expected.scratch_size(2, 8, 3, HS), partials_size(3 * 3 * HS))


class Gpu:
    """An RTX 4090: 99 KB of shared memory per block."""

    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 99 << 10


@pytest.mark.parametrize("capability, needed, expected", [((9, 0), 99, True), ((8, 9), 100, False), ((7, 5), 50, False)])
def test_can_serve(monkeypatch, capability, needed, expected):
    monkeypatch.setattr(tf32, "real_gpu", lambda: True)
    monkeypatch.setattr(tf32, "device_properties", lambda: (capability, 132, 0))
    monkeypatch.setattr(tf32.cuda, "get_current_device", Gpu)
    for maker in ("make_forward_kernel", "make_backward_queries_kernel", "make_backward_keys_kernel"):
        monkeypatch.setattr(tf32, maker, lambda HS: (None, 128, 64, needed << 10))
    assert tf32.can_serve.__wrapped__(64) is expected
    assert tf32.can_serve.__wrapped__(48) is False


@only_simulated
def test_not_chosen_in_the_simulator():
    assert not tf32.can_serve(64)
    assert engine(FLOAT32, 64) is matmuls
